"""A model that has to copy grows an induction head, and the table names it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.model.gpt import GPTModel

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-"
LENGTH, BATCH, STEPS = 48, 32, 500


def trained() -> GPTModel:
    """Two layers on random sequences without repeats, of 12 to 24 letters, said again and again.

    Every row has its own period, so that the place to copy from is known by what stands there and not by its number;
    the course's initialisation, whose position vectors are far apart from the start, needs the fewest steps.
    """
    config = GPTConfig(
        vocab_size=len(LETTERS), context_length=64, emb_dim=64, n_heads=2, n_layers=2, drop_rate=0.0, tie_weights=False
    )
    torch.manual_seed(0)
    model = GPTModel(config, init="course")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    random = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        period = torch.randint(LENGTH // 4, LENGTH // 2 + 1, (BATCH, 1), generator=random)
        sequence = torch.rand(BATCH, len(LETTERS), generator=random).argsort(1)
        ids = sequence.gather(1, torch.arange(LENGTH) % period)  # (B, T)
        losses = F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none")
        repeated = torch.arange(1, LENGTH) >= period
        optimizer.zero_grad()
        (losses * repeated).sum().div(repeated.sum()).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_the_table_names_the_induction_head(gptcli: Any, tmp_path: Path) -> None:
    checkpoint.create(tmp_path / "copier", trained(), tokenizers.build("char", LETTERS), {})
    order = torch.randperm(len(LETTERS), generator=torch.Generator().manual_seed(9))[:20]
    text = 2 * "".join(sorted(LETTERS)[i] for i in order)
    result = gptcli("inspect-attn", text, "-c", tmp_path / "copier", "--json", "-")
    named = [head for head in result.json["heads"] if head["role"] == "induction"]
    assert named
    assert all(head["layer"] == 1 and head["share_induction"] > 0.5 for head in named), named
    assert "induction" in gptcli("inspect-attn", text, "-c", tmp_path / "copier").out.split("itself")[1]
    bits = gptcli("inspect-logits", text, "-c", tmp_path / "copier", "--json", "-").json["positions"]
    assert sum(one["surprise_bits"] for one in bits[21:]) < 0.5 * sum(one["surprise_bits"] for one in bits[1:21])
