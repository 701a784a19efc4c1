"""Training on a CUDA GPU, held against float64 formulas, a CPU and the plain loop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from torch.nn import functional as F

from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import split
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import chunked_cross_entropy
from gptcli.training import step as stepping
from gptcli.training.step import Stepper

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
SHAPE = GPTConfig(vocab_size=61, context_length=64, emb_dim=64, n_heads=2, n_layers=3, drop_rate=0.0, qkv_bias=False)


@pytest.mark.parametrize("vocab", [61, 5000, 50257])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_loss_and_its_gradients(vocab: int, dtype: torch.dtype, near: float, monkeypatch: Any) -> None:
    monkeypatch.setattr("gptcli.model.loss.GPU_CHUNK_BYTES", 2**22)  # several chunks
    torch.manual_seed(0)
    hidden = torch.randn(300, 96, device=GPU, dtype=dtype, requires_grad=True)
    head = (torch.randn(vocab, 96, device=GPU) * 0.3).requires_grad_()
    targets = torch.randint(vocab, (300,), device=GPU)
    exact = [t.detach().to(dtype).double().requires_grad_() for t in (hidden, head)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets)
    expected.backward()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = chunked_cross_entropy(hidden, head, targets)
        loss.backward()
        with torch.no_grad():
            alone = chunked_cross_entropy(hidden, head, targets)
    assert float(loss) == pytest.approx(float(expected), rel=near / 4)
    assert float(alone) == pytest.approx(float(expected), rel=near / 4)
    for mine, theirs in zip((hidden.grad, head.grad), (exact[0].grad, exact[1].grad), strict=True):
        assert mine is not None
        assert theirs is not None
        assert (mine.double() - theirs).norm() <= near * theirs.norm()


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    ids = torch.randint(0, 61, (count, 8, 65), generator=torch.Generator().manual_seed(5))
    return [(part[:, :-1], part[:, 1:]) for part in ids]


def losses(device: str, steps: int = 20, graph: bool = False, **settings: Any) -> list[tuple[float, float]]:
    torch.manual_seed(0)
    model = GPTModel(SHAPE).to(device).train()
    stepper = Stepper(model, *split({"batch_size": 8, "dtype": "float32"} | settings))
    found = [stepper.step(*batch, 1e-3 * min(1, (n + 1) / 5)) for n, batch in enumerate(batches(steps))]
    assert not stepper.notes
    assert (stepper._graph is not None) == graph
    return [(outcome.loss, outcome.grad_norm) for outcome in found]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_float32_gives_a_cpus_losses(compiled: bool, graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not graph:
        monkeypatch.setattr(stepping, "HOST_BOUND", 0.0)
    found, expected = losses("cuda", graph=graph, compile=compiled), losses("cpu")
    for (loss, norm), (cpu_loss, cpu_norm) in zip(found, expected, strict=True):
        assert loss == pytest.approx(cpu_loss, rel=1e-5)
        assert norm == pytest.approx(cpu_norm, rel=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_gives_the_plain_loops_losses_to_its_accuracy(compiled: bool) -> None:
    torch.manual_seed(0)
    model = GPTModel(SHAPE).to(GPU).train()
    groups = [
        {"params": [p for p in model.parameters() if (p.dim() >= 2) == matrices], "weight_decay": decay}
        for matrices, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    found = losses("cuda", graph=True, dtype="bfloat16", compile=compiled)
    for number, (inputs, targets) in enumerate(batches(20)):
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(inputs.to(GPU))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(GPU).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (number + 1) / 5)
        optimizer.step()
        optimizer.zero_grad()
        assert found[number][0] == pytest.approx(loss.item(), rel=4e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "muon", "adam"])
def test_every_optimizer_learns(optimizer: str) -> None:
    batch, *_ = batches(1)
    torch.manual_seed(0)
    stepper = Stepper(GPTModel(SHAPE).to(GPU).train(), RecipeConfig(batch_size=8, optimizer=optimizer, dtype="float32"))  # type: ignore[arg-type]
    found = [stepper.step(*batch, 1e-2).loss for _ in range(12)]
    assert found[-1] < found[0] - 0.02


@pytest.mark.parametrize("graph", [False, True])
def test_a_gradient_that_is_not_finite_changes_no_weight(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not graph:
        monkeypatch.setattr(stepping, "HOST_BOUND", 0.0)
    torch.manual_seed(0)
    model = GPTModel(SHAPE).to(GPU).train()
    stepper = Stepper(model, RecipeConfig(batch_size=8, dtype="bfloat16"))
    for batch in batches(5):
        assert stepper.step(*batch, 1e-3).updated
    kept = model.wpe.weight[3, 3].clone()
    with torch.no_grad():
        model.wpe.weight[3, 3] = torch.inf
    before = [p.detach().clone() for p in model.parameters()]
    assert not stepper.step(*batches(1)[0], 1e-3).updated
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        model.wpe.weight[3, 3] = kept
    assert stepper.step(*batches(1)[0], 1e-3).updated


@pytest.mark.parametrize("graph", [False, True])
def test_the_average_is_of_the_weights_after_every_step(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not graph:
        monkeypatch.setattr(stepping, "HOST_BOUND", 0.0)
    torch.manual_seed(0)
    model = GPTModel(SHAPE).to(GPU).train()
    stepper = Stepper(model, RecipeConfig(batch_size=8, average_share=0.5))
    mean = model.wte.weight.detach().double()
    for number, batch in enumerate(batches(8)):
        stepper.launch(*batch, 1e-2, number)
        mean = mean.lerp(model.wte.weight.detach().double(), 1 / (0.5 * number + 1))
        with stepper.average.in_model():
            torch.testing.assert_close(model.wte.weight.double(), mean, rtol=1e-5, atol=1e-6)
    assert (stepper._graph is not None) == graph


def test_dropout_in_a_graph_differs_from_step_to_step_and_comes_back_with_the_random_state() -> None:
    torch.manual_seed(0)
    model = GPTModel(SHAPE.with_changes(drop_rate=0.3)).to(GPU).train()
    stepper = Stepper(model, RecipeConfig(batch_size=8, dtype="float32"))
    batch, *_ = batches(1)
    for _ in range(5):
        stepper.step(*batch, 0.0)
    assert stepper._graph is not None
    state = torch.cuda.get_rng_state(GPU)
    drawn = [stepper.step(*batch, 0.0).loss for _ in range(3)]
    assert len(set(drawn)) == 3
    torch.cuda.set_rng_state(state, GPU)
    assert [stepper.step(*batch, 0.0).loss for _ in range(3)] == drawn


def test_recomputation_and_parts_of_a_step() -> None:
    plain = losses("cuda", graph=True)
    for settings, graph in (({"recompute": True}, False), ({"accumulate": 3}, True)):
        for one, other in zip(losses("cuda", graph=graph, **settings), plain, strict=True):
            assert one[0] == pytest.approx(other[0], rel=1e-5)


@pytest.mark.parametrize("extra", [(), ("--compile",)])
def test_a_run_that_stopped_goes_on_as_if_it_had_not(gptcli: Any, tmp_path: Path, extra: tuple[str, ...]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 60, encoding="utf-8")
    options = (
        text, "--tokenizer", "char", "--size", "tiny", "--context-length", 32, "--emb-dim", 32, "--n-heads", 2,
        "--n-layers", 2, "--batch-size", 8, "--eval-every", 5, "--sample-every", 0, "--device", "cuda", *extra,
    )  # fmt: skip
    assert gptcli("train", *options, "--max-steps", 40, "--out", tmp_path / "whole").code == 0
    assert gptcli("train", *options, "--max-steps", 20, "--out", tmp_path / "parted").code == 0
    assert gptcli("train", "--resume", tmp_path / "parted", "--max-steps", 40, "--device", "cuda").code == 0
    rows = []
    for name in ("whole", "parted"):
        lines = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append({row["step"]: row for row in map(json.loads, lines)})
    for step in (20, 25, 30, 35, 39):
        for key in ("train_loss", "val_loss"):
            assert rows[1][step][key] == pytest.approx(rows[0][step][key], rel=1e-3)


def test_memory_that_is_used_up_is_told_as_such(gptcli: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a bright cold day in April. " * 4000, encoding="utf-8")
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        result = gptcli(
            "train", text, "--size", "small", "--batch-size", 64, "--context-length", 1024, "--stride", 32,
            "--max-steps", 2, "--sample-every", 0, "--device", "cuda", "--compile", "--out", tmp_path / "run", "-q",
        )  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    result.assert_user_error("no room left", "--batch-size auto")


def test_the_model_agrees_with_a_cpu() -> None:
    model, ids = tiny_model(), torch.randint(61, (2, 20))
    with torch.no_grad():
        expected = model(ids)
        torch.testing.assert_close(model.to(GPU)(ids.to(GPU)).cpu(), expected, rtol=1e-4, atol=1e-4)
