"""The compiled kernels of a training step against plain formulas in float64, and against torch."""

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.config.model import GPTConfig
from gptcli.kernels.cpu import openmp, train_kernels
from gptcli.kernels.cpu.numba_support import numba_reason
from gptcli.kernels.cpu.train_kernels import TrainKernels, open_kernels
from gptcli.model import dropout
from gptcli.model.dropout_mask import keep_mask, step_seeds, threshold
from gptcli.model.gpt import GPTModel

pytestmark = pytest.mark.skipif(numba_reason() is not None, reason="numba cannot be loaded")

SEEDS = step_seeds(0x123456789ABCDEF, 8, 3, 3, 1)[1, 1]  # of three windows


@pytest.fixture(scope="module")
def opened() -> TrainKernels:
    found = open_kernels()
    assert isinstance(found, TrainKernels)
    return found


@pytest.fixture
def kernels(opened: TrainKernels) -> Iterator[TrainKernels]:
    threads = torch.get_num_threads()
    yield opened
    torch.set_num_threads(threads)


def kept(groups: int, rows: int, columns: int, rate: float) -> Tensor:
    """(B, groups, rows, columns): 0, or the factor that keeps the mean."""
    dropped, factor = threshold(rate)
    return keep_mask(SEEDS, groups, rows, columns, dropped, False).double() * factor


