"""--eval-all scores every target of the validation part, those behind the last whole window as well."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_model
from runs import TINY
from torch.nn import functional as F

from gptcli.data.dataset import Windows
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
