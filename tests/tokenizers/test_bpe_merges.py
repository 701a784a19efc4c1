"""The merges of our own trainer, beside those of Hugging Face's."""

import json
import random

import pytest

from gptcli.tokenizers import bpe_merges
from gptcli.tokenizers.bpe import BPETokenizer

ALPHABETS = ("ab", "aab \n", "abc' é漢\u2028 \t1", "it's we'll  \r\n 12 3", "\x1c\x1d a\u00a0b")


def test_the_most_frequent_pair_is_merged_first() -> None:
    assert bpe_merges.merges(["low lower lowest"], 3, 2) == [("l", "o"), ("lo", "w"), ("Ġ", "low")]


def test_a_short_text_has_few_merges_and_rare_pairs_none() -> None:
    assert bpe_merges.merges(["ab"], 10, 2) == []
    assert bpe_merges.merges(["ab ab"], 10, 2) == [("a", "b")]


def test_equal_to_the_tokenizers_library() -> None:
    theirs = pytest.importorskip("tokenizers")
    draw = random.Random(1)
    for alphabet in ALPHABETS * 4:
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(10, 600)))
        tokenizer = theirs.Tokenizer(theirs.models.BPE())
        tokenizer.pre_tokenizer = theirs.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = theirs.trainers.BpeTrainer(
            vocab_size=456,
            min_frequency=2,
            initial_alphabet=theirs.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([text], trainer)
        found = [
            tuple(merge.split(" ") if isinstance(merge, str) else merge)
            for merge in json.loads(tokenizer.to_str())["model"]["merges"]
        ]
        assert bpe_merges.merges([text], 200, 2) == found


def test_a_tokenizer_of_them_decodes_what_it_encodes() -> None:
    text = "the cat sat on the mat, and the dog sat on the log.\n" * 3
    tokenizer = BPETokenizer.of_merges(bpe_merges.merges([text], 30, 2))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text) / 2


def test_a_lone_surrogate_counts_as_what_it_is_encoded_as() -> None:
    text = "caf\ud800 caf\ufffd \ud83d\ude00 " * 9
    expected = bpe_merges.merges(["caf\ufffd caf\ufffd \U0001f600 " * 9], 30, 2)
    assert bpe_merges.merges([text], 30, 2) == expected
