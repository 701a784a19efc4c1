"""The lines after a run's last step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptcli.cli import training_end
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig


def run_of(path: Path, **recipe: Any) -> Any:
    """What the closing lines need of a run of 200 steps."""
    plan = SimpleNamespace(total_steps=200, validation_windows=2)
    names = {"path": path, "plan": plan, "step": 200, "finetune": None, "source": {"texts": ["a text.txt"]}}
    return SimpleNamespace(recipe=RecipeConfig(**recipe), model_config=GPTConfig(emb_dim=96, n_heads=3), **names)


def row(step: int, train_loss: float, val_loss: float) -> dict[str, Any]:
    return {"step": step, "train_loss": train_loss, "val_loss": val_loss}


@pytest.mark.parametrize(("last", "rose"), [(0.616, False), (0.64, True)])
def test_the_training_loss_rose_only_if_it_did(tmp_path: Path, last: float, rose: bool) -> None:
    rows = [row(0, 0.629, 0.58), row(199, last, 0.581)]
    training = {"best": rows[0], "weights": "best"}
    assert ("the training loss rose to" in training_end.best_line(run_of(tmp_path), training, rows)) is rose


def test_a_run_for_a_fixed_time_is_told_to_take_more_time(tmp_path: Path) -> None:
    rows = [row(0, 4.0, 4.1), row(199, 3.0, 3.1)]
    training = {"best": rows[1], "weights": "best"}
    timed = run_of(tmp_path, for_time=30.0, learning_rate=1e-3)
    assert training_end.advice(timed, training, rows).endswith(
        f'gptcli train "a text.txt" --for 60s --out {tmp_path.with_name(f"{tmp_path.name}-2")}'
    )
    timed.source = {"texts": ["a.txt"], "encoding": "latin-1", "errors": "replace", "allow_special": True}
    timed.recipe = RecipeConfig(for_time=30.0, train_share=0.5, seed=4)
    assert (
        "gptcli train a.txt --for 60s --encoding latin-1 --errors replace --allow-special --train-share 0.5 --seed 4"
        in training_end.advice(timed, training, rows)
    )
    timed.source = {"texts": ["-"]}
    assert training_end.advice(timed, training, rows).endswith("(--for 60s --train-share 0.5 --seed 4).")
    assert "--epochs 20" in training_end.advice(run_of(tmp_path, learning_rate=1e-3), training, rows)


@pytest.mark.parametrize(
    ("rate", "last", "words"), [(1e-5, 10.9, "a higher learning rate than 1e-05"), (1e-5, 11.4, "a lower")]
)
def test_a_loss_above_guessing_is_advised_by_how_it_went(tmp_path: Path, rate: float, last: float, words: str) -> None:
    rows = [row(0, 11.0, 11.0), row(199, last, last)]
    training = {"best": rows[1], "weights": "best"}
    assert words in training_end.advice(run_of(tmp_path, learning_rate=rate), training, rows)


def test_a_run_that_chose_its_dropout_is_not_told_to_take_more(tmp_path: Path) -> None:
    rows = [row(0, 4.0, 4.1), row(60, 3.0, 3.1), row(199, 1.0, 3.6)]
    training = {"best": rows[1], "weights": "best"}
    assert "--drop-rate" in training_end.advice(run_of(tmp_path, learning_rate=1e-3), training, rows)
    timed = run_of(tmp_path, for_time=30.0, learning_rate=1e-3)
    assert training_end.advice(timed, training, rows) == "What helps most: more text."
