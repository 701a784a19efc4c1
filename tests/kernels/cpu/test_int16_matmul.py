"""Products in whole numbers against exact ones: outliers, the largest sums there are, and what is no number."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", exc_type=ImportError)

import numba

from gptcli.kernels.cpu import block_packing, int16_matmul, row_vectors
from gptcli.kernels.cpu.target import INTEGER_PRODUCTS

pytestmark = pytest.mark.skipif(not INTEGER_PRODUCTS, reason="this machine does not multiply pairs of int16")
BLOCKS = 4


@numba.njit
def products(data: Any, work: Any, rows: int, inputs: int, quantised: int, sums: int) -> None:
    """Rows at the beginning of work times four blocks, in the three ways there are."""
    size = int16_matmul.row_size(inputs)
    tile = quantised + rows * size
    for row in range(rows):
        for chunk in range(int16_matmul.chunks(inputs)):
            int16_matmul.quantise(work, row * inputs, inputs, chunk, quantised + row * size, 1)
            int16_matmul.quantise(work, row * inputs, inputs, chunk, tile + row, rows)
    block = inputs // 2 * 16
    for row in range(rows):
        x = quantised + row * size
        row_vectors.store_rows(
            work, sums + row * 64, 16, int16_matmul.row_times_four_blocks(data, 0, work, 0, inputs, work, x)
        )
    for half in range(2):
        a, b = int16_matmul.rows_times_two_blocks(
            row_vectors.zeros(3), data, 2 * half * block, work, 0, inputs, work, tile, rows
        )
        row_vectors.store_rows(work, sums + rows * 64 + 32 * half, 64, a)
        row_vectors.store_rows(work, sums + rows * 64 + 32 * half + 16, 64, b)
    for i in range(4):
        a = int16_matmul.rows_times_block(row_vectors.zeros(3), data, i * block, work, 0, inputs, work, tile, rows)
        row_vectors.store_rows(work, sums + 2 * rows * 64 + 16 * i, 64, a)


def multiplied(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Three rows (3, in) times int8 weights (in, 64); all three ways give the same to the bit."""
    rows, inputs = x.shape
    data = np.zeros(weights.size // 2, np.int16)
    numba.njit(block_packing.pack_pairs)(weights, data, 0, inputs)
    quantised = rows * inputs
    sums = quantised + 2 * rows * inputs
    work = np.zeros(sums + 3 * rows * 64, np.float32)
    work[:quantised] = x.ravel()
    products(data, work, rows, inputs, quantised, sums)
    ways = work[sums:].reshape(3, rows, 64)
    np.testing.assert_array_equal(ways[1], ways[0])
    np.testing.assert_array_equal(ways[2], ways[0])
    return ways[0]


def some_weights(inputs: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-127, 128, (inputs, 64)).astype(np.int8)


@pytest.mark.parametrize("inputs", [32, 256, 288, 768, 4128, 6400])
def test_rows_with_outliers_are_off_by_no_more_than_rounding_to_16_bits(inputs: int) -> None:
    """Some channels are 100 times the others, as in GPT-2; a chunk's scale follows its own largest value."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, inputs)).astype(np.float32)
    x[:, ::97] *= 100
    x[1] *= 1e-6
    weights = some_weights(inputs)
    exact = x.astype(np.float64) @ weights
    allowed = np.zeros_like(exact)
    for first in range(0, inputs, int16_matmul.CHUNK):
        part = np.s_[first : first + int16_matmul.CHUNK]
        step = np.abs(x[:, part]).max(axis=1, keepdims=True) / 32767
        allowed += 0.501 * step * np.abs(weights[part].astype(np.float64)).sum(axis=0)
    allowed += 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(weights.astype(np.float64)))
    error = np.abs(multiplied(x, weights) - exact)
    assert (error <= allowed).all()
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 2e-4


def test_the_largest_sum_of_a_chunk_fits() -> None:
    weights = np.full((512, 64), -127, np.int8)
    weights[:, 1::2] = 127
    x = np.full((3, 512), 5.0, np.float32)
    x[1] = -5.0
    expected = 5 * 127 * 512 * np.where(np.arange(64) % 2, 1.0, -1.0)
    np.testing.assert_allclose(multiplied(x, weights), np.stack([expected, -expected, expected]), rtol=1e-6)


def test_a_row_of_nothing_is_nothing_and_what_is_no_number_stays_none() -> None:
    x = np.zeros((3, 288), np.float32)
    x[1] = 1e-38  # too small to divide by
    x[2, 285] = np.nan
    result = multiplied(x, some_weights(288))
    assert not result[0].any()
    np.testing.assert_allclose(result[1], 0, atol=1e-30)
    assert np.isnan(result[2]).all()
    x[2, 285] = -np.inf
    assert not np.isfinite(multiplied(x, some_weights(288))[2]).any()
