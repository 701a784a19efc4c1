"""The matrix products of decode_step.py: one function per dtype of weights and per number of blocks or rows.

A block is 16 outputs of a matrix, laid out (in, 16). Weights are float32, int8, two int8 in an int16, two int4 in a
uint8 or eight in a uint32; numba selects the function by the array's dtype. An int8 scale multiplies the complete sum
(`output_scale`); an int4 scale multiplies the sum of its group. All sums stay in registers, and all functions add up a
row's products in the same order.

Rows are stored in tiles (in, TILE), so that the elements multiplied by one vector of weights are adjacent: from
row-major rows, the address arithmetic alone would take a quarter of the time of the products. A single row is stored
(in, 1). A row's inputs are thus ``pitch`` elements apart, `TILE` or 1 (`write_part`). They are float32, except for int8
weights in int16 and int4 weights in uint32: int16_matmul.py and int4_matmul.py multiply those by rows of int16.
"""

# mypy: ignore-errors

import numpy as np
from numba import types
from numba.extending import overload

from gptcli.kernels.cpu import int4_matmul, int16_matmul
from gptcli.kernels.cpu import row_vectors as r
from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu.simd import OPTIONS, jit
from gptcli.kernels.cpu.target import TILE as TILE

LANES = v.WIDTH
GROUP = 32  # inputs that share an int4 scale
IN_INTEGERS = {types.int16: int16_matmul, types.uint32: int4_matmul}  # products by VNNI, with rows of int16
# Prefetch distance in float32 weights (2 KiB) for several rows: their products fill the core's instruction queue, so
# that by itself it loads too few cache lines ahead. int8 and int4 need none: arithmetic is their limit.
# int16 has a distance of its own (int16_matmul.py).
AHEAD = 512
PART = int16_matmul.CHUNK  # inputs of a row that are written at once


