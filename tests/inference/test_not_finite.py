"""Logits that are NaN or infinite: generate refuses them as evaluate does, whatever draws and whenever they come."""

from collections import abc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding import Table, ids_of
from models import tiny_checkpoint
from runs import TINY

from gptcli.checkpoints import checkpoint
from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError
from gptcli.inference import speculative
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Scorer
from gptcli.inference.sampling import contrast_layers, distribution, draw, greedy, likeliest
from gptcli.inference.sequence import Request, Sequence, draw_rows
from gptcli.inference.stages import History

SAMPLINGS = [
    SamplingConfig(temperature=0),
    SamplingConfig(),
    SamplingConfig(temperature=0.7, top_k=3),
    SamplingConfig(top_p=0.5),
    SamplingConfig(min_p=0.1),
    SamplingConfig(temperature=0, repetition_penalty=1.2),
    SamplingConfig(repetition_penalty=1.2, top_k=2, top_p=0.9, min_p=0.01),
]
NAN, INF = float("nan"), float("inf")
BROKEN = [[NAN] * 4, [1.0, NAN, 2.0, 3.0], [1.0, INF, 2.0, 3.0], [INF] * 4, [-INF] * 4, [NAN, INF, -INF, 0.0]]
OPTIONS = ("--dtype", "float32", "-n", 5, "--seed", 1)  # a byte that begins a character is held back


