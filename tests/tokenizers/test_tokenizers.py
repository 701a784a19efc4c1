"""Every tokenizer: text to ids and back, piece by piece, to disk and back; GPT-2's as others have it."""

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli import tokenizers
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.gpt2 import _LONG_RUN, FILES_SHA256, RANK_TABLE, RANK_TABLE_SHA256, _encoding
from gptcli.tokenizers.vocabulary import FILE

SENTENCE = (
    "Hello, do you like tea? Não -- «sim» said Ångström's 🤗; it's 12:30.\n\n\tYes! (_really_) <|endoftext|> \"end\""
)

# No surrogates: they are no characters, and UTF-8 cannot hold them.
texts = st.text(st.characters(exclude_categories=["Cs"]))
GPT2, BYTE = tokenizers.build("gpt2"), tokenizers.build("byte")
CHAR, WORD = tokenizers.build("char", SENTENCE), tokenizers.build("word", SENTENCE)
ALL = pytest.mark.parametrize("tokenizer", [GPT2, CHAR, BYTE, WORD], ids=lambda tokenizer: tokenizer.kind)


def user_error(action: Callable[[], Any], *words: str) -> None:
    with pytest.raises(GptcliError) as caught:
        action()
    assert "\n" not in caught.value.message + caught.value.hint
    for word in words:
        assert word in str(caught.value), str(caught.value)


# Round trips


@given(texts)
@settings(deadline=None)
def test_gpt2_and_bytes_give_every_text_back(text: str) -> None:
    assert GPT2.decode(GPT2.encode(text)) == text
    assert BYTE.decode(BYTE.encode(text)) == text
    assert BYTE.encode(text) == list(text.encode("utf-8"))


@given(texts.filter(bool), st.randoms())
def test_characters_give_every_text_of_theirs_back(text: str, random: Any) -> None:
    tokenizer = tokenizers.build("char", text)
    assert tokenizer.vocab_size == len(set(text))
    shuffled = "".join(random.sample(text, len(text)))
    assert tokenizer.decode(tokenizer.encode(shuffled)) == shuffled


@given(texts.filter(lambda text: bool(text.strip())))
def test_words_survive_though_white_space_does_not(text: str) -> None:
    tokenizer = tokenizers.build("word", text)
    ids = tokenizer.encode(text)
    assert re.sub(r"\s", "", tokenizer.decode(ids)) == re.sub(r"\s", "", text).replace("<|endoftext|>", "<|unk|>")
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@given(st.lists(st.integers(0, 50_256)), st.lists(st.integers(0, 256)))
@settings(deadline=None)
def test_a_stream_says_what_decode_says(gpt2_ids: list[int], byte_ids: list[int]) -> None:
    for tokenizer, ids in ((GPT2, gpt2_ids), (BYTE, byte_ids)):
        stream = tokenizer.stream()
        pushed = [stream.push(token_id) for token_id in ids]
        assert "".join(pushed) + stream.flush() == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 100)))
def test_a_stream_of_characters_or_words_says_what_decode_says(numbers: list[int]) -> None:
    for tokenizer in (CHAR, WORD):
        ids = [number % tokenizer.vocab_size for number in numbers]
        stream = tokenizer.stream()
        assert "".join([stream.push(token_id) for token_id in ids]) + stream.flush() == tokenizer.decode(ids)


@given(texts)
@settings(deadline=None)
def test_a_stream_of_real_text_never_shows_half_a_character(text: str) -> None:
    for tokenizer in (GPT2, BYTE):
        stream, said = tokenizer.stream(), ""
        for token_id in tokenizer.encode(text):
            said += stream.push(token_id)
            assert text.startswith(said)
        assert stream.flush() == ""


def test_a_stream_starts_anew_after_a_flush() -> None:
    stream = BYTE.stream()
    assert (stream.push(0xF0), stream.flush(), stream.push(0x41), stream.flush()) == ("", "\ufffd", "A", "")


# GPT-2's vocabulary


def test_the_rank_table_is_the_published_one() -> None:
    digest = hashlib.sha256(RANK_TABLE.read_bytes()).hexdigest()
    assert digest == RANK_TABLE_SHA256 == GPT2.fingerprint
    assert digest.startswith("306cd27f")


def test_the_course_s_ids(course_numbers: dict[str, Any]) -> None:
    examples = course_numbers["gpt2_token_ids"]
    assert "<|endoftext|>" in examples
    for text, ids in examples.items():
        assert GPT2.encode(text) == ids
        assert GPT2.decode(ids) == text


def test_the_verdict_in_both_vocabularies(the_verdict: Path) -> None:
    text = the_verdict.read_text(encoding="utf-8")
    assert len(GPT2.encode(text)) == 5_145
    words = tokenizers.build("word", text)
    # The course: 1,130 words and two special tokens; the sentence's ids are in its second chapter.
    assert words.vocab_size == 1_132
    ids = words.encode(
        "Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace.", allow_special=True
    )
    assert ids == [1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7]
    assert words.decode(ids) == "<|unk|>, do you like tea? <|endoftext|> In the sunlit terraces of the <|unk|>."