@pytest.mark.parametrize("count", [1, 15, 16, 4096, 10_003])
def test_gelu_and_its_slope(kernels: TrainKernels, count: int) -> None:
    x = torch.linspace(-40, 40, count) if count > 1 else torch.tensor([0.3])
    y, slope = kernels.gelu(x, with_slope=True)
    exact = x.double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    expected.sum().backward()
    assert slope is not None
    torch.testing.assert_close(y.double(), expected.detach(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(slope.double(), exact.grad, atol=2e-6, rtol=1e-6)
    alone, nothing = kernels.gelu(x, with_slope=False)
    assert torch.equal(alone, y)
    assert nothing is None


@pytest.mark.parametrize(("length", "channels"), [(1, 1), (5, 15), (3, 16), (7, 37), (2, 5_000)])
def test_dropout_keeps_what_the_hash_says(kernels: TrainKernels, length: int, channels: int) -> None:
    x = torch.randn(3, length, channels)
    expected = x.double() * kept(1, length, channels, 0.25).squeeze(1)
    found = kernels.dropout(x, SEEDS, *threshold(0.25))
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(found, dropout.dropout(x, 0.25, True, SEEDS))


@pytest.mark.parametrize(
    ("batch", "length", "heads", "size"),
    [(2, 37, 3, 20), (1, 1, 2, 8), (3, 48, 1, 16), (1, 130, 2, 64), (2, 61, 5, 33)],
)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_and_its_gradient(
    kernels: TrainKernels, batch: int, length: int, heads: int, size: int, rate: float
) -> None:
    torch.manual_seed(0)
    qkv, upstream = torch.randn(batch, length, 3 * heads * size), torch.randn(batch, length, heads * size)
    scale = 1.7 / math.sqrt(size)
    exact = qkv.double().requires_grad_()
    q, k, v = dropout.split_heads(exact, heads)
    weights = (q @ k.transpose(-1, -2) * scale).masked_fill(~torch.ones(length, length).bool().tril(), -torch.inf)
    mask = kept(heads, length, length, rate)[:batch]
    expected = ((weights.softmax(-1) * mask) @ v).transpose(1, 2).flatten(2)
    expected.backward(upstream.double())
    how, results = (SEEDS[:batch], *threshold(rate), scale), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out, statistics = kernels.attention(qkv, heads, *how)
        results.append((out, kernels.attention_backward(qkv, out, statistics, upstream, *how)))
    torch.testing.assert_close(results[0][0].double(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0][1].double(), exact.grad, atol=3e-5, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_scores_far_apart_give_no_denormal_weights_and_no_nan(kernels: TrainKernels) -> None:
    qkv = 100 * torch.randn(1, 30, 3 * 16, generator=torch.Generator().manual_seed(1))
    out, statistics = kernels.attention(qkv, 1, SEEDS[:1], *threshold(0.1), 1.0)
    grad = kernels.attention_backward(qkv, out, statistics, torch.ones_like(out), SEEDS[:1], *threshold(0.1), 1.0)
    assert out.isfinite().all()
    assert grad.isfinite().all()


def test_tensors_may_lie_in_any_way(kernels: TrainKernels) -> None:
    torch.manual_seed(0)
    qkv, upstream = torch.randn(3 * 32, 9, 2).permute(2, 1, 0), torch.randn(32, 9, 2).permute(2, 1, 0)
    assert not qkv.is_contiguous()
    how, results = (SEEDS[:2], *threshold(0.1), 0.2), []
    for x, grad in ((qkv, upstream), (qkv.contiguous(), upstream.contiguous())):
        out, statistics = kernels.attention(x, 2, *how)
        results.append((out, kernels.attention_backward(x, out, statistics, grad, *how)))
        results[-1] += (kernels.gelu(x, with_slope=True)[1], kernels.dropout(x, *how[:3]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_openmp_threads_of_python_do_it(kernels: TrainKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.randn(2, 40, 3 * 32)
    torch.set_num_threads(2)
    expected = kernels.attention(qkv, 2, SEEDS[:2], *threshold(0.1), 0.2)
    monkeypatch.setattr(openmp, "_openmp", lambda: None)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for a, b in zip(kernels.attention(qkv, 2, SEEDS[:2], *threshold(0.1), 0.2), expected, strict=True):
            assert torch.equal(a, b)


def small(drop_rate: float = 0.0) -> tuple[GPTModel, Tensor, Tensor]:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=50, context_length=24, emb_dim=48, n_heads=3, n_layers=2, drop_rate=drop_rate)
    ids = torch.randint(0, 50, (2, 25))
    return GPTModel(config).train(), ids[:, :-1], ids[:, 1:]


def gradients(model: GPTModel, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    model.zero_grad()
    F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_a_model_has_the_same_gradients_with_them(kernels: TrainKernels) -> None:
    model, inputs, targets = small()
    model.use(kernels)
    mine = gradients(model, inputs, targets)
    model.use(None)
    for a, b in zip(mine, gradients(model, inputs, targets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_only_a_model_that_was_given_them_computes_with_them(kernels: TrainKernels, rate: float) -> None:
    calls: list[str] = []

    class Counting(TrainKernels):
        def __init__(self) -> None:
            self.__dict__.update(vars(kernels))

        def _run(self, name: str, *arguments: Tensor | int | float) -> None:
            calls.append(name)
            super()._run(name, *arguments)

    model, inputs, targets = small(rate)
    gradients(model, inputs, targets)
    assert calls == []
    model.use(Counting())
    gradients(model, inputs, targets)
    blocks, dropouts = len(model.h), 1 + 2 * len(model.h)
    dropped = {"dropout": 2 * dropouts, "attend": blocks, "attend_backward": blocks} if rate else {}
    assert Counter(calls) == {"gelu": blocks} | dropped
    other, *_ = small(rate)
    calls.clear()
    gradients(other, inputs, targets)
    assert calls == []


def test_dropout_is_drawn_from_torchs_generator_and_recomputed_alike(kernels: TrainKernels) -> None:
    model, inputs, targets = small(0.2)
    model.use(kernels)
    results = []
    for seed, recompute in ((5, False), (5, True), (6, False)):
        torch.manual_seed(seed)
        model.recompute = recompute
        results.append(gradients(model, inputs, targets))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


def test_gradients_of_gradients_are_refused(kernels: TrainKernels) -> None:
    x = torch.randn(20, requires_grad=True)
    (grad,) = torch.autograd.grad(dropout.gelu(x, kernels).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_other_tensors_are_left_to_torch(kernels: TrainKernels) -> None:
    assert not kernels.accept(torch.zeros(1, device="meta"))
    x = torch.randn(2, 5, 12, dtype=torch.bfloat16)
    assert torch.equal(dropout.gelu(x, kernels), F.gelu(x, approximate="tanh"))
    for function in (
        lambda kernels: dropout.dropout(x, 0.5, True, SEEDS[:2], kernels),
        lambda kernels: dropout.dropout_attention(x, 2, 0.5, 1.0, SEEDS[:2], kernels),
    ):
        assert torch.equal(function(kernels), function(None))


def test_without_numba_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "gptcli.kernels.cpu.compile_cache", raising=False)
    monkeypatch.delattr("gptcli.kernels.cpu.compile_cache", raising=False)
    assert "numba" in str(open_kernels())


def test_a_run_with_a_numba_that_cannot_be_imported_says_so_and_is_trained_by_torch(
    tmp_path: Path, story: Path
) -> None:
    (tmp_path / "broken" / "numba").mkdir(parents=True)
    (tmp_path / "broken/numba/__init__.py").write_text("raise ImportError('Numba needs an older NumPy')\n")
    search = os.pathsep.join([str(tmp_path / "broken"), str(Path(train_kernels.__file__).parents[3])])
    code = "from gptcli.kernels.cpu import train_kernels; from gptcli.cli import main; import sys; "
    code += "train_kernels.WORTHWHILE = 1; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", story, *RUN, "--max-steps", 2, "--out", tmp_path / "run"]
    environment = os.environ | {"PYTHONPATH": search}
    result = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Numba needs an older NumPy") == 1
    assert "Traceback" not in result.stderr
    assert (tmp_path / "run/model.safetensors").exists()


RUN = ("--tokenizer", "char", "--size", "tiny", "--context-length", 16, "--sample-every", 0, "--drop-rate", 0.1)


@pytest.fixture
def _any_run_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_kernels, "WORTHWHILE", 1)


@pytest.mark.usefixtures("_any_run_is_large_enough")
def test_a_large_enough_run_uses_them_and_says_so_where_it_cannot(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*RUN, "--max-steps", 2)
    used: list[TrainKernels | None] = []
    real = GPTModel.use

    def use(model: GPTModel, kernels: TrainKernels | None) -> None:
        used.append(kernels)
        real(model, kernels)

    monkeypatch.setattr(GPTModel, "use", use)
    assert gptcli("train", story, *options, "--out", "with").code == 0
    monkeypatch.setattr(train_kernels, "open_kernels", lambda report: "no such processor")
    result = gptcli("train", story, *options, "--out", "without")
    assert result.code == 0
    assert result.err.count("no such processor") == 1
    assert [type(kernels) for kernels in used] == [TrainKernels, type(None)]


@pytest.mark.usefixtures("_any_run_is_large_enough")
def test_a_run_that_goes_on_with_them_ends_on_the_same_bytes(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *RUN, "--max-steps", 6, "--save-every", 3, "--out", "run").code == 0
    expected = Path("run/model.safetensors").read_bytes()
    Path("run/training/step-00000006/state.json").unlink()  # as if it had never come so far
    result = gptcli("train", "--resume", "run")
    assert result.code == 0, result.err
    assert Path("run/model.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("device", "precision", "tokens", "width", "expected"),
    [
        ("cpu", "float32", 1024, 256, True),
        ("cpu", "float32", 1024, 255, False),  # too small a step
        ("cpu", "bfloat16", 1024, 256, False),
        ("meta", "float32", 1024, 256, False),
    ],
)
def test_which_steps_take_kernels(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, tokens: int, width: int, expected: bool
) -> None:
    opened = object()
    monkeypatch.setattr(train_kernels, "open_kernels", lambda report: opened)
    found = train_kernels.for_step(torch.device(device), precision, tokens, width)
    assert found is (opened if expected else None)
