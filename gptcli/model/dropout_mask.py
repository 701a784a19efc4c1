"""Dropout's masks on the CPU: a hash of seed, step, site, window, row and column, so no generator has a state.

A site is a place in the model that drops: the attention weights of a layer (row: head and query, column: key), the
results of a layer's two branches and the embeddings (row: position, column: channel). An element's mask depends on
nothing else: not on the parts of a step, on threads, processes or compilation. kernels/cpu/dropout_hash.py computes the
same hash in vectors.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MASKS = "hash-1"  # the name of these masks in a run's facts: another hash needs another name
SITES = 3  # of a layer: attention weights, attention, feed-forward
GOLDEN, GOLDEN_64 = 0x9E3779B9, 0x9E3779B97F4A7C15
ELEMENTS = 2**14  # hashed at once: they fit into a core's cache
_64_BITS = 2**64 - 1


def step_seeds(seed: int, step: int, first_window: int, windows: int, n_layers: int) -> Tensor:
    """The seeds of a step's masks, for `GPTModel.hidden`.

    Args:
        seed, step: of the run.
        first_window, windows: the first of the windows that are computed, among all of the step's, and their number.
        n_layers: N.

    Returns:
        (N + 1, 3, B) int64 on the CPU: a seed for each site and window; [N, 0] are those of the embeddings.
    """
    before = np.zeros(1, np.uint64)
    for number in (seed, step):
        before = _mixed_64(before, np.array([number & _64_BITS], np.uint64))
    sites = _mixed_64(before, np.arange((n_layers + 1) * SITES, dtype=np.uint64))
    seeds = _mixed_64(sites[:, None], np.arange(first_window, first_window + windows, dtype=np.uint64))
    return torch.from_numpy(seeds.view(np.int64)).view(n_layers + 1, SITES, windows)


def _mixed_64(state: NDArray[np.uint64], numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The next state of a hash that reads ``numbers``: a step of SplitMix64 (Steele et al., 2014)."""
    x = state + (numbers + np.uint64(1)) * np.uint64(GOLDEN_64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def random_seeds(windows: int) -> Tensor:
    """Seeds (B) of one site, drawn from torch's generator."""
    return torch.randint(-(2**63), 2**63 - 1, (windows,))


def threshold(drop_rate: float) -> tuple[int, float]:
    """How many of the 2³² hashes are dropped, and the factor of kept elements, 1 / (1 - rate)."""
    dropped = min(round(drop_rate * 2**32), 2**32 - 1)
    return dropped, 2**32 / (2**32 - dropped)


def keep_mask(seeds: Tensor, groups: int, rows: int, columns: int, dropped: int, causal: bool) -> Tensor:
    """The mask of one site.

    Args:
        seeds: (B) int64, one for each window.
        groups: heads, or 1.
        rows, columns: of a group.
        dropped: see `threshold`.
        causal: whether elements of later columns than their row are not needed; most of them are then 0.

    Returns:
        (B, groups, rows, columns) uint8, 1 where an element is kept. It converts to float32 four times as fast as bool.
    """
    mask: Tensor = torch.ops.gptcli.dropout_mask(seeds, groups, rows, columns, dropped, causal)
    return mask


def _hashed(seeds: Tensor, groups: int, rows: int, columns: int, dropped: int, causal: bool) -> Tensor:
    kept = np.zeros((len(seeds), groups, rows, columns), np.bool_)
    numbers = np.arange(groups * rows, dtype=np.uint32) * np.uint32(GOLDEN)
    offsets = np.arange(columns, dtype=np.uint32) * np.uint32(GOLDEN)
    at_once = max(1, ELEMENTS // max(columns, 1))
    for window, seed in enumerate(seeds.numpy().view(np.uint64)):
        low, high = np.uint32(seed & np.uint64(2**32 - 1)), np.uint32(seed >> np.uint64(32))
        row_keys = _mixed(_mixed(numbers + low) + high).reshape(groups, rows, 1)
        for group in range(groups):
            for first in range(0, rows, at_once):
                some = slice(first, first + at_once)
                past = slice(0, min(first + at_once, columns)) if causal else slice(0, columns)
                _keep(row_keys[group, some], offsets[past], dropped, kept[window, group, some, past])
    return torch.from_numpy(kept).view(torch.uint8)


def _mixed(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The 32-bit hash lowbias32 of Chris Wellons's search for integer hashes of low bias."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _keep(row_keys: NDArray[np.uint32], offsets: NDArray[np.uint32], dropped: int, kept: NDArray[np.bool_]) -> None:
    """Write (rows, columns) of the mask, from row_keys (rows, 1) and offsets (columns)."""
    x = row_keys + offsets
    shifted = x >> np.uint32(16)
    np.multiply(np.bitwise_xor(x, shifted, out=x), np.uint32(0x7FEB352D), out=x)
    np.bitwise_xor(x, np.right_shift(x, np.uint32(15), out=shifted), out=x)
    x += row_keys  # again, so that near keys give different masks
    x *= np.uint32(0x846CA68B)
    np.bitwise_xor(x, np.right_shift(x, np.uint32(16), out=shifted), out=x)
    np.greater_equal(x, np.uint32(dropped), out=kept)


def _unhashed(seeds: Tensor, groups: int, rows: int, columns: int, dropped: int, causal: bool) -> Tensor:
    """The shape of a mask, for torch.compile."""
    return seeds.new_empty((seeds.size(0), groups, rows, columns), dtype=torch.uint8)


# An operator, which torch.compile calls as it is. torch.library.custom_op would load the compiler at once, in seconds.
_LIBRARY = torch.library.Library("gptcli", "DEF")
_LIBRARY.define("dropout_mask(Tensor seeds, int groups, int rows, int columns, int dropped, bool causal) -> Tensor")
_LIBRARY.impl("dropout_mask", _hashed, "CPU")
_LIBRARY.impl("dropout_mask", _unhashed, "Meta")
