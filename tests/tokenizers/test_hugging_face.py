"""What our tokenizers write is what AutoTokenizer opens: equal ids and equal texts, whatever the text."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from vocabularies import TEXTS

from gptcli import tokenizers
from gptcli.data.tokenizer_training import in_pieces, train_bpe
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.foreign import compare

SENTENCE = (
    "Hello, do you like tea? Não -- «sim» said Ångström's 🤗; it's 12:30."
    '\n\n\tYes! (_really_) "end"\r\x1c\x85\u3000---- \'a'
)
KINDS = ("byte", "char", "word", "bpe")


def made(kind: str) -> Tokenizer:
    return train_bpe(in_pieces(TEXTS), 420) if kind == "bpe" else tokenizers.build(kind, SENTENCE)


def opened(tokenizer: Tokenizer, directory: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer.save(directory)
    return AutoTokenizer.from_pretrained(directory)


def random_text(source: random.Random, letters: str) -> str:
    pools = [
        lambda: source.choice(letters),
        lambda: source.choice(letters),
        lambda: source.choice([" \t\n", "  ", "<|endoftext|>", "<|unk|>", "--", "---", "it's", "Hello", "'LL", "12²"]),
        lambda: chr(source.choice([*range(0x3000), 0x1F600, 0x10FFFF])),
        lambda: chr(source.choice((source.randrange(0xD800), source.randrange(0xE000, sys.maxunicode + 1)))),
    ]
    return "".join(source.choice(pools)() * source.choice((1, 1, 2, 5)) for _ in range(source.randrange(40)))


def assert_equal(kind: str, directory: Path, count: int) -> None:
    tokenizer = made(kind)
    theirs, source = opened(tokenizer, directory), random.Random(kind)
    assert len(theirs) == tokenizer.vocab_size
    for _ in range(count):
        text = random_text(source, SENTENCE + TEXTS[0])
        if kind == "char":
            text = "".join(letter for letter in text if letter in SENTENCE)
        ids = tokenizer.encode(text, allow_special=True)
        assert theirs.encode(text) == ids, text
        assert theirs.decode(ids) == tokenizer.decode(ids), text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_auto_tokenizer(tmp_path: Path, kind: str) -> None:
    assert_equal(kind, tmp_path, 300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_equal_on_ten_thousand_texts(tmp_path: Path, kind: str) -> None:
    assert_equal(kind, tmp_path, 10_000)


def test_a_character_outside_the_vocabulary_is_refused_by_both(tmp_path: Path) -> None:
    tokenizer = made("char")
    theirs = opened(tokenizer, tmp_path)
    with pytest.raises(GptcliError, match="'Z'"):
        tokenizer.encode("aZ")
    with pytest.raises(Exception, match="Missing"):
        theirs.encode("aZ")


def test_every_white_space_and_mark_parts_words_alike(tmp_path: Path) -> None:
    tokenizer = made("word")
    theirs = opened(tokenizer, tmp_path)
    text = "".join(f"Hello{chr(point)}tea" for point in range(0x3100) if not 0xD800 <= point < 0xE000)
    assert theirs.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(("kind", "text"), [("char", "a\ud800"), ("word", "a b\ud800")])
def test_a_lone_surrogate_in_a_vocabulary_has_no_tokenizer_json(tmp_path: Path, kind: str, text: str) -> None:
    tokenizer = tokenizers.build(kind, text)
    tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_gptcli.json"]
    assert tokenizers.load(tmp_path, kind, tokenizer.fingerprint).encode(text) == tokenizer.encode(text)


def test_a_trained_bpe_is_laid_out_as_gpt2s(tmp_path: Path) -> None:
    import json

    tokenizer = made("bpe")
    tokenizer.save(tmp_path)
    names = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "tokenizer_gptcli.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    vocab = json.loads((tmp_path / "vocab.json").read_bytes())
    tokenizers.build("gpt2").save(tmp_path / "..")
    gpt2s = json.loads((tmp_path / ".." / "vocab.json").read_bytes())
    assert [token for token, token_id in vocab.items() if token_id < 256] == [*gpt2s][:256]
    assert (tokenizer.vocab_size, tokenizer.eot_id, vocab["<|endoftext|>"]) == (420, 419, 419)
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").startswith("#version: 0.2\n")
    again = tokenizers.load(tmp_path, "bpe", tokenizer.fingerprint)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_ids_that_differ_from_the_librarys_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_bpe(in_pieces(TEXTS), 300)
    tokenizer.save(tmp_path)
    content = (tmp_path / "tokenizer.json").read_bytes()
    compare(tokenizer, content, tmp_path / "tokenizer.json")
    encode = type(tokenizer).encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text: encode(self, text)[:-1])
    with pytest.raises(GptcliError, match="differ from the tokenizers library's"):
        compare(tokenizer, content, tmp_path / "tokenizer.json")
    with pytest.raises(GptcliError, match="refuses it"):
        compare(tokenizer, b"{}", tmp_path / "tokenizer.json")


def test_the_tokenizers_of_others_need_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.tokenizers import choice

    tokenizer = train_bpe(in_pieces(TEXTS), 300)
    tokenizer.save(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert choice.read(tmp_path).fingerprint == tokenizer.fingerprint  # our own does not
    (tmp_path / "tokenizer_gptcli.json").unlink()
    with pytest.raises(GptcliError, match=r"not made by gptcli(.|\n)*pip install 'gptcli\[tokenizers\]'"):
        choice.read(tmp_path)
    monkeypatch.undo()
    assert choice.read(tmp_path).fingerprint == tokenizer.fingerprint
