"""The characters of every token: joined, they are the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli import tokenizers
from gptcli.tokenizers import Tokenizer, offsets
from gptcli.tokenizers.bpe import BPETokenizer

BPE = BPETokenizer.of_merges([("a", "b"), ("ab", "c")])


@pytest.mark.parametrize("tokenizer", [tokenizers.build("gpt2"), tokenizers.build("byte"), BPE], ids=lambda t: t.kind)
@given(text=st.text(max_size=30) | st.sampled_from(["a🙂b", "日本<|endoftext|>x", "<|endoftext|>", "abc\ud800d"]))
def test_byte_level_tokens_know_their_characters(tokenizer: Tokenizer, text: str) -> None:
    ids, spans = offsets.encode(tokenizer, text)
    assert len(ids) == len(spans)
    covered = [False] * len(text)
    for begin, end in spans:
        assert 0 <= begin < end <= len(text)
        covered[begin:end] = [True] * (end - begin)
    assert all(covered)
    for token_id, (begin, end) in zip(ids, spans, strict=True):
        piece = tokenizer.decode([token_id])
        if "\ufffd" not in piece:
            assert text[begin:end] == piece


def test_a_character_of_several_tokens_belongs_to_each() -> None:
    ids, spans = offsets.encode(tokenizers.build("byte"), "a🙂")
    assert spans == [(0, 1)] + [(1, 2)] * 4
    assert len(ids) == 5


def test_characters_and_words() -> None:
    assert offsets.encode(tokenizers.build("char", "abc"), "cab") == ([2, 0, 1], [(0, 1), (1, 2), (2, 3)])
    text = "Well, a  word.<|endoftext|> x--y"
    word = tokenizers.build("word", text)
    ids, spans = offsets.encode(word, text)
    assert [text[begin:end] for begin, end in spans] == ["Well", ",", "a", "word", ".", "<|endoftext|>", "x", "--", "y"]
    assert ids == word.encode(text, allow_special=True)


def test_special_texts() -> None:
    assert offsets.special_texts(tokenizers.build("char", "a")) == []
    assert offsets.special_texts(BPE) == ["<|endoftext|>"]
