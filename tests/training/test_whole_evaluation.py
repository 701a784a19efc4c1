"""What an evaluation reads of the validation part: every target with --eval-all, else windows from all over it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_model
from runs import TINY
from torch.nn import functional as F

from gptcli.checkpoints import checkpoint
from gptcli.config.recipe import RecipeConfig
from gptcli.data.dataset import Windows, make_corpus
from gptcli.training.run_plan import batches_of, evaluation_windows
from gptcli.training.snapshots import newest
from gptcli.training.trainer import mean_loss


@pytest.mark.parametrize("tokens", [61, 60, 64, 21, 20, 5])
def test_every_target_counts_once(tokens: int) -> None:
    model = tiny_model(context_length=20)
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 61, tokens))
    windows = Windows(ids, 20, 20)
    rest = windows.rest()
    scored = len(windows) * windows.context_length + (rest[1].numel() if rest else 0)
    assert scored == tokens - 1
    losses = []
    with torch.no_grad():
        for start in range(0, tokens - 1, windows.context_length):
            part = ids[start : start + windows.context_length + 1][None]
            losses.append(F.cross_entropy(model(part[:, :-1])[0], part[0, 1:], reduction="none"))
        expected = float(torch.cat(losses).mean())
        found = mean_loss(model, windows, range(len(windows)), 2, None, True)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_run_scores_all(gptcli: Any, story: Path) -> None:
    options = (*TINY, "--max-steps", 1, "--sample-every", 0, "--learning-rate", 1e-9)
    losses = []
    for out, more in (("all", ("--eval-all",)), ("some", ("--eval-batches", 1000))):
        assert gptcli("train", story, *options, *more, "--out", out).code == 0
        losses.append(json.loads((Path(out) / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[0])["val_loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("windows", "expected"), [(9, [0, 2, 4, 6]), (100, [0, 25, 50, 75]), (4, [0, 1, 2, 3]), (3, [0, 1, 2])]
)
def test_windows_from_all_over_the_validation_part(windows: int, expected: list[int]) -> None:
    train, validation = (Windows(torch.arange(count * 8 + 1), 8, 8) for count in (50, windows))
    recipe = RecipeConfig(context_length=8, batch_size=2, eval_batches=2)
    assert list(evaluation_windows(train, validation, recipe, 2)[1]) == expected
    assert list(evaluation_windows(train, validation, recipe, 2, spread=False)[1]) == list(range(min(windows, 4)))
    whole = RecipeConfig(context_length=8, batch_size=2, eval_batches=2, eval_all=True)
    assert list(evaluation_windows(train, validation, whole, 2)[1]) == list(range(windows))


def test_a_run_that_began_before_goes_on_with_its_windows(gptcli: Any, story: Path) -> None:
    options = (*TINY, "--max-steps", 3, "--eval-every", 1, "--eval-batches", 1, "--train-share", 0.5)
    assert gptcli("train", story, *options, "--out", "new").code == 0
    shutil.copytree("new", "old")
    for state in Path("old").rglob("state.json"):
        said = json.loads(state.read_text(encoding="utf-8"))
        said["facts"]["source"]["format"] = 2
        state.write_text(json.dumps(said), encoding="utf-8")
    for run, spread in (("new", True), ("old", False)):
        assert gptcli("train", "--resume", run, "--max-steps", 4).code == 0
        row = checkpoint.read_metrics(Path(run))[-1]
        assert row["step"] == 3
        opened = checkpoint.load(newest(Path(run))[0].path)
        recipe = RecipeConfig(context_length=opened.config.context_length, eval_batches=1)
        corpus = make_corpus([story.read_text(encoding="utf-8")], opened.tokenizer, 0.5)
        windows, validation = batches_of(corpus, recipe)
        assert validation is not None
        numbers = evaluation_windows(windows, validation, recipe, 4, spread)[1]
        assert len(numbers) < len(validation)
        assert row["val_loss"] == pytest.approx(mean_loss(opened.model(), validation, numbers, 4), rel=1e-5)
