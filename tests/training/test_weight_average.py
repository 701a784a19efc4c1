"""The average of the weights: its formula, its way in and out of the model, and the runs that evaluate and keep it."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_config, tiny_model
from runs import TEXT, TINY, killed_after
from safetensors.torch import load_file
from torch import Tensor

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.config.lora import LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig, split
from gptcli.data.dataset import make_corpus
from gptcli.model.gpt import GPTModel
from gptcli.model.lora import add_adapters
from gptcli.training import disk, events, snapshots, trainer
from gptcli.training.batch_size import forecast_fits
from gptcli.training.distributed import ALONE
from gptcli.training.step import Stepper
from gptcli.training.weight_average import WeightAverage

SHARE = 0.2
# The best evaluation is neither the first nor the last one.
RUN = (
    *TINY, "--sample-every", 0, "--threads", 1, "--learning-rate", 0.03, "--schedule", "cosine", "--max-steps", 40,
    "--eval-every", 2, "--seed", 3,
)  # fmt: skip
AVERAGED = (*RUN, "--average-share", SHARE)
FILES = ("model.safetensors", "optimizer.safetensors", "best.safetensors")


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A text whose end is unlike its beginning, so that training on the one soon harms the other."""
    path = tmp_path / "story.txt"
    path.write_text(TEXT + "dgo eht tac no tas gol mat. " * 3, encoding="utf-8")
    return path


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    ids = torch.randint(0, 61, (count, 6, 21), generator=torch.Generator().manual_seed(5))
    return ((part[:, :-1], part[:, 1:]) for part in ids)


def copies(model: GPTModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def average(weights: list[dict[str, Tensor]], decay: int) -> dict[str, Tensor]:
    """The average by its closed form, in float64: weights after step n (from 0) count as many as (n + decay choose n)
    of all that came before, where ``decay`` is η, 1 / share - 1."""
    counts = torch.tensor([math.comb(n + decay, n) for n in range(len(weights))], dtype=torch.float64)
    shares = counts / counts.sum()
    return {
        name: sum(share * each[name].double() for share, each in zip(shares, weights, strict=True))
        for name in weights[0]
    }


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-5, atol=1e-6)


def root(run: str) -> bytes:
    return Path(run, "model.safetensors").read_bytes()


def snapshot(run: str, step: int) -> Path:
    return Path(run, "training", f"step-{step:08d}")


def newest(run: str) -> Path:
    return max(Path(run, "training").iterdir())


def trained(path: Path) -> dict[str, Tensor]:
    """The trained weights in a snapshot whose weights are the average."""
    return {
        name.removeprefix("trained/"): tensor
        for name, tensor in load_file(path / "optimizer.safetensors").items()
        if name.startswith("trained/")
    }


# In a step


@pytest.mark.parametrize(("share", "decay"), [(0.5, 1), (0.1, 9)])
@pytest.mark.parametrize("late", [False, True], ids=["decided by the host", "decided by the device"])
def test_the_average_is_that_of_the_closed_form(share: float, decay: int, late: bool) -> None:
    model = tiny_model(qkv_bias=False).train()
    stepper = Stepper(model, *split({"batch_size": 6, "dtype": "float32", "average_share": share}))
    stepper.is_late = late
    found = []
    for number, batch in enumerate(batches(30)):
        stepper.launch(*batch, 1e-2, number)
        found.append(copies(model))
        assert_near(stepper.average.mean, average(found, decay))
    assert torch.equal(average(found[:1], decay)["wte.weight"], found[0]["wte.weight"].double())
    assert not torch.allclose(stepper.average.mean["wte.weight"], model.wte.weight, atol=1e-3)


def test_weights_that_a_step_leaves_as_they_are_count_again() -> None:
    model = tiny_model().train()
    stepper = Stepper(model, *split({"batch_size": 6, "dtype": "float32", "average_share": 0.5}))
    hook = model.wpe.weight.register_hook(lambda grad: grad / 0)
    first, second = batches(2)
    assert not stepper.step(*first, 1e-2, 0).updated
    hook.remove()
    before = copies(model)
    assert stepper.step(*second, 1e-2, 1).updated
    assert_near(stepper.average.mean, average([before, copies(model)], 1))


