"""Dropout's hash: what it depends on, and whether its bits look drawn."""

import itertools
import math

import pytest
import torch
from models import tiny_model
from torch import Tensor

from gptcli.model.dropout_mask import keep_mask, random_seeds, step_seeds, threshold


def mask(seeds: Tensor, rate: float = 0.1, groups: int = 2, rows: int = 96, columns: int = 80) -> Tensor:
    return keep_mask(seeds, groups, rows, columns, threshold(rate)[0], False)


def test_a_window_has_the_same_seeds_in_whatever_part_of_the_step_it_lies() -> None:
    whole = step_seeds(5, 7, 0, 6, 3)
    assert whole.shape == (4, 3, 6)
    assert whole.dtype == torch.int64
    assert torch.equal(torch.cat([step_seeds(5, 7, 0, 1, 3), step_seeds(5, 7, 1, 5, 3)], dim=2), whole)
    deeper = step_seeds(5, 7, 0, 6, 4)
    assert torch.equal(deeper[:3], whole[:3])


def test_every_place_of_a_run_has_a_seed_of_its_own() -> None:
    found = [step_seeds(seed, step, 0, 8, 3).flatten() for seed in (-1, 0, 1, 2**40) for step in (0, 1, 2, 10**6)]
    everything = torch.cat(found)
    assert everything.unique().numel() == everything.numel()


def test_the_mask_is_that_of_the_formula() -> None:
    """lowbias32 in Python's integers, for a few elements."""

    def mixed(x: int, between: int = 0) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = ((x ^ x >> 15) + between) * 0x846CA68B % 2**32
        return x ^ x >> 16

    seeds = step_seeds(3, 1, 4, 2, 1)[1, 2]
    dropped, factor = threshold(0.3)
    kept = mask(seeds, 0.3)
    assert factor == pytest.approx(1 / 0.7)
    for window, group, row, column in itertools.product((0, 1), (0, 1), (0, 1, 95), (0, 1, 79)):
        seed = int(seeds[window]) % 2**64
        key = mixed(mixed(((group * 96 + row) * 0x9E3779B9 + seed) % 2**32) + (seed >> 32) & 2**32 - 1)
        value = mixed((key + column * 0x9E3779B9) % 2**32, key)
        assert kept[window, group, row, column] == (value >= dropped)


@pytest.mark.parametrize("columns", [1, 3, 80, 2**15])
def test_a_causal_mask_is_the_same_up_to_the_diagonal(columns: int) -> None:
    seeds = step_seeds(0, 0, 0, 1, 1)[0, 0]
    rows = min(columns, 300)
    whole, causal = (keep_mask(seeds, 2, rows, columns, 2**31, causal) for causal in (False, True))
    assert torch.equal(whole.tril(), causal.tril())


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_share_is_right_in_every_direction(rate: float) -> None:
    seeds = step_seeds(123, 5, 0, 4, 1).flatten()  # 24 masks
    kept = mask(seeds, rate).double()
    spread = math.sqrt(rate * (1 - rate))
    for dims in ((0, 1, 2, 3), (1, 2, 3), (0, 1, 2), (0, 1, 3), (2, 3), (3,), (2,)):
        means = kept.mean(dims)
        limit = 5.5 * spread / math.sqrt(kept.numel() / means.numel())
        assert (means - (1 - rate)).abs().max() < limit


def test_neighbours_in_every_direction_are_independent() -> None:
    """Windows, sites, steps, seeds, heads, rows and columns: no pair agrees more or less often than by chance."""
    here = mask(step_seeds(123, 5, 0, 4, 1).flatten(), 0.5).double() * 2 - 1
    others = {
        "step": mask(step_seeds(123, 6, 0, 4, 1).flatten(), 0.5),
        "seed": mask(step_seeds(124, 5, 0, 4, 1).flatten(), 0.5),
        "window": mask(step_seeds(123, 5, 1, 4, 1).flatten(), 0.5),
        "steps and seeds exchanged": mask(step_seeds(5, 123, 0, 4, 1).flatten(), 0.5),
    }
    pairs = {name: (here, other.double() * 2 - 1) for name, other in others.items()}
    for dim in range(4):
        for lag in (1, 2, 3, 16):
            if lag < here.size(dim):
                length = here.size(dim) - lag
                pairs[f"{dim}, {lag}"] = here.narrow(dim, lag, length), here.narrow(dim, 0, length)
    square = here[..., :80, :80]
    pairs["transposed"] = square.tril(-1), square.transpose(-1, -2).tril(-1)
    for name, (a, b) in pairs.items():
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel()), name
    a, b, c, d = (here[..., i : 95 + i, j : 79 + j] for i in (0, 1) for j in (0, 1))
    assert abs(float((a * b * c * d).mean())) < 5 / math.sqrt(a.numel())  # squares: what a lattice would show


def test_without_seeds_torchs_generator_draws_them() -> None:
    model, ids = tiny_model(drop_rate=0.3).train(), torch.arange(12).view(2, 6)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model.hidden(ids))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert random_seeds(1000).unique().numel() == 1000


def test_a_windows_dropout_does_not_depend_on_the_others_of_its_batch() -> None:
    model, ids = tiny_model(drop_rate=0.3).train(), torch.arange(24).view(4, 6)
    whole = model.hidden(ids, seeds=step_seeds(1, 9, 0, 4, 2))
    parts = [model.hidden(ids[at : at + 2], seeds=step_seeds(1, 9, at, 2, 2)) for at in (0, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
