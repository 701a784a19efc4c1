"""The disk that a run takes is forecast: what its files really take is never more."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from labelled import write_rows
from models import tiny_checkpoint, tiny_config, tiny_model
from runs import MODEL

from gptcli import tokenizers
from gptcli.checkpoints.checkpoint import to_file
from gptcli.config.recipe import RecipeConfig
from gptcli.training import disk, run, snapshots
from gptcli.training.progress import Best, Progress


def taken(folder: Path) -> int:
    """Bytes of the weights and snapshots, each file once however many names it has."""
    files = [file.stat() for file in folder.rglob("*.safetensors")]
    return sum({about.st_ino: about.st_size for about in files}.values())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The most that `taken` was of a run, when a snapshot was whole and the oldest not yet removed."""
    sizes = [0]
    let_go = snapshots.Store._let_go

    def measure(store: snapshots.Store) -> None:
        sizes.append(taken(store.run))
        let_go(store)

    monkeypatch.setattr(snapshots.Store, "_let_go", measure)
    return lambda: max(sizes)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_every_snapshot_may_have_best_weights_of_its_own(
    tmp_path: Path, measured: Callable[[], int], keep: int
) -> None:
    model, recipe = tiny_model(), RecipeConfig(epochs=9)
    weights = to_file(model, model.state_dict())
    state = {f"{name}/{field}": value for name, value in weights.items() for field in ("exp_avg", "exp_avg_sq")}
    store = snapshots.Store(
        tmp_path / "run", model.config, tokenizers.build("byte"), {"recipe": asdict(recipe)}, keep, None
    )
    store.begin(weights, asdict(Progress()), force=False)
    for step in range(2, 14, 2):
        best = {name: tensor + step for name, tensor in weights.items()}
        progress = Progress(step=step, best=Best(step - 2, 1.0, 1.0))
        store.save(weights, state, asdict(progress), {}, best)
    forecast = disk.forecast(model.config, recipe, keep)
    assert 0.7 * forecast.total < measured() <= forecast.total
    kept = sum(tensor.nbytes for tensor in weights.values()) * 2
    assert 0.6 * forecast.for_resuming < taken(store.run) - kept <= forecast.for_resuming


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "muon"])
@pytest.mark.parametrize("options", [("--keep", 1), ("--keep", 2, "--average-share", 0.1), ("--keep", 5)])
def test_no_run_takes_more(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[[], int], optimizer: str,
    options: tuple[Any, ...],
) -> None:  # fmt: skip
    forecasts: list[disk.DiskForecast] = []
    forecast = disk.forecast
    monkeypatch.setattr(run.disk, "forecast", lambda *given: forecasts.append(forecast(*given)) or forecasts[0])
    words = ("--max-steps", 9, "--sample-every", 0, "--save-every", 2, "--eval-every", 3, "--optimizer", optimizer)
    result = gptcli("train", story, "--tokenizer", "char", *MODEL, *words, *options, "--out", "run")
    assert result.code == 0, result.err
    assert 0.2 * forecasts[0].total < measured() <= forecasts[0].total
    assert "Weights and snapshots take at most " in result.err
    at_the_end = taken(Path("run"))
    assert gptcli("checkpoints", "run", "--prune").code == 0
    assert at_the_end - taken(Path("run")) <= forecasts[0].for_resuming


def test_an_adapter_for_a_classifier_takes_no_more(
    gptcli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[[], int]
) -> None:
    forecasts: list[disk.DiskForecast] = []
    forecast = disk.forecast
    monkeypatch.setattr(run.disk, "forecast", lambda *given: forecasts.append(forecast(*given)) or forecasts[0])
    tiny_checkpoint(tmp_path / "base", context_length=100)
    rows = write_rows(tmp_path / "rows.jsonl", 40, seed=1)
    words = ("--train", "lora:2", "--max-steps", 5, "--save-every", 2, "--eval-every", 1, "--keep", 1)
    result = gptcli("finetune", rows, "--init-from", "base", *words, "--out", "run")
    assert result.code == 0, result.err
    assert 0.2 * forecasts[0].total < measured() <= forecasts[0].total


def test_the_first_weights_count_where_few_steps_are_made() -> None:
    config = tiny_config()
    one = disk.forecast(config, RecipeConfig(max_steps=1), keep=3)
    many = disk.forecast(config, RecipeConfig(max_steps=100), keep=3)
    weights = 4 * sum(parameter.numel() for parameter in tiny_model().parameters())
    assert one.total - weights == pytest.approx((many.total - weights) / 4)