@given(st.lists(st.sampled_from(["<|endoftext|>", "<|", "endoftext", " ", "\n", "  ", "I'll", "é", "7", "\ud83e"])))
@settings(deadline=None)
def test_special_text_is_plain_unless_allowed_as_in_tiktoken(parts: list[str]) -> None:
    text = "".join(parts)
    assert GPT2.encode(text) == _encoding().encode(text, disallowed_special=())
    assert GPT2.encode(text, allow_special=True) == _encoding().encode(text, allowed_special="all")


@ALL
def test_only_an_allowed_end_of_text_is_the_token(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode(SENTENCE)
    assert tokenizer.eot_id not in plain
    allowed = tokenizer.encode(SENTENCE, allow_special=True)
    if tokenizer.eot_id is None:
        assert allowed == plain
    else:
        assert allowed.count(tokenizer.eot_id) == 1
        assert tokenizer.decode(allowed).count("<|endoftext|>") == 1


@given(st.text("\n \t\u00a0\u2003\x1cx'<", max_size=60))
@settings(deadline=None)
def test_cutting_long_runs_changes_nothing(text: str) -> None:
    from gptcli.tokenizers import gpt2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2, "_LONG_RUN", 2)
        parts = gpt2._cut_long_runs(text)
    assert "".join(parts) == text
    assert [i for part in parts for i in _encoding().encode_ordinary(part)] == _encoding().encode_ordinary(text)