def rows_times_block(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    """sums[i] + row i @ block (inputs, 16), without the int8 scale; row i begins at x[at + i]."""


@overload(rows_times_block, jit_options=OPTIONS)
def _rows_times_block_of(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    if data.dtype == types.uint8:

        def four_bits(sums, data, start, scale, scale_start, inputs, x, at, pitch):
            for group in range(inputs // GROUP):
                part = r.zeros_like(sums)
                for k in range(group * GROUP, (group + 1) * GROUP, 2):
                    low, high = v.load_nibbles(data, start + k // 2 * LANES)
                    part = r.fma_rows(part, low, x, at + k * pitch, 1)
                    part = r.fma_rows(part, high, x, at + (k + 1) * pitch, 1)
                sums = r.fma_all(part, v.load(scale, scale_start + group * LANES), sums)
            return sums

        return four_bits

    if data.dtype in IN_INTEGERS:
        product = IN_INTEGERS[data.dtype].rows_times_block

        def integers(sums, data, start, scale, scale_start, inputs, x, at, pitch):
            return product(sums, data, start, scale, scale_start, inputs, x, at, pitch)

        return integers

    floats = data.dtype == types.float32

    def whole(sums, data, start, scale, scale_start, inputs, x, at, pitch):
        for k in range(inputs):
            if floats:
                v.prefetch(data, start + k * LANES + AHEAD)
            sums = r.fma_rows(sums, v.load(data, start + k * LANES), x, at + k * pitch, 1)
        return sums

    return whole


def rows_times_two_blocks(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    """As `rows_times_block` for two adjacent blocks: each input loaded multiplies two vectors of weights."""


@overload(rows_times_two_blocks, jit_options=OPTIONS)
def _rows_times_two_blocks_of(sums, data, start, scale, scale_start, inputs, x, at, pitch):
    if data.dtype == types.uint8:

        def four_bits(sums, data, start, scale, scale_start, inputs, x, at, pitch):
            a, b = sums, sums
            step, scale_step = inputs // 2 * LANES, inputs // GROUP * LANES
            for group in range(inputs // GROUP):
                part_a, part_b = r.zeros_like(sums), r.zeros_like(sums)
                for k in range(group * GROUP, (group + 1) * GROUP, 2):
                    p = start + k // 2 * LANES
                    low, high = v.load_nibbles(data, p)
                    low_b, high_b = v.load_nibbles(data, p + step)
                    part_a, part_b = r.fma_rows_twice(part_a, part_b, low, low_b, x, at + k * pitch, 1)
                    part_a, part_b = r.fma_rows_twice(part_a, part_b, high, high_b, x, at + (k + 1) * pitch, 1)
                s = scale_start + group * LANES
                a = r.fma_all(part_a, v.load(scale, s), a)
                b = r.fma_all(part_b, v.load(scale, s + scale_step), b)
            return a, b

        return four_bits

    if data.dtype in IN_INTEGERS:
        product = IN_INTEGERS[data.dtype].rows_times_two_blocks

        def integers(sums, data, start, scale, scale_start, inputs, x, at, pitch):
            return product(sums, data, start, scale, scale_start, inputs, x, at, pitch)

        return integers

    floats = data.dtype == types.float32

    def whole(sums, data, start, scale, scale_start, inputs, x, at, pitch):
        a, b = sums, sums
        for k in range(inputs):
            p = start + k * LANES
            if floats:
                v.prefetch(data, p + AHEAD)
                v.prefetch(data, p + inputs * LANES + AHEAD)
            left, right = v.load(data, p), v.load(data, p + inputs * LANES)
            a, b = r.fma_rows_twice(a, b, left, right, x, at + k * pitch, 1)
        return a, b

    return whole


def row_times_four_blocks(data, start, scale, scale_start, inputs, x, at):
    """x[at : + inputs] times four adjacent blocks: four independent chains of sums hide the latency of an fma."""


@overload(row_times_four_blocks, jit_options=OPTIONS)
def _row_times_four_blocks_of(data, start, scale, scale_start, inputs, x, at):
    if data.dtype == types.uint8:

        def four_bits(data, start, scale, scale_start, inputs, x, at):
            a, b, c, d = r.zeros(4)
            step, scale_step = inputs // 2 * LANES, inputs // GROUP * LANES
            for group in range(inputs // GROUP):
                part_a, part_b, part_c, part_d = r.zeros(4)
                for k in range(group * GROUP, (group + 1) * GROUP, 2):
                    even, odd = v.splat(x[at + k]), v.splat(x[at + k + 1])
                    p = start + k // 2 * LANES
                    low, high = v.load_nibbles(data, p)
                    part_a = v.fma(odd, high, v.fma(even, low, part_a))
                    low, high = v.load_nibbles(data, p + step)
                    part_b = v.fma(odd, high, v.fma(even, low, part_b))
                    low, high = v.load_nibbles(data, p + 2 * step)
                    part_c = v.fma(odd, high, v.fma(even, low, part_c))
                    low, high = v.load_nibbles(data, p + 3 * step)
                    part_d = v.fma(odd, high, v.fma(even, low, part_d))
                s = scale_start + group * LANES
                a, b = v.fma(part_a, v.load(scale, s), a), v.fma(part_b, v.load(scale, s + scale_step), b)
                c = v.fma(part_c, v.load(scale, s + 2 * scale_step), c)
                d = v.fma(part_d, v.load(scale, s + 3 * scale_step), d)
            return a, b, c, d

        return four_bits

    if data.dtype in IN_INTEGERS:
        product = IN_INTEGERS[data.dtype].row_times_four_blocks
        return lambda data, start, scale, scale_start, inputs, x, at: product(
            data, start, scale, scale_start, inputs, x, at
        )

    def whole(data, start, scale, scale_start, inputs, x, at):
        return row_times_four_panels(data, start, inputs * LANES, LANES, inputs, x, at)

    return whole


@jit
def row_times_four_panels(data, start, step, apart, inputs, x, at):
    """x[at : + inputs] times four panels (inputs, 16): panels are ``step``, a panel's rows ``apart`` elements apart."""
    a, b, c, d = r.zeros(4)
    for k in range(inputs):
        scalar = v.splat(x[at + k])
        p = start + k * apart
        a = v.fma(scalar, v.load(data, p), a)
        b = v.fma(scalar, v.load(data, p + step), b)
        c = v.fma(scalar, v.load(data, p + 2 * step), c)
        d = v.fma(scalar, v.load(data, p + 3 * step), d)
    return a, b, c, d


@jit
def rows_times_panel(sums, data, start, apart, inputs, x, at, stride):
    """sums[i] + x[at + i stride : + inputs] times one panel (inputs, 16), its rows ``apart`` elements apart."""
    for k in range(inputs):
        sums = r.fma_rows(sums, v.load(data, start + k * apart), x, at + k, stride)
    return sums


@jit
def rows_times_two_panels(sums, data, start, step, apart, inputs, x, at, stride):
    """As `rows_times_panel` for two panels that begin ``step`` apart."""
    a, b = sums, sums
    for k in range(inputs):
        p = start + k * apart
        a, b = r.fma_rows_twice(a, b, v.load(data, p), v.load(data, p + step), x, at + k, stride)
    return a, b


def output_scale(data, scale, at):
    """The 16 factors of a block's complete sums: the int8 scales, or 1 for other weights."""


@overload(output_scale, jit_options=OPTIONS)
def _output_scale_of(data, scale, at):
    if data.dtype in (types.int8, types.int16):
        return lambda data, scale, at: v.load(scale, at)
    return lambda data, scale, at: v.splat(np.float32(1.0))


def weight(data, start, scale, scale_start, inputs, k, n):
    """The weight from input k to output n of a matrix as a float32."""


@overload(weight, jit_options=OPTIONS)
def _weight_of(data, start, scale, scale_start, inputs, k, n):
    if data.dtype == types.uint8:

        def four_bits(data, start, scale, scale_start, inputs, k, n):
            block, lane = n // LANES, n % LANES
            byte = data[start + (block * (inputs // 2) + k // 2) * LANES + lane]
            value = np.float32(byte >> 4 if k % 2 else byte & 15) - np.float32(8.0)
            scales = v.load(scale, scale_start + (block * (inputs // GROUP) + k // GROUP) * LANES)
            return value * v.lane(scales, lane)

        return four_bits

    if data.dtype == types.int8:

        def eight_bits(data, start, scale, scale_start, inputs, k, n):
            return np.float32(data[start + (n // LANES * inputs + k) * LANES + n % LANES]) * scale[scale_start + n]

        return eight_bits

    if data.dtype == types.uint32:

        def nibbles(data, start, scale, scale_start, inputs, k, n):
            scales = v.load(scale, scale_start + (n // LANES * (inputs // GROUP) + k // GROUP) * LANES)
            return np.float32(int4_matmul.value(data, start, inputs, k, n)) * v.lane(scales, n % LANES)

        return nibbles

    if data.dtype == types.int16:

        def pairs(data, start, scale, scale_start, inputs, k, n):
            return np.float32(int16_matmul.weight(data, start, inputs, k, n)) * scale[scale_start + n]

        return pairs

    def whole(data, start, scale, scale_start, inputs, k, n):
        return data[start + (n // LANES * inputs + k) * LANES + n % LANES]

    return whole


def block_size(data, inputs):
    """Number of elements of data per block."""


@overload(block_size, jit_options=OPTIONS)
def _block_size_of(data, inputs):
    if data.dtype in (types.uint8, types.int16):
        return lambda data, inputs: inputs // 2 * LANES
    if data.dtype == types.uint32:
        return lambda data, inputs: inputs // int4_matmul.NIBBLES * LANES
    return lambda data, inputs: inputs * LANES


def scale_size(data, inputs):
    """Number of elements of scale per block; not used for float32 weights."""


@overload(scale_size, jit_options=OPTIONS)
def _scale_size_of(data, inputs):
    if data.dtype in (types.uint8, types.uint32):
        return lambda data, inputs: inputs // GROUP * LANES
    return lambda data, inputs: LANES


def row_size(data, inputs):
    """Number of elements of work per row."""


@overload(row_size, jit_options=OPTIONS)
def _row_size_of(data, inputs):
    if data.dtype in IN_INTEGERS:
        size = IN_INTEGERS[data.dtype].row_size
        return lambda data, inputs: size(inputs)
    return lambda data, inputs: inputs


def write_part(data, work, source, inputs, part, target, pitch):
    """Write part number ``part`` (`PART` inputs) of the floats work[source : + inputs] to the row at work[target]."""


@overload(write_part, jit_options=OPTIONS)
def _write_part_of(data, work, source, inputs, part, target, pitch):
    if data.dtype in IN_INTEGERS:
        quantise = IN_INTEGERS[data.dtype].quantise
        return lambda data, work, source, inputs, part, target, pitch: quantise(
            work, source, inputs, part, target, pitch
        )

    def whole(data, work, source, inputs, part, target, pitch):
        for k in range(part * PART, min((part + 1) * PART, inputs)):
            work[target + k * pitch] = work[source + k]

    return whole
