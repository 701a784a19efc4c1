"""A GPU's training step as far as a CPU can take it: updates on the device, blocks compiled as one, late outcomes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model

from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import split
from gptcli.data import dataset
from gptcli.training import block_compiler, events, step, trainer
from gptcli.training.step import Stepper

CPU = torch.device("cpu")


def batches(count: int, rows: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 61, (count, rows, 21), generator=generator)
    return [(part[:, :-1], part[:, 1:]) for part in ids]


def stepper(late: bool, **settings: Any) -> Stepper:
    # Without qkv bias: the gradient of a key's bias is 0, and Adam makes steps of whatever rounding leaves of it.
    model = tiny_model(drop_rate=0.0, qkv_bias=False).train()
    made = Stepper(model, *split({"batch_size": 6, "dtype": "float32"} | settings))
    made.is_late = late
    return made


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize("grad_clip", [0.5, 0.0])
def test_a_step_that_the_device_decides_is_the_one_that_the_host_decides(optimizer: Any, grad_clip: float) -> None:
    host, device = (stepper(late, optimizer=optimizer, grad_clip=grad_clip) for late in (False, True))
    for batch in batches(4):
        one, other = host.step(*batch, 1e-2), device.step(*batch, 1e-2)
        assert other.updated
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    for one, other in zip(host.model.parameters(), device.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_the_device_leaves_out_a_gradient_that_is_not_finite_and_goes_on(optimizer: Any) -> None:
    made, other = (stepper(late=True, optimizer=optimizer) for _ in range(2))
    first, second, third = batches(3)
    hook = made.model.wpe.weight.register_hook(lambda grad: grad / 0)
    before = [p.detach().clone() for p in made.model.parameters()]
    assert not made.step(*first, 1e-2).updated
    assert all(torch.equal(one, two) for one, two in zip(before, made.model.parameters(), strict=True))
    hook.remove()
    for batch in (second, third):  # as if the first step had never been
        assert made.step(*batch, 1e-2) == other.step(*batch, 1e-2)


class Counting:
    """A stand-in for torch's compiler that counts how often it is asked to compile."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.count, self.fails = 0, fails

    def __call__(self, graph: Any, _: Any) -> Any:
        self.count += 1
        if self.fails is not None:
            raise self.fails
        return graph.forward


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Counting:
    backend, real = Counting(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function, **settings: real(function, backend=backend, **settings))
    return backend


def test_one_compilation_serves_all_blocks_and_only_training(compiler: Counting) -> None:
    made, plain = stepper(False, compile=True), stepper(False)
    assert compiler.count == 0
    for batch in batches(2):
        assert made.step(*batch, 1e-2).loss == pytest.approx(plain.step(*batch, 1e-2).loss, rel=1e-6)
    assert compiler.count == 1  # of two blocks
    (inputs, targets), *_ = batches(1, rows=3)
    made.step(inputs, targets, 1e-2)  # another shape
    made.model.eval()
    made.forward(inputs, targets)
    assert compiler.count == 1
    assert not made.notes


def test_a_compilation_that_fails_is_told_in_a_line_and_left_out(compiler: Counting) -> None:
    compiler.fails = RuntimeError("no C compiler\nat all")
    made, plain = stepper(False, compile=True), stepper(False)
    for batch in batches(2):
        assert made.step(*batch, 1e-2).loss == pytest.approx(plain.step(*batch, 1e-2).loss, rel=1e-6)
    (note,) = made.notes
    assert note.startswith("The blocks could not be compiled, training continues without it:")
    assert "no C compiler" in note
    assert "\n" not in note


def test_memory_that_is_used_up_is_no_failed_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stepper(False, compile=True)

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    made.model.run_block = out_of_memory  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError):
        made.step(*batches(1)[0], 1e-2)
    assert not made.notes


