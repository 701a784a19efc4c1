"""The one training step in all its forms, held against the plain one."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_model
from runs import TINY
from torch.nn import functional as F

from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import split
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import IGNORED
from gptcli.training import step as stepping
from gptcli.training import trainer
from gptcli.training.losses import MeanLoss
from gptcli.training.optimizers import (
    Muon,
    learning_rate,
    make_optimizers,
    orthogonalised,
    plain,
    set_rates,
    total_norm,
)
from gptcli.training.step import Stepper


def batches(count: int, rows: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 61, (count, rows, 21), generator=generator)
    return [(part[:, :-1], part[:, 1:]) for part in ids]


def trained(steps: int = 3, model: GPTModel | None = None, **settings: Any) -> tuple[GPTModel, list[stepping.Outcome]]:
    model = (model or tiny_model(drop_rate=0.0)).train()
    stepper = Stepper(model, *split({"batch_size": 6} | settings))
    torch.manual_seed(3)
    return model, [stepper.step(*batch, 1e-2) for batch in batches(steps)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad_clip", [0.5, 0.0])
def test_a_step_is_what_the_plain_loop_does(grad_clip: float, dtype: torch.dtype) -> None:
    """The book's loop: logits of the whole batch, cross_entropy, backward, clip, AdamW."""
    # Without qkv bias: the gradient of a key's bias is 0, and Adam makes steps of whatever rounding leaves of it.
    model, outcomes = trained(model=tiny_model(drop_rate=0.0, qkv_bias=False).to(dtype), grad_clip=grad_clip)
    plain = tiny_model(drop_rate=0.0, qkv_bias=False).to(dtype).train()
    groups = [
        {"params": [p for p in plain.parameters() if (p.dim() >= 2) == matrices], "weight_decay": decay}
        for matrices, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for (inputs, targets), outcome in zip(batches(3), outcomes, strict=True):
        loss = F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        assert outcome.updated
        assert outcome.loss == pytest.approx(loss.item(), rel=1e-5)
        assert outcome.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    # Adam makes a whole step of a gradient near its epsilon, and in float32 its direction differs from CPU to CPU. So
    # float32 is held by the losses after two updates, and in float64 each tensor by the way that it went.
    if dtype == torch.float64:
        start = tiny_model(drop_rate=0.0, qkv_bias=False).to(dtype)
        for mine, theirs, before in zip(model.parameters(), plain.parameters(), start.parameters(), strict=True):
            assert (mine - theirs).norm() <= 5e-4 * (theirs - before).norm()  # without weight decay: four times


@pytest.mark.parametrize("parts", [2, 4, 6])  # 4 parts of 6 windows are uneven
def test_accumulation_changes_nothing_but_rounding(parts: int) -> None:
    whole, split = trained()[1], trained(accumulate=parts)[1]
    for one, other in zip(whole, split, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_recomputation_changes_no_bit_with_dropout_too() -> None:
    models = [trained(model=tiny_model(drop_rate=0.2), recompute=flag)[0] for flag in (False, True)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_recomputation_keeps_fewer_tensors() -> None:
    kept = []
    for flag in (False, True):
        model, sizes = tiny_model(drop_rate=0.0, n_layers=4).train(), []
        model.recompute = flag
        (inputs, _), *_ = batches(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model.hidden(inputs)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_comes_close(dtype: str) -> None:
    for drop_rate in (0.0, 0.1):
        exact, rough = (
            trained(model=tiny_model(spread=0.02, drop_rate=drop_rate), dtype=name)[1] for name in ("float32", dtype)
        )
        for one, other in zip(exact, rough, strict=True):
            if other.updated or not other.excused:
                assert other.loss == pytest.approx(one.loss, rel=2e-2)
                assert other.grad_norm == pytest.approx(one.grad_norm, rel=0.1)


def test_float16_gradients_that_overflow_lower_the_scale_and_are_excused() -> None:
    stepper = Stepper(tiny_model(spread=0.02).train(), RecipeConfig(batch_size=6, dtype="float16"))
    stepper.scaler.load_state_dict(stepper.scaler.state_dict() | {"scale": 2.0**40})
    before = [p.detach().clone() for p in stepper.model.parameters()]
    outcome = stepper.step(*batches(1)[0], 1e-2)
    assert not outcome.updated
    assert outcome.excused
    assert stepper.scaler.get_scale() < 2.0**40
    assert all(torch.equal(one, other) for one, other in zip(before, stepper.model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    model = tiny_model().train()
    before = [p.detach().clone() for p in model.parameters()]
    model.wpe.weight.register_hook(lambda grad: grad / 0)
    _, (outcome,) = trained(1, model)
    assert not outcome.updated
    assert not outcome.excused
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("adamw", ["AdamW"]),
        ("adam", ["Adam"]),
        ("sgd", ["SGD"]),
        ("adafactor", ["Adafactor"]),
        ("muon", ["Muon", "AdamW"]),
    ],
)
def test_every_optimizer_is_torchs_own_has_every_parameter_once_and_learns(name: str, kinds: list[str]) -> None:
    model = tiny_model(drop_rate=0.0, tie_weights=False)
    optimizers = make_optimizers(model, RecipeConfig(optimizer=name, weight_decay=0.3))  # type: ignore[arg-type]
    assert [type(optimizer).__name__ for optimizer in optimizers] == kinds
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        assert group["weight_decay"] == (0.3 if all(p.dim() >= 2 for p in group["params"]) else 0.0)
    if name == "muon":
        inside = {id(p) for block in model.h for p in block.parameters() if p.dim() == 2}
        assert {id(p) for p in optimizers[0].param_groups[0]["params"]} == inside
    stepper = Stepper(tiny_model(drop_rate=0.0).train(), RecipeConfig(batch_size=6, optimizer=name))  # type: ignore[arg-type]
    (batch,) = batches(1)
    losses = [stepper.step(*batch, 1e-2).loss for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adafactor, Muon])
def test_an_optimizer_laid_bare_takes_the_same_steps_and_goes_on_the_same(kind: Any) -> None:
    def weights_after(steps: int, make: Any, state: Any = None) -> tuple[torch.Tensor, Any]:
        parameter = torch.nn.Parameter(state[0].clone() if state else torch.ones(8, 8).tril())
        options = {"momentum": 0.9} if kind in (torch.optim.SGD, Muon) else {}
        optimizer = make([parameter], lr=0.02, weight_decay=0.1, **options)
        if state:
            optimizer.load_state_dict(state[1])
        for _ in range(steps):
            optimizer.zero_grad()
            (parameter.sin().sum() + (parameter @ parameter).square().mean()).backward()
            optimizer.step()
        return parameter.detach(), optimizer.state_dict()

    whole, _ = weights_after(4, kind)
    assert not torch.equal(whole, torch.ones(8, 8).tril())
    half = weights_after(2, plain(kind))
    assert torch.equal(weights_after(2, plain(kind), half)[0], whole)


def test_orthogonalising_brings_every_singular_value_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24), (16, 16)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.3  # what begins near 0 needs more than five steps
        assert values.max() < 1.25
        assert values.median() == pytest.approx(0.9, abs=0.25)


def test_muon_takes_torchs_own_steps() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    torch.manual_seed(0)
    start = torch.randn(24, 40)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [
        Muon([mine], lr=0.02, weight_decay=0.1, momentum=0.95),
        torch.optim.Muon(
            [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for _ in range(4):
        gradient = torch.randn(24, 40)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).abs().max().item()
    assert moved > 0.02
    torch.testing.assert_close(mine, theirs, atol=0.03 * moved, rtol=0)  # theirs is in bfloat16


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_the_schedule_warms_up_and_ends_where_it_should(schedule: str) -> None:
    config = RecipeConfig(schedule=schedule, warmup_steps=4, learning_rate=1.0, min_learning_rate=0.2)  # type: ignore[arg-type]
    rates = [learning_rate(config, step, 24) for step in range(24)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    middle = {"constant": 1.0, "linear": 1 - 0.8 * 9 / 19, "cosine": rates[13], "wsd": 1.0}[schedule]
    assert rates[13] == pytest.approx(middle)


# Through the command line


def test_memory_options_give_the_plain_runs_losses(gptcli: Any, story: Path) -> None:
    options = ("train", story, *TINY, "--max-steps", 6, "--drop-rate", 0, "--sample-every", 0, "-q")
    assert gptcli(*options, "--out", "a").code == 0
    assert gptcli(*options, "--out", "b", "--accumulate", 3, "--recompute").code == 0
    rows = [checkpoint.read_metrics(Path(name)) for name in "ab"]
    for one, other in zip(*rows, strict=True):
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert other["memory"] > 10**7


def test_early_stop_and_max_time_end_a_run(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("train", story, *TINY, "--sample-every", 0, "--threads", 1)
    nothing_changes = ("--learning-rate", 1e-30, "--eval-every", 1, "--early-stop", 2)
    result = gptcli(*options, *nothing_changes, "--out", "a")
    assert result.code == 0, result.err
    assert "by --max-time or --early-stop" in result.err
    losses = [row["val_loss"] for row in checkpoint.read_metrics(Path("a"))]
    assert len(losses) < 80
    assert min(losses[-2:]) >= min(losses[:-2])
    gptcli("train", "--resume", "a").assert_user_error("no better for 2 evaluations", "--early-stop 4")
    seconds = itertools.count()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    result = gptcli(*options, "--max-time", "2s", "--out", "b")
    assert result.code == 0, result.err
    assert checkpoint.load(Path("b")).training["step"] == 1
    gptcli("train", "--resume", "b").assert_user_error("--max-time")


@pytest.mark.slow
def test_a_compiled_run_has_the_plain_runs_losses(gptcli: Any, story: Path) -> None:
    options = ("train", story, *TINY, "--max-steps", 3, "--sample-every", 0, "--drop-rate", 0, "--threads", 1)
    assert gptcli(*options, "--out", "a").code == 0
    result = gptcli(*options, "--compile", "--out", "b")
    assert result.code == 0, result.err
    assert "failed" not in result.err
    losses = [[row["val_loss"] for row in checkpoint.read_metrics(Path(name))] for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_compiler_that_fails_is_done_without(gptcli: Any, story: Path, tmp_path: Path) -> None:
    options = ("train", story, *TINY, "--max-steps", 2, "--sample-every", 0, "--threads", 1)
    assert gptcli(*options, "--out", "a").code == 0
    # A process of its own: torch looks for the compiler once, and remembers what it compiled.
    result = subprocess.run(
        [sys.executable, "-m", "gptcli", *map(str, options), "--compile", "--out", "b"],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CXX": "no-such-compiler",
             "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "--compile failed and is left out" in result.stderr
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--optimizer", "adm"), ("'adm'", "Did you mean adam")),
        (("--accumulate", 0), ("--accumulate is 0",)),
        (("--accumulate", 5), ("--accumulate is 5", "only 4 windows")),
        (("--keep", 0), ("--keep is 0",)),
        (("--save-every", 0), ("--save-every is 0",)),
        (("--early-stop", 0), ("--early-stop is 0",)),
        (("--max-time", "soon"), ("--max-time is 'soon'", "10m")),
        (("--max-time", "0s"), ("--max-time is 0",)),
        (("--dtype", "float8"), ("'float8'", "float16")),
    ],
)
def test_a_wrong_option_is_named(gptcli: Any, story: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    gptcli("train", story, *TINY, *options, "--out", "run").assert_user_error(*words)
    assert not Path("run").exists()


def test_durations() -> None:
    from gptcli.config.fields import duration

    assert [duration(text) for text in ("90s", "10m", "1.5h", "30")] == [90, 600, 5400, 30]


@pytest.mark.parametrize("turned", [False, True])
def test_the_norm_of_all_gradients_is_torchs(turned: bool) -> None:
    gradients = [torch.randn(3, 5), torch.randn(7), torch.tensor(2.0)]
    if turned:
        gradients[0] = gradients[0].T  # does not lie row by row: torch's own way
    torch.testing.assert_close(total_norm(gradients), torch.nn.utils.get_total_norm(gradients))
    gradients[1][0] = torch.inf
    assert not total_norm(gradients).isfinite()


@pytest.mark.parametrize("inner", [torch.OutOfMemoryError("CUDA out of memory."), None])
def test_memory_that_runs_out_while_a_block_is_compiled_is_told_as_such(inner: Exception | None) -> None:
    """Not as a compiler that fails, after which training would go on without it and run out of memory again."""

    class Failing:
        proven = False

        def __call__(self, *arguments: Any, **named: Any) -> torch.Tensor:
            if inner is None:
                raise RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried 2 GiB.")
            raise RuntimeError("backend='inductor' raised:") from inner

    stepper = Stepper(tiny_model(drop_rate=0.0).train(), *split({"batch_size": 6}))
    stepper._compiled = stepper.model.run_block = Failing()  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\."):
        stepper.step(*batches(1)[0], 1e-2)
    assert stepper.notes == []


@pytest.mark.parametrize("parts", [1, 3])
def test_a_row_counts_in_the_loss_what_its_label_weighs(parts: int) -> None:
    model = tiny_model(labels=("a", "b", "c"))
    inputs, targets = batches(1)[0][0], torch.full((6, 20), IGNORED)
    actual = targets[:, -1] = torch.tensor([0, 1, 2, 0, 1, 1])
    weights = (0.5, 1.0, 3.0)
    nats = F.cross_entropy(model.next_logits(inputs), actual, reduction="none")
    expected = (nats * torch.tensor(weights)[actual]).sum() / 6
    (gradient,) = torch.autograd.grad(expected, model.score.weight, retain_graph=True)
    stepper = Stepper(model, *split({"batch_size": 6, "accumulate": parts}), loss=MeanLoss(model, True, weights))
    loss = stepper._gradients(inputs, targets, total=6.0)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(model.score.weight.grad, gradient, atol=1e-6, rtol=1e-5)
    plain_stepper = Stepper(model, *split({"batch_size": 6}), loss=MeanLoss(model, True))
    found = float(plain_stepper.forward(inputs, targets).detach())
    assert found == pytest.approx(float(nats.mean().detach()), rel=1e-5)


def test_muon_has_a_rate_for_embeddings_and_a_momentum_that_grows() -> None:
    recipe = RecipeConfig(optimizer="muon", embedding_rate=2.0, momentum_warmup=10)
    for tie in (True, False):
        model = GPTModel(GPTConfig(vocab_size=11, context_length=4, emb_dim=8, n_heads=2, n_layers=1, tie_weights=tie))
        made = make_optimizers(model, recipe)
        names = {id(p): name for name, p in model.named_parameters()}
        for step, momentum in ((0, 0.85), (5, 0.9), (10, 0.95), (11, 0.95)):
            set_rates(made, recipe, 0.5, step)
            rates = {
                names[id(p)]: group["lr"] for optimizer in made for group in optimizer.param_groups
                for p in group["params"]
            }  # fmt: skip
            assert len(rates) == len(names)
            twice = {"wte.weight", "wpe.weight"} | (set() if tie else {"lm_head.weight"})
            assert {name for name, rate in rates.items() if rate == 1.0} == twice
            assert set(rates.values()) == {0.5, 1.0}
            assert made[0].param_groups[0]["momentum"] == pytest.approx(momentum)
