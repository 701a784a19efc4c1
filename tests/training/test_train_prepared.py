"""gptcli train on token shards: the same windows as from memory, in an order that is computed, and going on."""

import hashlib
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import MODEL, TEXT

from gptcli.checkpoints import checkpoint
from gptcli.data import token_shards
from gptcli.data.dataset import Permutation, Windows, open_prepared

FEW = (*MODEL, "--sample-every", 0, "--threads", 1, "--eval-every", 10)


@pytest.fixture
def prepared(gptcli: Any, tmp_path: Path) -> Path:
    """624 characters in shards of 100 tokens."""
    (tmp_path / "story.txt").write_text(TEXT, encoding="utf-8")
    result = gptcli("prepare", "story.txt", "--out", "story.tokens", "--tokenizer", "char", "--shard-tokens", 100)
    assert result.code == 0, result.err
    return Path("story.tokens")


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


# The order


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10), st.integers(0, 10))
def test_every_window_comes_once(count: int, seed: int, epoch: int) -> None:
    order = Permutation(count, seed, epoch)
    places = order[:]
    assert sorted(places) == list(range(count))
    assert places[:20] == [order[place] for place in range(min(20, count))]
    assert places[3:9] == order[3:9]
    assert order[-1] == places[-1]


def test_the_order_depends_on_seed_and_epoch_and_is_always_the_same() -> None:
    orders = [Permutation(1000, seed, epoch)[:] for seed in (1, 2) for epoch in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4
    assert Permutation(1000, 1, 1)[:] == orders[0]
    assert orders[0][:5] == [620, 790, 784, 34, 483]


def test_the_order_looks_random() -> None:
    """Places and windows are uncorrelated, and neighbours go apart, to within five standard deviations."""
    count = 4_001
    for epoch in range(5):
        order = torch.tensor(Permutation(count, 7, epoch)[:], dtype=torch.float64)
        places = torch.arange(count, dtype=torch.float64)
        for left, right in ((order, places), (order[1:], order[:-1])):
            correlation = float(torch.corrcoef(torch.stack([left, right]))[0, 1])
            assert abs(correlation) < 5 / count**0.5


def test_a_huge_order_takes_no_memory() -> None:
    count = 10**13
    order = Permutation(count, 1, 1)
    some = order[10**12 : 10**12 + 500]
    assert len(set(some)) == 500
    assert all(0 <= place < count for place in some)
    assert max(some) - min(some) > count // 2


# The windows


def test_windows_from_shards_are_those_from_memory(prepared: Path) -> None:
    tokens = token_shards.open_shards(prepared)
    memory = torch.tensor(tokens.rows([0], len(tokens))[0], dtype=torch.int32)
    corpus = open_prepared(prepared, 0.9)
    assert (len(corpus.train), len(corpus.validation), corpus.tokens, corpus.characters) == (561, 63, 624, 624)
    for part, same in ((corpus.train, memory[:561]), (corpus.validation, memory[561:])):
        for stride in (16, 5):
            windows, expected = Windows(part, 16, stride), Windows(same, 16, stride)
            assert len(windows) == len(expected)
            numbers = range(len(windows))
            for mine, theirs in zip(windows.batch(numbers), expected.batch(numbers), strict=True):
                assert mine.dtype == theirs.dtype
                assert mine.is_contiguous()
                assert torch.equal(mine, theirs)


def test_the_fingerprint_is_of_tokens_and_split(gptcli: Any, prepared: Path) -> None:
    first = open_prepared(prepared, 0.9).fingerprint
    assert open_prepared(prepared, 0.9).fingerprint == first != open_prepared(prepared, 0.8).fingerprint
    Path("story.txt").write_text(TEXT.replace("dog", "god", 1), encoding="utf-8")
    again = ("prepare", "story.txt", "--out", prepared, "--tokenizer", "char", "--shard-tokens", 100, "--force")
    assert gptcli(*again).code == 0
    assert open_prepared(prepared, 0.9).fingerprint != first


# Training


def test_a_run_on_shards_learns_and_can_be_stopped_and_gone_on_with(gptcli: Any, prepared: Path) -> None:
    result = gptcli("train", prepared, *FEW, "--epochs", 3)
    assert result.code == 0, result.err
    assert result.out == f"{Path('checkpoints/story')}\n"
    assert "624 characters, 624 tokens (char, vocabulary 16): 561 to train on, 63 to validate." in result.err
    rows = checkpoint.read_metrics(Path("checkpoints/story"))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert checkpoint.load(Path("checkpoints/story")).tokenizer.kind == "char"
    assert gptcli("train", prepared, *FEW, "--max-steps", 11, "--out", "short").code == 0  # in the second epoch
    result = gptcli("train", "--resume", "short", "--max-steps", 24)
    assert result.code == 0, result.err
    assert gptcli("train", prepared, *FEW, "--max-steps", 24, "--out", "whole").code == 0
    assert digest(Path("short")) == digest(Path("whole")) == digest(Path("checkpoints/story"))
    assert gptcli("generate", "the", "--checkpoint", "short", "-n", 3).code == 0


def test_the_tokenizers_files_go_from_folder_to_run(gptcli: Any) -> None:
    Path("story.txt").write_text(TEXT, encoding="utf-8")
    assert gptcli("prepare", "story.txt", "--out", "tokens").code == 0
    assert gptcli("train", "tokens", *FEW, "--max-steps", 1, "--out", "run").code == 0
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert Path("run", name).read_bytes() == Path("tokens", name).read_bytes()


def test_another_corpus_is_refused_when_going_on(gptcli: Any, prepared: Path) -> None:
    assert gptcli("train", prepared, *FEW, "--max-steps", 2, "--out", "run").code == 0
    more = ("train", "--resume", "run", "--max-steps", 4)
    last = prepared / "shard-00006.tokens"
    whole = last.read_bytes()
    os.truncate(last, 90)
    gptcli(*more).assert_user_error("shard-00006.tokens is cut short")
    last.write_bytes(whole)
    manifest = (prepared / "corpus.json").read_bytes()
    again = ("prepare", "story.txt", "--out", prepared, "--tokenizer", "char", "--shard-tokens", 100, "--force")
    Path("story.txt").write_text(TEXT[:-52], encoding="utf-8")
    assert gptcli(*again).code == 0
    gptcli(*more).assert_user_error("has changed: 624 characters, 624 tokens then; 572, 572 now")
    Path("story.txt").write_text("x" + TEXT, encoding="utf-8")
    assert gptcli(*again).code == 0
    gptcli(*more).assert_user_error("prepared with another tokenizer")
    (prepared / "corpus.json").write_bytes(manifest)
    gptcli(*more).assert_user_error("is of another tokenizer")


def test_what_does_not_go_with_shards_is_named(gptcli: Any, prepared: Path) -> None:
    options = ("train", prepared, *FEW)
    gptcli(*options, "--tokenizer", "gpt2").assert_user_error("--tokenizer is gpt2", "prepared with char")
    gptcli(*options, "--encoding", "latin-1").assert_user_error("--encoding", "tokens already")
    gptcli(*options, "--allow-special").assert_user_error("--allow-special", "tokens already")
    gptcli("train", prepared, "story.txt", *FEW).assert_user_error("together with other texts", "alone")
    assert not Path("checkpoints").exists()
    assert gptcli("train", "story.txt", *FEW, "--tokenizer", "byte", "--max-steps", 1, "--out", "a").code == 0
    gptcli("train", prepared, "--init-from", "a", "--out", "b").assert_user_error("another tokenizer", "has byte")
    Path("one.txt").write_text("a", encoding="utf-8")
    assert gptcli("prepare", "one.txt", "--out", "one", "--tokenizer", "char").code == 0
    gptcli("train", "one", *FEW).assert_user_error("one has 1 tokens", "at least 2")
    assert not Path("b").exists()


def test_no_validation_part(gptcli: Any, prepared: Path) -> None:
    result = gptcli("train", prepared, *FEW, "--max-steps", 1, "--train-share", 1)
    assert result.code == 0, result.err
    assert "no validation loss" in result.err


def test_every_rank_reads_its_own_rows(prepared: Path) -> None:
    from gptcli.training.distributed import World

    windows = Windows(open_prepared(prepared, 0.9).train, 16, 16)
    order = windows.order(3, 1)
    batch = list(islice(order, 8))
    assert [*order[:8][World(0, 2).share(8)], *order[:8][World(1, 2).share(8)]] == batch
