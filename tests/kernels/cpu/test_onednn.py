"""Linear layers by oneDNN: the gradients of addmm, the losses of a run, its resuming, and where it is chosen."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from runs import TINY

from gptcli.config.recipe import RecipeConfig
from gptcli.kernels.cpu import onednn, train_kernels
from gptcli.kernels.cpu.numba_support import numba_reason
from gptcli.training.step import Stepper

needs_onednn = pytest.mark.skipif(not onednn.is_there(), reason="this torch has no such operation")
needs_numba = pytest.mark.skipif(numba_reason() is not None, reason="numba cannot be loaded")


def described(vendor: str, family: int, flags: str = "fpu avx2 avx512f") -> str:
    return f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\nflags\t\t: {flags}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (described("AuthenticAMD", 26), True),
        (described("AuthenticAMD", 27), True),
        (described("AuthenticAMD", 25), False),
        (described("AuthenticAMD", 26, "fpu avx2"), False),
        (described("GenuineIntel", 26), False),
        ("processor\t: 0\nCPU implementer\t: 0x41\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_the_processor_chooses(text: str, expected: bool) -> None:
    assert onednn.suits(text) is expected


def test_the_choice_reads_the_machine_and_the_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr("gptcli.device.machine.CPU_INFO", info)
    choose = onednn.chosen_linear.__wrapped__
    assert choose() is None  # another system than Linux
    info.write_text(described("AuthenticAMD", 26), encoding="utf-8")
    assert choose() is (onednn.linear if onednn.is_there() else None)
    info.write_text(described("GenuineIntel", 6), encoding="utf-8")
    assert choose() is None


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_a_torch_without_the_operation_multiplies_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def absent(*arguments: Any) -> torch.Tensor:
        raise error("no such operation")

    info = tmp_path / "cpuinfo"
    info.write_text(described("AuthenticAMD", 26), encoding="utf-8")
    monkeypatch.setattr("gptcli.device.machine.CPU_INFO", info)
    monkeypatch.setattr(onednn, "_product", absent)
    assert not onednn.is_there()
    assert onednn.chosen_linear.__wrapped__() is None


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (37, 48, 144), (256, 96, 31)])
def test_gradients_are_those_of_addmm(rows: int, inputs: int, outputs: int, with_bias: bool) -> None:
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=random) for s in ((rows, inputs), (inputs, outputs), (outputs,)))
    grad = torch.randn(rows, outputs, generator=random)
    leaves = [x, weight, bias] if with_bias else [x, weight]
    found = []
    for multiply in (onednn.linear, lambda x, w, b=None: x @ w if b is None else torch.addmm(b, x, w)):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        y = multiply(*own, *([] if with_bias else [None]))
        y.backward(grad)
        found.append([y.detach(), *(leaf.grad for leaf in own)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * max(1, rows) ** 0.5)


@needs_onednn
def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    x, weight, bias = torch.randn(5, 4), torch.randn(4, 3, requires_grad=True), torch.randn(3)
    onednn.linear(x, weight, bias).sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    assert bias.grad is None


@needs_onednn
@needs_numba
def test_ten_steps_have_the_losses_of_torchs_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", exc_type=ImportError)  # the training kernels choose the product
    runs = []
    for linear in (None, onednn.linear):
        monkeypatch.setattr(onednn, "chosen_linear", lambda linear=linear: linear)
        model, kernels = tiny_model(drop_rate=0.2, spread=0.02).train(), train_kernels.open_kernels()
        assert not isinstance(kernels, str)
        assert kernels.linear is linear
        model.use(kernels)
        stepper = Stepper(model, RecipeConfig(batch_size=6, dtype="float32"))
        ids = torch.randint(61, (6, 21), generator=torch.Generator().manual_seed(1))
        runs.append([stepper.step(ids[:, :-1], ids[:, 1:], 1e-3, number).loss for number in range(10)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[1][-1] < runs[1][0]


@needs_onednn
@needs_numba
def test_a_resumed_run_is_the_same_to_the_byte(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", exc_type=ImportError)  # the training kernels choose the product
    used: list[int] = []

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        used.append(len(x))
        return onednn.linear(x, weight, bias)

    monkeypatch.setattr(train_kernels, "WORTHWHILE", 1)
    monkeypatch.setattr(onednn, "chosen_linear", lambda: counted)
    options = (*TINY, "--max-steps", 4, "--save-every", 2, "--eval-every", 3, "--sample-every", 0, "--threads", 1)
    assert gptcli("train", story, *options, "--out", "run").code == 0
    expected = Path("run/model.safetensors").read_bytes()
    shutil.rmtree("run/training/step-00000004")
    calls = len(used)
    assert gptcli("train", "--resume", "run").code == 0
    assert Path("run/model.safetensors").read_bytes() == expected
    assert 0 < len(used) - calls < calls
