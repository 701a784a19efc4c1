"""Ids without text are never drawn: padded vocabularies and holes in them, on every way to a token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding import continued, ids_of, together
from models import tiny_checkpoint, tiny_model
from uncached import UncachedEngine, continuation

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.config.sampling import SamplingConfig
from gptcli.inference.engine import Scorer
from gptcli.inference.sampling import Drawable, keep_drawable
from gptcli.inference.sequence import Request
from gptcli.inference.speculative import ModelDrafter, NgramDrafter, quantized_drafter
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model.gpt import GPTModel

DRAWABLE = Drawable(size=50, holes=(0, 7, 8, 30))
ALLOWED = set(range(50)) - {0, 7, 8, 30}
GREEDY, WARM = SamplingConfig(temperature=0), SamplingConfig(temperature=5)
SAMPLINGS = [
    GREEDY,
    SamplingConfig(temperature=0, repetition_penalty=1.5),
    WARM,
    SamplingConfig(temperature=5, top_k=200),
    SamplingConfig(temperature=5, top_p=1.0),
    SamplingConfig(temperature=5, min_p=0.0, repetition_penalty=1.3),
]
PROMPTS = [[1, 2, 3], [4, 5, 4, 5, 4], list(range(9, 24)), [1, 2, 6]]


def model(seed: int = 0, vocab_size: int = 61) -> GPTModel:
    """A model that prefers ids without text: unhindered it draws hardly anything else."""
    found = tiny_model(seed, vocab_size=vocab_size, tie_weights=False)
    with torch.no_grad():
        barred = torch.from_numpy(~DRAWABLE.mask(vocab_size))
        found.ln_f.bias[0] = 4.0
        found.lm_head.weight[:, 0] = torch.where(barred, 3.0, found.lm_head.weight[:, 0])
    return found


def engine(kind: str, of: GPTModel, slots: int = 1) -> Any:
    if kind == "torch":
        return TorchEngine(of, slots=slots)
    pytest.importorskip("numba", exc_type=ImportError)
    from gptcli.inference.cpu_engine import CpuEngine

    return CpuEngine(of.config, {n: t.detach().numpy() for n, t in of.state_dict().items()}, slots=slots)


def requests(sampling: SamplingConfig) -> list[Request]:
    return [Request(prompt, 40, sampling, seed, n_candidates=5) for seed, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("rows", [1, 3])
def test_keeping_in_place_is_one_operation_with_a_mask(rows: int) -> None:
    logits = np.random.default_rng(0).normal(size=(rows, 61)).astype(np.float32)
    expected = np.where(DRAWABLE.mask(61), logits, -np.inf)
    in_torch = torch.from_numpy(logits.copy())
    assert keep_drawable(in_torch, DRAWABLE) is in_torch
    np.testing.assert_array_equal(in_torch.numpy(), expected)
    np.testing.assert_array_equal(keep_drawable(logits.copy(), DRAWABLE), expected)
    np.testing.assert_array_equal(keep_drawable(logits.copy(), None), logits)
    np.testing.assert_array_equal(keep_drawable(logits.copy(), Drawable(61)), logits)
    np.testing.assert_array_equal(keep_drawable(logits.copy(), Drawable(70)), logits)


@pytest.mark.parametrize("kind", ["cpu", "torch"])
def test_unhindered_the_model_draws_ids_without_text(kind: str) -> None:
    for request in (*requests(GREEDY), *requests(WARM)):
        assert not set(ids_of(engine(kind, model()), request)) <= ALLOWED


@pytest.mark.parametrize("contrast", [None, 1])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["cpu", "torch"])
def test_every_way_to_a_token_draws_the_same_and_none_without_text(
    kind: str, sampling: SamplingConfig, contrast: int | None
) -> None:
    scorer = Scorer(engine(kind, model()), DRAWABLE, contrast)
    alone = [continued(scorer, request) for request in requests(sampling)]
    for tokens in alone:
        assert {token.id for token in tokens} <= ALLOWED
        assert {i for token in tokens for i, _ in token.candidates} <= ALLOWED
    ids = [[token.id for token in tokens] for tokens in alone]
    assert together(engine(kind, model(), slots=3), requests(sampling), DRAWABLE, contrast) == ids
    drafts = [NgramDrafter(), quantized_drafter(scorer, 8)]
    # A draft whose own vocabulary is padded further than the model's.
    drafts.append(ModelDrafter(Scorer(engine(kind, model(1, vocab_size=80)), DRAWABLE)))
    for drafter in drafts:
        assert [ids_of(scorer, request, drafter) for request in requests(sampling)] == ids


@pytest.mark.parametrize("use_cache", [True, False])
def test_samples_of_a_training_run_have_text(use_cache: bool) -> None:
    for sampling in (GREEDY, WARM):
        tokens = continuation(
            model(), [1, 2, 3], max_new_tokens=30, sampling=sampling, seed=0, use_cache=use_cache, drawable=DRAWABLE
        )
        assert {token.id for token in tokens} <= ALLOWED
    scores = Scorer(UncachedEngine(model()), DRAWABLE).forward([0], [[1]], [0])
    assert scores.isinf().sum() == 61 - len(ALLOWED)


def padded(path: Path, vocab_size: int = 300) -> Path:
    """A checkpoint with the byte tokenizer, 257 tokens, and rows beyond them that it prefers."""
    tiny_checkpoint(path)
    wide = tiny_model(vocab_size=vocab_size, tie_weights=False, context_length=32)
    with torch.no_grad():
        wide.ln_f.bias[0] = 4.0
        wide.lm_head.weight[257:, 0] = 3.0
    checkpoint.create(path, wide, tokenizers.build("byte"), {}, force=True)
    return path


def ids_in(out: str) -> Sequence[int]:
    return [i for sample in json.loads(out)["samples"] for i in sample["ids"]]


@pytest.mark.parametrize("engine_name", ["cpu", "torch"])
@pytest.mark.parametrize(
    "options",
    [
        ("-t", 0),
        ("-t", 5, "--steps"),
        ("-t", 5, "--draft", "int8"),
        ("-t", 0, "--draft", "ngram"),
        ("-t", 5, "--draft", "padded"),
        ("-t", 5, "--quantize", "int4"),
        ("-t", 5, "--contrast-layer", 1),
    ],
    ids=str,
)
def test_generate_never_dies_of_an_id_without_text(
    gptcli: Any, tmp_path: Path, engine_name: str, options: tuple[Any, ...]
) -> None:
    if engine_name == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    padded(tmp_path / "checkpoints" / "padded")
    common = ("generate", "hi", "-n", 60, "--seed", 3, "--ignore-eot", "--engine", engine_name, "--dtype", "float32")
    result = gptcli(*common, *options, "--json")
    assert result.code == 0, result.err
    assert len(ids_in(result.out)) == 60
    assert max(ids_in(result.out)) < 257
    assert gptcli(*common, *options).code == 0


@pytest.mark.parametrize("engine_name", ["cpu", "torch"])
def test_neither_does_a_file_of_prompts(gptcli: Any, tmp_path: Path, engine_name: str) -> None:
    if engine_name == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    padded(tmp_path / "checkpoints" / "padded")
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    common = ("-t", 5, "-n", 40, "--ignore-eot", "--engine", engine_name, "--dtype", "float32", "--json")
    result = gptcli("generate", "--prompts", "prompts.txt", *common)
    assert result.code == 0, result.err
    records = [json.loads(line) for line in result.out.splitlines()]
    assert [len(record["ids"]) for record in records] == [40, 40, 40]
    assert max(max(record["ids"]) for record in records) < 257


@pytest.mark.parametrize("command", [("inspect-logits", "--layers"), ("inspect-flow",)])
def test_an_inspection_shows_an_id_without_text_as_its_number(
    gptcli: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    padded(tmp_path / "checkpoints" / "padded")
    result = gptcli(command[0], "hi", *command[1:])
    assert result.code == 0, result.err
    assert "#2" in result.out