@pytest.mark.parametrize(
    ("text", "end"), [*((t, "x") for t in ("a", "=", " ", "\n", " \n\u00a0")), (" ", ""), ("a b", "")]
)
def test_a_million_alike_characters_take_seconds_at_most(text: str, end: str) -> None:
    long = text * (1_000_000 // len(text)) + end
    started = time.perf_counter()
    ids = GPT2.encode(long)
    assert time.perf_counter() - started < 20
    assert GPT2.decode(ids) == long


def test_a_run_below_the_limit_and_one_above_are_encoded_alike() -> None:
    for length in (_LONG_RUN - 1, _LONG_RUN, _LONG_RUN + 2_000):
        text = "one" + " " * length + "two" + "\n" * length
        assert GPT2.encode(text) == _encoding().encode_ordinary(text)


def test_lone_surrogates_count_as_replacement_characters() -> None:
    for tokenizer in (GPT2, BYTE):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
        assert tokenizer.decode(tokenizer.encode("\ud83e\udd17")) == "🤗"


@pytest.fixture(scope="module")
def gpt2_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    GPT2.save(directory)
    return directory


def test_the_files_are_the_hub_s_to_the_byte(gpt2_directory: Path) -> None:
    for name, sha256 in FILES_SHA256.items():
        assert hashlib.sha256((gpt2_directory / name).read_bytes()).hexdigest() == sha256


def test_hugging_face_reads_the_files_and_gives_the_same_ids(gpt2_directory: Path, bundled_story: Path) -> None:
    from transformers import AutoTokenizer

    (gpt2_directory / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(gpt2_directory)
    story = bundled_story.read_text(encoding="utf-8")
    for text in (story, "  Hello!!!!!!!!!? 🤗, my\n\n dog's a   little\t\x00é\u3000 ", "\u00a0x \u2003y"):
        ids = GPT2.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(theirs) == GPT2.vocab_size
    assert theirs.eos_token_id == GPT2.eot_id
    assert theirs("<|endoftext|>")["input_ids"] == GPT2.encode("<|endoftext|>", allow_special=True)


# Pieces


@pytest.mark.parametrize(
    ("token_id", "piece"),
    [(1634, "ization"), (318, " is"), (198, "\\n"), (12520, " \\xf0\\x9f"), (50256, "<|endoftext|>")],
)
def test_a_piece_is_one_printable_line(token_id: int, piece: str) -> None:
    assert GPT2.piece(token_id) == piece


@ALL
def test_every_piece_can_be_printed(tokenizer: Tokenizer) -> None:
    assert all(tokenizer.piece(token_id).isprintable() for token_id in range(tokenizer.vocab_size))


@ALL
def test_ids_that_no_token_has_are_named(tokenizer: Tokenizer) -> None:
    for wrong in (-1, tokenizer.vocab_size):
        for action in (lambda i: tokenizer.decode([0, i]), tokenizer.piece, tokenizer.stream().push):
            user_error(lambda action=action, wrong=wrong: action(wrong), str(wrong), tokenizer.kind)


# Vocabularies of a text


def test_an_unknown_character_is_named_with_its_place() -> None:
    tokenizer = tokenizers.build("char", "hello\n")
    user_error(lambda: tokenizer.encode("hellö"), "'ö'", "U+00F6", "offset 4", "of 5", "\\nehlo")
    user_error(lambda: tokenizers.build("char", "".join(map(chr, range(500)))).encode("😀"), "U+1F600", "of 500", "…")


def test_unknown_words_get_their_own_token() -> None:
    tokenizer = tokenizers.build("word", "the cat -- and <|unk|> the dog")
    assert tokenizer.decode(tokenizer.encode("the cow -- and the cat.")) == "the <|unk|> -- and the cat <|unk|>"
    assert tokenizer.vocab_size == len({"--", "and", "cat", "dog", "the"}) + 2


def test_the_same_vocabulary_has_the_same_fingerprint_and_no_other() -> None:
    same = [("char", "abc"), ("char", "cba")], [("word", "a b"), ("word", "b\na")]
    others = [[("char", "abcd")], [("word", "a b c")], [("byte", None)]]
    prints = [{tokenizers.build(kind, text).fingerprint for kind, text in group} for group in [*same, *others]]
    assert all(len(group) == 1 for group in prints)
    assert len(set.union(*prints)) == 5


@pytest.mark.parametrize(("kind", "text"), [("char", None), ("char", ""), ("word", None), ("word", " \n")])
def test_a_vocabulary_needs_a_text(kind: str, text: str | None) -> None:
    user_error(lambda: tokenizers.build(kind, text), kind, "there is none")


def test_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    user_error(lambda: tokenizers.build("gtp2"), "gtp2", "Did you mean gpt2?")
    user_error(lambda: tokenizers.load(tmp_path, "unigram", ""), "unigram")


# On disk


@ALL
def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = tokenizers.load(tmp_path, tokenizer.kind, tokenizer.fingerprint)
    assert (loaded.vocab_size, loaded.eot_id) == (tokenizer.vocab_size, tokenizer.eot_id)
    assert loaded.encode(SENTENCE, allow_special=True) == tokenizer.encode(SENTENCE, allow_special=True)


@given(st.text(min_size=1))
@settings(deadline=None, max_examples=10)
def test_any_vocabulary_survives_the_disk(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        tokenizer = tokenizers.build("char", text)
        tokenizer.save(Path(directory))
        loaded = tokenizers.load(Path(directory), "char", tokenizer.fingerprint)
        assert loaded.encode(text) == tokenizer.encode(text)


@ALL
def test_another_fingerprint_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    user_error(lambda: tokenizers.load(tmp_path, tokenizer.kind, "0" * 64), "fingerprint", tokenizer.fingerprint[:12])


@ALL
def test_missing_files_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for file in list(tmp_path.iterdir()):
        if file.name in ("tokenizer_config.json", "tokenizer.json"):  # written for others; `load` does not read them
            continue
        content = file.read_bytes()
        file.unlink()
        user_error(lambda: tokenizers.load(tmp_path, tokenizer.kind, tokenizer.fingerprint), file.name, "missing")
        file.mkdir()
        user_error(lambda: tokenizers.load(tmp_path, tokenizer.kind, tokenizer.fingerprint), file.name, "Cannot read")
        file.rmdir()
        file.write_bytes(content)


def test_gpt2_files_that_differ_are_refused(gpt2_directory: Path, tmp_path: Path) -> None:
    for name in FILES_SHA256:
        for copied in FILES_SHA256:
            (tmp_path / copied).write_bytes((gpt2_directory / copied).read_bytes())
        (tmp_path / name).write_bytes((gpt2_directory / name).read_bytes()[:-2])
        user_error(lambda: tokenizers.load(tmp_path, "gpt2", GPT2.fingerprint), name, "SHA-256")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ('{"kind": "char", ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "not a char"),
        ('{"kind": "word", "vocabulary": ["a"]}', "'word'"),
        ('{"kind": "char"}', "no list"),
        ('{"kind": "char", "vocabulary": "ab"}', "no list"),
        ('{"kind": "char", "vocabulary": ["a", 7]}', "token 1 is '7'"),
        ('{"kind": "char", "vocabulary": ["a", ""]}', "token 1 is ''"),
        ('{"kind": "char", "vocabulary": ["a", "bc"]}', "token 1 is 'bc'"),
        ('{"kind": "char", "vocabulary": ["a", "b", "a"]}', "tokens 0 and 2 are both 'a'"),
        ('{"kind": "char", "vocabulary": ["b", "a"]}', "fingerprint"),
        ('{"kind": "char", "vocabulary": []}', "fingerprint"),
    ],
)
def test_a_damaged_vocabulary_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content, encoding="latin-1")
    expected = tokenizers.build("char", "ab").fingerprint
    user_error(lambda: tokenizers.load(tmp_path, "char", expected), FILE if words != "fingerprint" else "", words)


def test_a_word_vocabulary_without_its_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"kind": "word", "vocabulary": ["a", "b"]}), encoding="utf-8")
    user_error(lambda: tokenizers.load(tmp_path, "word", "0"), "the last two tokens")


def test_a_full_disk_is_the_caller_s_to_report(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        CHAR.save(tmp_path / "missing")