def test_when_blocks_are_compiled_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, reason = torch.device("cuda"), [None]
    monkeypatch.setattr(block_compiler, "triton_reason", lambda device: reason[0])
    long, short = 2 * block_compiler.WORTHWHILE, block_compiler.WORTHWHILE / 2
    assert block_compiler.choose(None, CPU, long) == (False, None)
    assert block_compiler.choose(None, gpu, long)[0]
    assert not block_compiler.choose(False, gpu, long)[0]
    assert block_compiler.choose(True, CPU, short)[0]
    for flops, processes, why in ((short, 1, "too short"), (long, 2, "several processes")):
        chosen, line = block_compiler.choose(None, gpu, flops, processes)
        assert not chosen
        assert why in (line or "")
    reason[0] = "Triton is not installed"  # type: ignore[call-overload]
    assert block_compiler.choose(None, gpu, long) == (
        False,
        "The blocks are not compiled: Triton is not installed; the setting compile asks for it.",
    )


def test_late_outcomes_are_the_same_events_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.arange(400) % 61
    text = dataset.Corpus(tokens[:360].int(), tokens[360:].int(), 400, 400)
    recipe = RecipeConfig(
        context_length=20, batch_size=4, epochs=3, eval_every=3, learning_rate=1e-2, dtype="float32"
    )  # fmt: skip
    told, init = [], Stepper.__init__
    for late in (False, True):

        def make(self: Stepper, *arguments: Any, late: bool = late, **settings: Any) -> None:
            init(self, *arguments, **settings)
            self.is_late = late

        monkeypatch.setattr(step.Stepper, "__init__", make)
        found = []
        for event in trainer.train(tiny_model(drop_rate=0.0).train(), text, recipe):
            if isinstance(event, events.Stepped):
                found.append(("step", event.step, event.epoch, round(event.loss, 4), event.learning_rate))
            elif isinstance(event, events.Evaluated):
                found.append(("evaluation", event.step, event.epoch, round(event.train_loss, 4), event.skipped))
            else:
                found.append((type(event).__name__,))
        told.append(found)
    assert told[0] == told[1]
    assert len(told[0]) > 12


def test_no_graph_is_captured_on_a_cpu_or_for_a_large_step() -> None:
    made = stepper(late=True)
    for batch in batches(6):
        made.step(*batch, 1e-2)
    assert made._graph is None
    assert not made.notes


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_of_the_loss_in_tritons_interpreter() -> None:
    """Against float64: padded columns, a target in each part of the row, logits far apart, NaN, bfloat16."""
    code = """
import torch
from gptcli.kernels.gpu import cross_entropy
cross_entropy.BLOCK = 1024
torch.manual_seed(0)
for vocab, width, dtype in ((50, 128, torch.float32), (3000, 3072, torch.float32), (3000, 3072, torch.bfloat16)):
    logits = (torch.randn(4, width) * 3).to(dtype)
    logits[0, vocab - 1] = 200.0  # more than 88 above the first block
    targets = torch.tensor([vocab - 1, 0, vocab // 2, 7])
    exact = logits[:, :vocab].double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    expected.sum().backward()
    for gradient in (False, True):
        losses, given = torch.empty(4), logits.clone()
        cross_entropy.cross_entropy_(given, targets, losses, vocab, gradient=gradient)
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        if gradient:
            near = 1e-5 if dtype == torch.float32 else 4e-3
            torch.testing.assert_close(given[:, :vocab].double(), exact.grad, rtol=near, atol=near)
            assert not given[:, vocab:].any()
        else:
            assert torch.equal(given, logits)
losses, given = torch.empty(1), torch.full((1, 128), float("nan"))
cross_entropy.cross_entropy_(given, torch.tensor([3]), losses, 128, gradient=True)
assert losses.isnan().all()
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_of_the_loss_compiles_for_gpus_that_are_not_here(capability: int, tmp_path: Path) -> None:
    """Triton's interpreter does not check types as its compiler does, and the compiler needs no GPU."""
    code = f"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gptcli.kernels.gpu.cross_entropy import BLOCK, WARPS, _cross_entropy_kernel
for dtype in ("bf16", "fp16", "fp32"):
    signature = {{"logits": "*" + dtype, "targets": "*i64", "losses": "*fp32"}}
    constants = {{"VOCAB": 50257, "WIDTH": 50304, "BLOCK": BLOCK, "GRADIENT": True}}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {{(argument,): [["tt.divisibility", 16]] for argument in range(3)}}
    source = ASTSource(_cross_entropy_kernel, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options={{"num_warps": WARPS}})
    assert "ld.global.v4.b32" in made.asm["ptx"], "16 bytes at once"
"""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
