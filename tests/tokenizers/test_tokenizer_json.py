"""A foreign tokenizer.json: read, with the ids of the tokenizers library, or refused by name; never replaced."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, ByteLevelBPETokenizer, Regex, Tokenizer, models, pre_tokenizers
from vocabularies import TEXTS, directory, edited, trained, unigram

from gptcli import tokenizers as ours
from gptcli.checkpoints import formats
from gptcli.errors import GptcliError
from gptcli.tokenizers.gpt2 import GPT2Tokenizer


def read(path: Path, content: str | Tokenizer, **config: Any) -> ours.Tokenizer:
    return formats.read(directory(path, content, **config)).tokenizer


def assert_equal_ids(tokenizer: ours.Tokenizer, theirs: Tokenizer, text: str) -> None:
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids, text
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text


def fuzzed(seed: int, count: int = 60) -> str:
    """Letters of the training texts, white space, and any code points, in runs."""
    source = random.Random(seed)
    pools = [
        lambda: source.choice("".join(TEXTS)),
        lambda: source.choice(" \t\n\r\x0b\x1c\x85\xa0\u2028\u3000'’"),
        lambda: source.choice(["'s", "'LL", "'ve ", "ſ", "<|endoftext|", "aaaa", "ß", "É", "İ", "12", "²"]),
        lambda: chr(source.choice([*range(0x20, 0x3000), 0x1F600, 0x10FFFF])),
        lambda: chr(source.randrange(0xE000, sys.maxunicode + 1)),
    ]
    return "".join(source.choice(pools)() * source.choice([1, 1, 1, 2, 5]) for _ in range(count))


def test_ids_are_those_of_the_library_whatever_the_text(tmp_path: Path) -> None:
    theirs = trained(700)
    tokenizer = read(tmp_path, theirs)
    assert tokenizer.kind == "bpe"
    assert tokenizer.vocab_size == theirs.get_vocab_size()
    for text in [*TEXTS, "", " ", "\n", "a", "x" * 2_000, " " * 3_000, "ab" * 700, *map(fuzzed, range(400))]:
        assert_equal_ids(tokenizer, theirs, text)


def test_every_code_point_alone_and_beside_letters(tmp_path: Path) -> None:
    theirs = trained()
    tokenizer = read(tmp_path, theirs)
    points = [p for p in range(sys.maxunicode + 1) if not 0xD800 <= p < 0xE000]
    for first in range(0, len(points), 5_000):
        text = "".join(f"a{chr(point)}1 {chr(point)}a " for point in points[first : first + 5_000])
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids, hex(points[first])


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_ids_are_those_of_the_library_for_random_texts(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    theirs = _SHARED.setdefault("theirs", trained(600))
    if "ours" not in _SHARED:
        _SHARED["ours"] = read(tmp_path_factory.mktemp("shared"), theirs)
    assert_equal_ids(_SHARED["ours"], theirs, text)


_SHARED: dict[str, Any] = {}


@pytest.mark.parametrize("seed", range(8))
def test_vocabularies_of_random_texts(tmp_path: Path, seed: int) -> None:
    """Few letters, many repeats: where merges overlap most."""
    source = random.Random(seed)
    words = ["".join(source.choices("abc", k=source.randrange(1, 12))) for _ in range(200)]
    theirs = trained(330, texts=[" ".join(words)] * 3)
    tokenizer = read(tmp_path, theirs)
    for _ in range(300):
        text = "".join(source.choices("abc ", weights=[4, 4, 4, 1], k=source.randrange(1, 40)))
        assert_equal_ids(tokenizer, theirs, text)


def test_both_ways_to_write_merges_and_a_split_that_is_spelled_out(tmp_path: Path) -> None:
    theirs = trained()

    def as_strings(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]

    def as_pairs(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]

    strings, pairs = (read(tmp_path / name, edited(change, theirs)) for name, change in
                      (("strings", as_strings), ("pairs", as_pairs)))  # fmt: skip
    assert strings.fingerprint == pairs.fingerprint
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    spelled = Tokenizer.from_str(theirs.to_str())
    spelled.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    split = read(tmp_path / "split", spelled)
    for seed in range(100):
        assert_equal_ids(strings, theirs, fuzzed(seed))
        assert_equal_ids(split, spelled, fuzzed(seed))


def test_special_tokens_are_text_and_other_added_tokens_are_not(tmp_path: Path) -> None:
    theirs = trained(special=("<s>", "<pad>", "</s>", "<mask>"))
    theirs.add_tokens(["Straße", "Straßen", "<unused0>"])
    tokenizer = read(tmp_path, theirs, eos_token={"content": "</s>"})
    assert tokenizer.eot_id == theirs.token_to_id("</s>") == 2
    for text in ("die Straßenbahn, die Straße", "<unused0><unused0>x", "Straße" * 3):
        assert_equal_ids(tokenizer, theirs, text)
    assert 2 not in tokenizer.encode("ein</s>zwei")
    assert tokenizer.encode("ein</s>zwei", allow_special=True) == [
        *tokenizer.encode("ein"), 2, *tokenizer.encode("zwei")
    ]  # fmt: skip
    text = "<s>ein </s> die Straßen<mask><unused0>\n<pad>"
    expected = theirs.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, allow_special=True) == expected
    assert tokenizer.encode_array(text, allow_special=True).tolist() == expected
    assert {0, 1, 2, 3} <= set(expected)
    assert not {0, 1, 2, 3} & set(tokenizer.encode_array(text).tolist())
    assert tokenizer.decode([2]) == "</s>"
    assert tokenizer.piece(0) == "<s>"


def test_ids_may_have_gaps_and_any_order(tmp_path: Path) -> None:
    theirs = trained()
    numbers = list(range(7, 7 + 2 * theirs.get_vocab_size(), 2))
    random.Random(0).shuffle(numbers)

    def renumber(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = dict(zip(vocab, numbers, strict=False))
        content["added_tokens"][0]["id"] = content["model"]["vocab"]["<|endoftext|>"]

    theirs = Tokenizer.from_str(edited(renumber, theirs))
    tokenizer = read(tmp_path, theirs, vocab_size=2_000)
    assert set(range(7)) | {8, 10} < set(tokenizer.holes)
    assert tokenizer.vocab_size == max(theirs.get_vocab().values()) + 1
    for seed in range(100):
        assert_equal_ids(tokenizer, theirs, fuzzed(seed))
    with pytest.raises(GptcliError, match="no token 8"):
        tokenizer.piece(8)
    assert tokenizer.encode("\ud83d\ude42 \ud800") == theirs.encode("🙂 \ufffd").ids


def test_gpt2s_own_is_recognised(tmp_path: Path) -> None:
    GPT2Tokenizer().save(tmp_path)
    own = ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    own.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    path = directory(tmp_path / "own", own.to_str())
    assert formats.read(path).tokenizer.kind == "gpt2"
    padded = formats.read(directory(tmp_path / "padded", own.to_str(), vocab_size=50_304))
    assert padded.tokenizer.kind == "gpt2"
    assert padded.notes == ["47 tokens beyond GPT-2's have no text."]
    own.add_special_tokens(["<|user|>"])
    more = formats.read(directory(tmp_path / "more", own.to_str())).tokenizer
    assert more.kind == "bpe"
    assert more.piece(50_257) == "<|user|>"
    assert more.encode(TEXTS[0]) == GPT2Tokenizer().encode(TEXTS[0])


def _word_piece() -> str:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str()


def _set(*path: str, value: Any) -> str:
    def change(content: dict[str, Any]) -> None:
        *way, last = path
        for name in way:
            content = content[name]
        content[last] = value

    return edited(change)


def _without_a_byte() -> str:
    def change(content: dict[str, Any]) -> None:
        del content["model"]["vocab"]["Ā"]

    return edited(change)


def _made_twice() -> str:
    def change(content: dict[str, Any]) -> None:
        content["model"]["vocab"] |= {"qz": 900, "zq": 901, "qzq": 902}
        content["model"]["merges"] += [["q", "z"], ["z", "q"], ["qz", "q"], ["q", "zq"]]

    return edited(change)


def _never_made() -> str:
    def change(content: dict[str, Any]) -> None:
        content["model"]["vocab"] |= {"qz": 900, "zq": 901, "qzq": 902}
        content["model"]["merges"] += [["q", "z"], ["z", "q"], ["q", "zq"]]

    return edited(change)


REFUSED: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
    "unigram": (unigram, ("Unigram",)),
    "wordpiece": (_word_piece, ("WordPiece",)),
    "no byte level": (lambda: _set("pre_tokenizer", value={"type": "Whitespace"}), ("pre_tokenizer", "Whitespace")),
    "no pre-split": (lambda: _set("pre_tokenizer", value=None), ("pre_tokenizer",)),
    "another split": (
        lambda: _set("pre_tokenizer", value={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}),
        ("pre_tokenizer", "Split", "1,3"),
    ),
    "digits too": (
        lambda: _set("pre_tokenizer", value={"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]}),
        ("pre_tokenizer", "Digits"),
    ),
    "uncut": (lambda: _set("pre_tokenizer", "use_regex", value=False), ("pre_tokenizer", "use_regex")),
    "prefix space": (lambda: _set("pre_tokenizer", "add_prefix_space", value=True), ("add_prefix_space",)),
    "normalizer": (lambda: _set("normalizer", value={"type": "NFC"}), ("normalizer", "NFC")),
    "template": (
        lambda: _set("post_processor", value={"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
            "special_tokens": {}}),
        ("post_processor", "TemplateProcessing"),
    ),
    "dropout": (lambda: _set("model", "dropout", value=0.1), ("dropout",)),
    "prefix": (lambda: _set("model", "continuing_subword_prefix", value="##"), ("continuing_subword_prefix",)),
    "ignore merges": (lambda: _set("model", "ignore_merges", value=True), ("ignore_merges",)),
    "bytes": (_without_a_byte, ("lacks 1 of the 256 bytes", "0x00")),
    "made twice": (_made_twice, ("qzq", "two ways")),
    "never made": (_never_made, ("qzq", "in none")),
    "no vocab": (lambda: _set("model", "vocab", value=None), ("vocab",)),
    "no merges": (lambda: _set("model", "merges", value="a b"), ("merges",)),
    "a broken merge": (lambda: _set("model", "merges", value=["a b c"]), ("merge 0",)),
    "a merge of nothing": (lambda: _set("model", "merges", value=[["é", "qq"]]), ("merge", "qq")),
    "an id twice": (lambda: _set("added_tokens", value=[{"id": 5, "content": "<x>", "special": True}]), ("id 5",)),
    "an added token": (lambda: _set("added_tokens", value=[{"id": 5}]), ("added token",)),
    "an added phrase": (
        lambda: _set("added_tokens", value=[{"id": 900, "content": "a b", "special": False}]), ("a b", "white space"),
    ),
    "a greedy added token": (
        lambda: _set("added_tokens", value=[{"id": 900, "content": "x", "lstrip": True}]), ("lstrip",),
    ),
    "no model": (lambda: _set("model", value=3), ("no model",)),
    "no object": (lambda: "[]", ("not a JSON object",)),
    "no JSON": (lambda: "{", ("not JSON",)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(gptcli: Any, tmp_path: Path, what: str) -> None:
    make, words = REFUSED[what]
    directory(tmp_path / "model", make(), vocab_size=50_257)
    result = gptcli("load-gpt2", "--from", "model", "--out", "out")
    result.assert_user_error(str(Path("model") / "tokenizer.json"), *words)
    assert not Path("out").exists()


def test_more_ids_than_rows(gptcli: Any, tmp_path: Path) -> None:
    directory(tmp_path / "model", trained(), vocab_size=300)
    gptcli("load-gpt2", "--from", "model").assert_user_error("tokenizer.json", "300 rows")