def test_the_model_has_it_for_a_while_in_place() -> None:
    model = tiny_model()
    made, before = WeightAverage(model, 0.5), copies(model)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = copies(model)
    made.update(1)
    mean = {name: tensor.clone() for name, tensor in made.mean.items()}
    assert not torch.equal(mean["ln_f.bias"], after["ln_f.bias"])

    def is_in_model(weights: dict[str, Tensor]) -> bool:
        return all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())

    with made.in_model():
        assert is_in_model(mean)
        assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert is_in_model(after)

    def fail() -> None:
        with made.in_model():
            assert is_in_model(mean)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert is_in_model(after)
    assert all(torch.equal(made.mean[name], mean[name]) for name in mean)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    made.take(before)
    with made.in_model():
        assert is_in_model(before)
    assert {name.removeprefix("trained/") for name in made.state()} == mean.keys()
    assert torch.equal(made.state()["trained/wte.weight"], after["wte.weight"])


def test_none_of_it_without_a_share_and_only_what_is_trained_with_one() -> None:
    model = tiny_model()
    made = WeightAverage(model, 0.0)
    made.update(0)
    with made.in_model():
        pass
    made.take({})
    assert (made.mean, made.state()) == ({}, {})
    add_adapters(model, LoRAConfig(2), 1)
    made = WeightAverage(model, 0.5)
    assert made.mean
    assert all("lora_" in name for name in made.mean)
    stepper = Stepper(model, *split({"batch_size": 6, "dtype": "float32", "average_share": 0.5}))
    assert stepper.weights().keys() == checkpoint.to_file(model).keys()


def test_what_a_snapshot_takes_brings_both_back() -> None:
    settings = split({"batch_size": 6, "dtype": "float32", "average_share": 0.5})
    stepper, other = Stepper(tiny_model().train(), *settings), Stepper(tiny_model(seed=1).train(), *settings)
    for number, batch in enumerate(batches(3)):
        stepper.step(*batch, 1e-2, number)
    other.restore(stepper.weights(), stepper.state(), {})
    for number, batch in enumerate(batches(3), 3):
        for each in (stepper, other):
            each.step(*batch, 1e-2, number)
    for one, two in zip(stepper.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
    for name, mean in stepper.average.mean.items():
        assert torch.equal(mean, other.average.mean[name])


# In a run


def test_it_is_evaluated_and_kept_and_changes_no_step(gptcli: Any, story: Path) -> None:
    often = ("--save-every", 1, "--keep", 50)
    result = gptcli("train", story, *AVERAGED, *often, "--out", "run")
    assert result.code == 0, result.err
    assert gptcli("train", story, *RUN, *often, "--out", "plain").code == 0
    rows, plain = (checkpoint.read_metrics(Path(run)) for run in ("run", "plain"))
    best = min(rows, key=lambda row: row["val_loss"])
    assert 0 < best["step"] < rows[-1]["step"], "else the test shows nothing"
    found = [trained(snapshot("run", step)) for step in range(1, 41)]
    for step in range(1, 41):
        last = load_file(snapshot("plain", step) / "model.safetensors")
        assert all(torch.equal(found[step - 1][name], last[name]) for name in found[step - 1])
        mean = load_file(snapshot("run", step) / "model.safetensors")
        assert_near({name: mean[name] for name in found[0]}, average(found[:step], 4))
    assert root("run") == (snapshot("run", best["step"] + 1) / "model.safetensors").read_bytes()
    assert (newest("run") / "best.safetensors").read_bytes() == root("run")
    assert rows[0]["val_loss"] == plain[0]["val_loss"]
    assert all(row["val_loss"] != other["val_loss"] for row, other in zip(rows[1:], plain[1:], strict=True))
    assert all(row["train_loss"] != other["train_loss"] for row, other in zip(rows[1:], plain[1:], strict=True))
    for row in rows:  # the losses are those of the snapshot's weights
        assert row["val_loss"] == pytest.approx(val_loss(story, snapshot("run", row["step"] + 1)), rel=1e-5)


def val_loss(story: Path, path: Path) -> float:
    opened = checkpoint.load(path)
    corpus = make_corpus([story.read_text(encoding="utf-8")], opened.tokenizer, 0.9)
    recipe = RecipeConfig(context_length=16)
    windows, validation = trainer.batches_of(corpus, recipe)
    assert validation is not None
    numbers = trainer.evaluation_windows(windows, validation, recipe, 4)[1]
    return trainer.mean_loss(opened.model(), validation, numbers, 4)


def test_the_last_weights_are_the_last_average(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *AVERAGED, "--out", "best").code == 0
    assert gptcli("train", story, *AVERAGED, "--final", "last", "--out", "last").code == 0
    assert gptcli("train", story, *AVERAGED, "--train-share", 1, "--out", "all").code == 0  # no text is held out
    for run in ("last", "all"):
        assert root(run) == (newest(run) / "model.safetensors").read_bytes()
    assert root("last") == (newest("best") / "model.safetensors").read_bytes() != root("best")
    for run in ("last", "all"):
        weights = trained(newest(run))
        assert any(not torch.equal(load_file(f"{run}/model.safetensors")[name], weights[name]) for name in weights)
    greedy = ("generate", "the", "-t", 0, "-n", 9, "-c")
    assert gptcli(*greedy, "best", "--last").out == gptcli(*greedy, "last").out


@pytest.mark.parametrize("every", [1, 5, 1000])
def test_when_snapshots_are_written_does_not_matter(gptcli: Any, story: Path, every: int) -> None:
    for name, options in (("a", ("--save-every", every, "--keep", 1)), ("b", ())):
        assert gptcli("train", story, *AVERAGED, *options, "--out", name).code == 0
    assert root("a") == root("b")
    for name in FILES:
        assert (newest("a") / name).read_bytes() == (newest("b") / name).read_bytes()


def test_killed_and_resumed_is_undisturbed_to_the_byte(gptcli: Any, story: Path) -> None:
    options = (*AVERAGED, "--optimizer", "muon", "--drop-rate", 0.1, "--save-every", 1, "--keep", 50)
    assert gptcli("train", story, *options, "--out", "whole").code == 0
    best = min(checkpoint.read_metrics(Path("whole")), key=lambda row: row["val_loss"])["step"] + 1
    for saved in (0, 1, 7, best - 1, best, best + 1, 39):
        killed_after(saved, "whole", "run")
        result = gptcli("train", "--resume", "run")
        assert result.code == 0, result.err
        for name in FILES:
            assert (newest("run") / name).read_bytes() == (newest("whole") / name).read_bytes(), (saved, name)
        assert root("run") == root("whole")
        assert losses("run") == losses("whole")
        shutil.rmtree("run")


def losses(run: str) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["val_loss"]) for row in checkpoint.read_metrics(Path(run))]


