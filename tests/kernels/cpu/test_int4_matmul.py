"""Products of int4 weights and int16 rows against exact ones, in the four ways that there are."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", exc_type=ImportError)

import numba

from gptcli.kernels.cpu import block_packing, int4_matmul, int16_matmul, matmul, row_vectors, unpacked_matmul
from gptcli.kernels.cpu.memory_layout import pack, padded
from gptcli.kernels.cpu.target import INTEGER_PRODUCTS
from gptcli.model.quantization import Packed, dequantize, quantize

pytestmark = pytest.mark.skipif(not INTEGER_PRODUCTS, reason="this machine does not multiply pairs of int16")


@numba.njit
def products(data: Any, scale: Any, work: Any, rows: int, inputs: int, quantised: int, sums: int) -> None:
    """Rows at the beginning of work times four blocks, in the four ways there are."""
    size = int4_matmul.row_size(inputs)
    tile = quantised + rows * size
    for row in range(rows):
        for chunk in range(int16_matmul.chunks(inputs)):
            int4_matmul.quantise(work, row * inputs, inputs, chunk, quantised + row * size, 1)
            int4_matmul.quantise(work, row * inputs, inputs, chunk, tile + row, rows)
    block, scales = inputs // 8 * 16, inputs // 32 * 16
    for row in range(rows):
        x = quantised + row * size
        four = int4_matmul.row_times_four_blocks(data, 0, scale, 0, inputs, work, x)
        row_vectors.store_rows(work, sums + row * 64, 16, four)
    for half in range(2):
        first, its = 2 * half * block, 2 * half * scales
        a, b = int4_matmul.rows_times_two_blocks(
            row_vectors.zeros(3), data, first, scale, its, inputs, work, tile, rows
        )
        row_vectors.store_rows(work, sums + rows * 64 + 32 * half, 64, a)
        row_vectors.store_rows(work, sums + rows * 64 + 32 * half + 16, 64, b)
    for i in range(4):
        a = int4_matmul.rows_times_block(
            row_vectors.zeros(3), data, i * block, scale, i * scales, inputs, work, tile, rows
        )
        row_vectors.store_rows(work, sums + 2 * rows * 64 + 16 * i, 64, a)
    unpacked = sums + 4 * rows * 64
    for half in range(2):
        first, its = 2 * half * block, 2 * half * scales
        unpacked_matmul.unpack(data, first, 2 * block, work, unpacked)
        a, b = unpacked_matmul.rows_times_two_unpacked(
            row_vectors.zeros(3), data, work, unpacked, scale, its, inputs, tile, rows
        )
        row_vectors.store_rows(work, sums + 3 * rows * 64 + 32 * half, 64, a)
        row_vectors.store_rows(work, sums + 3 * rows * 64 + 32 * half + 16, 64, b)


def blocks_of(weights: Packed) -> tuple[np.ndarray, np.ndarray]:
    inputs, outputs = 2 * weights.values.shape[0], weights.values.shape[1]
    data = np.zeros(inputs * padded(outputs, 16) // 8, np.uint32)
    scale = np.zeros(inputs * padded(outputs, 16) // 32, np.uint16)
    numba.njit(block_packing.pack_nibbles)(weights.values, data, 0, inputs)
    pack(weights.scale, scale, 0, inputs // 32)
    return data, scale


def multiplied(x: np.ndarray, weights: Packed) -> np.ndarray:
    """Three rows (3, in) times int4 weights (in, 64); all four ways give the same to the bit."""
    rows, inputs = x.shape
    data, scale = blocks_of(weights)
    quantised = rows * inputs
    sums = quantised + 2 * rows * (inputs + inputs // 32 + 64)
    unpacked = sums + 4 * rows * 64
    work = np.zeros(unpacked + inputs * 16, np.float32)
    work[:quantised] = x.ravel()
    products(data, scale, work, rows, inputs, quantised, sums)
    ways = work[sums:unpacked].reshape(4, rows, 64)
    for way in ways[1:]:
        np.testing.assert_array_equal(way, ways[0])
    return ways[0]


def some_weights(inputs: int) -> Packed:
    return quantize(np.random.default_rng(1).standard_normal((inputs, 64)).astype(np.float32), 4)


@pytest.mark.parametrize("inputs", [32, 256, 288, 768, 4128, 6400])
def test_rows_with_outliers_are_off_by_no_more_than_rounding_to_16_bits(inputs: int) -> None:
    """Some channels are 100 times the others, as in GPT-2; a chunk's scale follows its own largest value."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, inputs)).astype(np.float32)
    x[:, ::97] *= 100
    x[1] *= 1e-6
    packed = some_weights(inputs)
    weights = dequantize(packed).astype(np.float64)
    exact = x.astype(np.float64) @ weights
    allowed = np.zeros_like(exact)
    for first in range(0, inputs, int16_matmul.CHUNK):
        part = np.s_[first : first + int16_matmul.CHUNK]
        step = np.abs(x[:, part]).max(axis=1, keepdims=True) / 32767
        allowed += 0.501 * step * np.abs(weights[part]).sum(axis=0)
    allowed += 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(weights))
    error = np.abs(multiplied(x, packed) - exact)
    assert (error <= allowed).all()
    assert np.sqrt((error**2).mean() / (exact**2).mean()) < 2e-4


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0xF0])
def test_the_largest_sums_of_a_group_fit(byte: int) -> None:
    one = np.full((32, 64), 0x3F80, np.uint16)  # 1 as bfloat16, for 32 groups
    packed = Packed(np.full((512, 64), byte, np.uint8), one, 1024)
    x = np.full((3, 1024), 5.0, np.float32)
    x[1] = -5.0
    x[2, 1::2] = -5.0
    expected = x.astype(np.float64) @ dequantize(packed).astype(np.float64)
    np.testing.assert_allclose(multiplied(x, packed), expected, rtol=1e-6)


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


@numba.njit
def read(data: Any, scale: Any, inputs: int, found: np.ndarray) -> None:
    for k in range(inputs):
        for n in range(found.shape[1]):
            found[k, n] = matmul.weight(data, 0, scale, 0, inputs, k, n)


@pytest.mark.parametrize("outputs", [64, 37])
def test_packing_a_file_and_quantizing_in_memory_give_the_same_weights(outputs: int) -> None:
    weights = np.random.default_rng(2).standard_normal((96, outputs)).astype(np.float32)
    packed = quantize(weights, 4)
    data, scale = blocks_of(packed)
    found = np.zeros((96, outputs), np.float32)
    read(data, scale, 96, found)
    np.testing.assert_array_equal(found, dequantize(packed))
    blocks = np.zeros(96 * padded(outputs, 16), np.float32)
    pack(weights, blocks, 0, 96)
    anew, its = np.zeros_like(data), np.zeros_like(scale)
    numba.njit(block_packing.quantize)(blocks, 0, anew, 0, its, 0, 96, padded(outputs, 16) // 16)
    read(anew, its, 96, found)
    np.testing.assert_array_equal(found, dequantize(packed))