@pytest.fixture(autouse=True)
def _no_warnings(recwarn: pytest.WarningsRecorder) -> Any:
    yield
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("row", BROKEN, ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_row_that_is_not_finite_is_refused(library: str, sampling: SamplingConfig, row: abc.Sequence[float]) -> None:
    def logits() -> Any:
        array = np.array([[0.0, 1.0, -INF, 3.0], row], np.float32)
        return array if library == "numpy" else torch.from_numpy(array)

    seen = np.array([[0, 1], [0, 1]])
    seen = seen if library == "numpy" else torch.from_numpy(seen)
    if sampling.temperature == 0:
        ids = greedy(logits(), sampling, History(seen))
        assert likeliest(logits()[:1])[0] == 3
        assert likeliest(logits()[1:])[0] == -1
    else:
        ids = draw(distribution(logits(), sampling, History(seen)), [5, 6])
    assert int(ids[0]) in (0, 1, 3)
    assert int(ids[1]) == -1
    texts = [Sequence(Request([0], 5, sampling, seed), 16) for seed in (1, 2)]
    fine, broken = draw_rows(texts, logits())
    assert fine is not None
    assert (texts[0].error, texts[0].done) == (None, False)
    assert (broken, texts[1].done) == (None, True)
    assert "NaN or infinite logits" in str(texts[1].error)


@pytest.mark.parametrize("row", BROKEN, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_contrast_with_a_row_that_is_not_finite_is_refused(library: str, row: abc.Sequence[float]) -> None:
    fine, broken = (np.array([values], np.float32) for values in ([0.0, 1.0, -INF, 3.0], row))
    for final, early in ((broken, fine), (fine, broken)):
        scores = (final, early) if library == "numpy" else (torch.from_numpy(final), torch.from_numpy(early))
        assert greedy(contrast_layers(*scores), SamplingConfig(temperature=0)).tolist() == [-1]


def by_position(rows: abc.Sequence[abc.Sequence[float]]) -> Scorer:
    """A model of 4 tokens whose logits after the n-th token are ``rows[n]``."""
    return Scorer(Table(rows, context_length=64, by_position=True))


FINE = [[0.0, 1.0, 2.0, 0.5]]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_later_token_is_refused_too_and_those_before_are_given(at: int, sampling: SamplingConfig) -> None:
    broken = FINE * at + [BROKEN[0]] + FINE * 30
    drafts: list[Any] = [None, speculative.NgramDrafter()]
    drafts += [speculative.ModelDrafter(by_position(rows)) for rows in (FINE * 40, broken, BROKEN[:1] * 40)]
    for drafter in drafts:
        tokens: list[Any] = []
        drawn = generate(Scheduler(by_position(broken), drafter), Request([1], 20, sampling, seed=3))
        with pytest.raises(GptcliError, match="NaN or infinite logits"):
            tokens.extend(drawn)
        assert len(tokens) == at


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("at", [0, 3])
def test_a_draft_that_is_not_finite_changes_no_text(at: int, sampling: SamplingConfig) -> None:
    request = Request([1], 20, sampling, seed=3)
    draft = speculative.ModelDrafter(by_position(FINE * at + BROKEN[:1] * 40))
    assert ids_of(by_position(FINE * 40), request, draft) == ids_of(by_position(FINE * 40), request)


@pytest.fixture
def diverged(tmp_path: Path) -> Path:
    """A checkpoint with finite weights and no finite logit."""
    path = tiny_checkpoint(tmp_path / "checkpoints" / "diverged", context_length=32)
    tiny_checkpoint(tmp_path / "checkpoints" / "fine", context_length=32, seed=1)
    model = checkpoint.load(path).model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e25)
    checkpoint.create(path, model, checkpoint.load(path).tokenizer, {}, force=True)
    return path


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize(
    "options",
    [
        *[(), ("-t", 0), ("--top-p", 0.9), ("--draft", "int8"), ("--draft", "ngram", "-t", 0), ("--draft", "fine")],
        *[("--quantize", "int8"), ("--quantize", "int4"), ("--contrast-layer", 1), ("--steps",), ("--json",)],
        *[("--no-stream",), ("--num-samples", 2)],
    ],
    ids=str,
)
def test_generate_refuses_a_model_that_has_diverged(
    gptcli: Any, diverged: Path, engine: str, options: tuple[Any, ...]
) -> None:
    if engine == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    result = gptcli("generate", "hi", "-q", "-c", diverged, "--engine", engine, *OPTIONS, *options)
    result.assert_user_error("NaN or infinite logits", "--dtype float32")


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_a_file_of_prompts_is_refused_too(gptcli: Any, diverged: Path, tmp_path: Path, engine: str) -> None:
    if engine == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n", encoding="utf-8")
    result = gptcli("generate", "--prompts", "prompts.txt", "-c", diverged, "--engine", engine, *OPTIONS)
    result.assert_user_error("NaN or infinite logits")
    (tmp_path / "text.txt").write_text("one two", encoding="utf-8")
    evaluated = gptcli("evaluate", "text.txt", "-c", diverged)
    evaluated.assert_user_error("NaN or infinite logits")
    assert evaluated.err == result.err


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_a_text_that_has_begun_ends_its_line_before_the_error(gptcli: Any, tmp_path: Path, engine: str) -> None:
    if engine == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    path = tiny_checkpoint(tmp_path / "checkpoints" / "late", context_length=32)
    model = checkpoint.load(path).model()
    with torch.no_grad():
        model.wpe.weight[5:] = 3e38
        model.wpe.weight[5:, 0] = -3e38  # further from their mean than float32 reaches
    checkpoint.create(path, model, checkpoint.load(path).tokenizer, {}, force=True)
    result = gptcli("generate", "abc", "--engine", engine, "-q", "--ignore-eot", *OPTIONS)
    assert result.out.startswith("abc")
    assert result.out.endswith("\n")
    assert len(result.out) > len("abc\n")
    assert result.code == 2
    assert "NaN or infinite logits" in result.err


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_where_only_the_held_back_end_of_text_is_left_no_nan_is_blamed(
    gptcli: Any, tmp_path: Path, engine: str, temperature: float
) -> None:
    if engine == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    path = tiny_checkpoint(tmp_path / "checkpoints" / "ending", context_length=32, tie_weights=False)
    model = checkpoint.load(path).model()
    with torch.no_grad():
        model.ln_f.bias[0] = 5.0
        model.lm_head.weight[256, 0] = 6.0
    checkpoint.create(path, model, checkpoint.load(path).tokenizer, {}, force=True)
    options = ("-q", "-t", temperature, "--engine", engine, "--min-new-tokens", 3, *OPTIONS)
    assert gptcli("generate", "hi", *options).code == 0
    gptcli("generate", "hi", "--contrast-layer", 1, *options).assert_user_error("--min-new-tokens", "--contrast-layer")


def test_a_training_run_goes_on_where_its_sample_cannot_be_drawn(gptcli: Any, story: Path) -> None:
    wild = (
        "--epochs",
        1,
        "--batch-size",
        256,
        "--learning-rate",
        1e30,
        "--optimizer",
        "sgd",
        "--grad-clip",
        0,
        "--dtype",
        "float32",
    )
    result = gptcli("train", story, *TINY, *wild, "--eval-every", 100, "--out", "run")
    assert "No sample: The model gives NaN or infinite logits for this text." in result.err
    assert result.code == 0, result.err