def test_its_config_repeats_it_and_it_goes_on(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *AVERAGED, "--early-stop", 2, "--max-steps", 60, "--out", "a").code == 0
    assert gptcli("train", "--config", "a/config.toml", "--out", "b").code == 0
    assert (newest("a") / "model.safetensors").read_bytes() == (newest("b") / "model.safetensors").read_bytes()
    assert root("a") == root("b")
    assert gptcli("train", story, *AVERAGED, "--max-steps", 10, "--schedule-steps", 40, "--out", "parts").code == 0
    assert gptcli("train", "--resume", "parts", "--max-steps", 40).code == 0
    assert gptcli("train", story, *AVERAGED, "--schedule-steps", 40, "--out", "whole").code == 0
    assert (newest("parts") / "model.safetensors").read_bytes() == (newest("whole") / "model.safetensors").read_bytes()


def test_parts_of_a_step_give_the_same(gptcli: Any, story: Path) -> None:
    for run, options in (("one", ()), ("parts", ("--accumulate", 2))):
        assert gptcli("train", story, *AVERAGED, *options, "--max-steps", 12, "--out", run).code == 0
    for one, two in zip(losses("one"), losses("parts"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_a_run_that_goes_back_goes_on_from_the_average_there(tmp_path: Path) -> None:
    tokenizer = tokenizers.build("char", TEXT)
    config = GPTConfig(tokenizer.vocab_size, 16, 16, 2, 1, 0.0)
    recipe = RecipeConfig(context_length=16, max_steps=6, eval_every=100, average_share=0.5)
    model = GPTModel(config)
    store = snapshots.Store(tmp_path / "run", config, tokenizer, {"recipe": {}}, 9, 2)
    store.begin(checkpoint.to_file(model), trainer.asdict(trainer.Progress()), force=False)
    step, bad = 0, {2, 3, 4}
    model.ln_f.bias.register_hook(lambda grad: grad * float("nan") if step in bad else grad)
    found: list[dict[str, Tensor]] = []
    went_back = False
    for event in trainer.train(
        model, make_corpus([TEXT], tokenizer, 0.9), recipe, RuntimeConfig(save_every=2), store=store
    ):
        if isinstance(event, events.RolledBack):
            went_back, step, bad = True, event.step, set()
            there = trained(snapshot(str(tmp_path / "run"), 2))
            assert all(torch.equal(parameter, there[name]) for name, parameter in model.named_parameters())
        elif isinstance(event, events.Stepped | events.Skipped):
            step = event.step + 1
            found = [*found[: event.step], copies(model)]
    assert went_back
    assert len(found) == 6
    mean = load_file(snapshot(str(tmp_path / "run"), 6) / "model.safetensors")
    assert_near({name: mean[name] for name in found[0]}, average(found, 1))


def test_samples_are_of_the_average(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.training.samples import Sampler

    seen: list[dict[str, Tensor]] = []
    monkeypatch.setattr(Sampler, "sample", lambda self: seen.append(copies(self.model)) or "")
    options = (*AVERAGED, "--sample-every", 1, "--max-steps", 9)  # the steps of an epoch
    assert gptcli("train", story, *options, "--out", "run").code == 0
    mean = load_file(newest("run") / "model.safetensors")
    assert len(seen) == 1
    assert all(torch.equal(seen[0][name], mean[name]) for name in seen[0])
    assert not torch.equal(mean["wte.weight"], trained(newest("run"))["wte.weight"])


# What it takes, and what is refused


def test_forecasts_know_its_bytes(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, plain, recipe = tiny_config(emb_dim=420), RecipeConfig(), RecipeConfig(average_share=0.1)
    size = 4 * sum(p.numel() for p in tiny_model(emb_dim=420).parameters())
    # Three snapshots, and a fourth while it is written.
    assert disk.forecast(config, recipe, 3).total == disk.forecast(config, plain, 3).total + 4 * size

    def least_memory(recipe: RecipeConfig) -> int:
        few, enough = 0, 2**34
        while enough - few > 1:
            free = (few + enough) // 2
            monkeypatch.setattr("gptcli.training.batch_size.available_memory", lambda device, free=free: free)
            fits = forecast_fits(config, recipe, RuntimeConfig(), 4, 20, torch.device("cpu"), ALONE)
            few, enough = (few, free) if fits else (free, enough)
        return enough

    assert least_memory(recipe) - least_memory(plain) == pytest.approx(size / 0.9, rel=0.01)
    assert gptcli("train", story, *AVERAGED, "--keep", 1, "--out", "run").code == 0
    files = {file.stat().st_ino: file.stat().st_size for file in Path("run").rglob("*.safetensors")}
    opened = checkpoint.load(Path("run"))
    most = disk.forecast(opened.config, recipe, 1).total  # with a second snapshot that is being written
    assert most / 3 < sum(files.values()) <= most


@pytest.mark.parametrize("share", [1, 1.5, -0.1, "nan"])
def test_a_share_out_of_range(gptcli: Any, story: Path, share: Any) -> None:
    gptcli("train", story, *RUN, "--average-share", share, "--out", "run").assert_user_error(
        "--average-share is", "0.1"
    )
    assert not Path("run").exists()


def test_shards_are_not_averaged(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *AVERAGED, "--shard", "--out", "run")
    result.assert_user_error("--average-share cannot be combined with --shard", "a run without --average-share")
    assert not Path("run").exists()
    assert gptcli("train", story, *AVERAGED, "--max-steps", 2, "--out", "run").code == 0
    result = gptcli("train", "--resume", "run", "--max-steps", 4, "--shard")
    result.assert_user_error("--average-share cannot be combined with --shard")
    result = gptcli("train", "--resume", "run", "--max-steps", 4, "--average-share", 0)
    result.assert_user_error("--average-share is 0.0, but run began with 0.2")
