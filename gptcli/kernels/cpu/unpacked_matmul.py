"""Products of tiles of rows with two blocks of int4 weights, which are unpacked once for all tiles; see matmul.py.

Weights in uint8 become float32, those in uint32 pairs of int16: what their products would unpack again for each tile.
"""

# mypy: ignore-errors

from numba import types
from numba.extending import overload

from gptcli.kernels.cpu import int4_matmul
from gptcli.kernels.cpu import row_vectors as r
from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu.matmul import GROUP, LANES
from gptcli.kernels.cpu.simd import OPTIONS


def unpack(data, start, count, work, to):
    """Write ``count`` elements of int4 weights to work[to:], as their products read them, and return True.

    Returns False for other weights. int8 is as fast without unpacking: it takes a quarter of the bytes of float32 from
    the CPU cache.
    """


@overload(unpack, jit_options=OPTIONS)
def _unpack_of(data, start, count, work, to):
    if data.dtype == types.uint8:

        def four_bits(data, start, count, work, to):
            for i in range(0, count, LANES):
                low, high = v.load_nibbles(data, start + i)
                v.store(work, to + 2 * i, low)
                v.store(work, to + 2 * i + LANES, high)
            return True

        return four_bits

    if data.dtype == types.uint32:

        def nibbles(data, start, count, work, to):
            int4_matmul.unpack(data, start, count, work, to)
            return True

        return nibbles

    return lambda data, start, count, work, to: False


def rows_times_two_unpacked(sums, data, work, start, scale, scale_start, inputs, at, pitch):
    """As `matmul.rows_times_two_blocks`, bit-identical, for two blocks of data that `unpack` wrote to work[start:]."""


@overload(rows_times_two_unpacked, jit_options=OPTIONS)
def _rows_times_two_unpacked_of(sums, data, work, start, scale, scale_start, inputs, at, pitch):
    if data.dtype == types.uint32:
        product = int4_matmul.rows_times_two_unpacked
        return lambda sums, data, work, start, scale, scale_start, inputs, at, pitch: product(
            sums, work, start, scale, scale_start, inputs, at, pitch
        )

    def floats(sums, data, work, start, scale, scale_start, inputs, at, pitch):
        a, b = sums, sums
        step, scale_step = inputs * LANES, inputs // GROUP * LANES
        for group in range(inputs // GROUP):
            part_a, part_b = r.zeros_like(sums), r.zeros_like(sums)
            for k in range(group * GROUP, (group + 1) * GROUP):
                p = start + k * LANES
                left, right = v.load(work, p), v.load(work, p + step)
                part_a, part_b = r.fma_rows_twice(part_a, part_b, left, right, work, at + k * pitch, 1)
            s = scale_start + group * LANES
            a = r.fma_all(part_a, v.load(scale, s), a)
            b = r.fma_all(part_b, v.load(scale, s + scale_step), b)
        return a, b

    return floats
