"""Packs matrices into the blocks that decode_step.py reads, and quantizes float32 blocks to int8 or int4.

A block is 16 outputs of a matrix, laid out (in, 16); see matmul.py. `quantize` gives the same integers and scales as
quantization.py; it packs a copy of a model in memory in a fraction of a second.
"""

# mypy: ignore-errors

import numpy as np
from numba import types
from numba.extending import overload

from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu.int4_matmul import store_nibbles
from gptcli.kernels.cpu.matmul import GROUP, LANES
from gptcli.kernels.cpu.simd import OPTIONS, jit


def pack_pairs(source, target, first, inputs):
    """Write an int8 matrix (in, out) into int16 blocks (inputs / 2, 16), from element ``first`` on.

    int16_matmul.py describes the layout.
    """
    rows, columns = source.shape
    for block in range((columns + LANES - 1) // LANES):
        kept = min(LANES, columns - block * LANES)
        start = first + block * inputs // 2 * LANES
        for k in range(0, rows, 2):
            cells = target[start + k // 2 * LANES :]
            for i in range(kept):
                cells[i] = source[k, block * LANES + i] & 255
            if k + 1 < rows:
                for i in range(kept):
                    cells[i] |= source[k + 1, block * LANES + i] << 8


def pack_nibbles(source, target, first, inputs):
    """Write int4 values (in / 2, out), as quantization.py has them, into uint32 blocks (inputs / 8, 16).

    int4_matmul.py describes the layout; ``first`` is the target's first element.
    """
    rows, columns = source.shape
    for block in range((columns + LANES - 1) // LANES):
        kept = min(LANES, columns - block * LANES)
        start = first + block * inputs // 8 * LANES
        for row in range(rows):  # inputs 2 row and 2 row + 1
            cells = target[start + row // 4 * LANES :]
            place = np.uint32(4 * (row % 4))
            for i in range(kept):
                byte = np.uint32(source[row, block * LANES + i])
                cells[i] |= ((byte & np.uint32(15)) | (byte >> np.uint32(4)) << np.uint32(16)) << place


def quantize(source, source_at, target, at, scale, scale_at, inputs, count):
    """Pack ``count`` blocks (inputs, 16) of float32 from source[source_at:] into target[at:] and scale[scale_at:]."""
    for block in range(count):
        start = source_at + block * inputs * LANES
        quantize_block(source, start, target, at, scale, scale_at, inputs, block)


def quantize_block(source, start, target, at, scale, scale_at, inputs, block):
    """Pack the float32 block at source[start:] as block number ``block`` after target[at:] and scale[scale_at:]."""


@overload(quantize_block, jit_options=OPTIONS)
def _quantize_block_of(source, start, target, at, scale, scale_at, inputs, block):
    if target.dtype == types.uint8:
        return _int4_block
    if target.dtype == types.uint32:
        return _int4_block_of_eights
    if target.dtype == types.int16:
        return _int8_block_of_pairs
    return _int8_block


@jit
def _int8_scale(source, start, inputs):
    largest = v.splat(np.float32(0.0))
    for k in range(inputs):
        weights = v.load(source, start + k * LANES)
        largest = v.maximum(largest, v.maximum(weights, _minus(weights)))
    factor = v.divide(largest, v.splat(np.float32(127.0)))
    return v.where_less(v.splat(np.float32(0.0)), factor, factor, v.splat(np.float32(1.0)))


def _int8_block_of_pairs(source, start, target, at, scale, scale_at, inputs, block):
    """Put input 2j in the low byte of an int16 and input 2j + 1 in the high byte; see int16_matmul.py."""
    factor = _int8_scale(source, start, inputs)
    v.store(scale, scale_at + block * LANES, factor)
    byte = v.splat(np.float32(256.0))
    for k in range(0, inputs, 2):
        low = v.nearest(v.divide(v.load(source, start + k * LANES), factor))
        high = v.nearest(v.divide(v.load(source, start + (k + 1) * LANES), factor))
        low = v.where_less(low, v.splat(np.float32(0.0)), v.add(low, byte), low)
        v.store(target, at + (block * inputs + k) // 2 * LANES, v.fma(high, byte, low))


def _int8_block(source, start, target, at, scale, scale_at, inputs, block):
    factor = _int8_scale(source, start, inputs)
    v.store(scale, scale_at + block * LANES, factor)
    for k in range(inputs):
        values = v.nearest(v.divide(v.load(source, start + k * LANES), factor))
        v.store(target, at + (block * inputs + k) * LANES, values)


@jit
def _group_scale(source, here):
    """The scale w / s, s in {-8, -7.3, 7.5}, of each output of a group, with the smallest squared error.

    w is the weight of the largest magnitude in the group at source[here:].
    """
    low = high = v.load(source, here)
    for k in range(1, GROUP):
        weights = v.load(source, here + k * LANES)
        low, high = v.where_less(weights, low, weights, low), v.maximum(high, weights)
    largest = v.where_less(high, _minus(low), low, high)
    factor, least = _fit(source, here, largest, np.float32(-8.0))
    for steps in (np.float32(-7.3), np.float32(7.5)):
        other, error = _fit(source, here, largest, steps)
        factor = v.where_less(error, least, other, factor)
        least = v.where_less(error, least, error, least)
    return factor


@jit
def _unsigned(source, at, inverse):
    """16 weights times ``inverse`` as whole numbers in 0 … 15: their integers plus 8."""
    return v.add(_whole(v.load(source, at), inverse), v.splat(np.float32(8.0)))


def _int4_block(source, start, target, at, scale, scale_at, inputs, block):
    for group in range(inputs // GROUP):
        here = start + group * GROUP * LANES
        factor = _group_scale(source, here)
        v.store(scale, scale_at + (block * (inputs // GROUP) + group) * LANES, factor)
        inverse, first = _inverse(factor), at + (block * inputs + group * GROUP) // 2 * LANES
        for k in range(0, GROUP, 2):
            low, high = _unsigned(source, here + k * LANES, inverse), _unsigned(source, here + (k + 1) * LANES, inverse)
            v.store(target, first + k // 2 * LANES, v.fma(high, v.splat(np.float32(16.0)), low))


def _int4_block_of_eights(source, start, target, at, scale, scale_at, inputs, block):
    for group in range(inputs // GROUP):
        here = start + group * GROUP * LANES
        factor = _group_scale(source, here)
        v.store(scale, scale_at + (block * (inputs // GROUP) + group) * LANES, factor)
        inverse, first = _inverse(factor), at + (block * inputs + group * GROUP) // 8 * LANES
        for k in range(0, GROUP, 8):
            p = here + k * LANES
            values = (
                _unsigned(source, p, inverse), _unsigned(source, p + LANES, inverse),
                _unsigned(source, p + 2 * LANES, inverse), _unsigned(source, p + 3 * LANES, inverse),
                _unsigned(source, p + 4 * LANES, inverse), _unsigned(source, p + 5 * LANES, inverse),
                _unsigned(source, p + 6 * LANES, inverse), _unsigned(source, p + 7 * LANES, inverse),
            )  # fmt: skip
            store_nibbles(target, first + k // 8 * LANES, values)


@jit
def _fit(source, here, largest, steps):
    """The scales largest / ``steps`` of a group as bfloat16, one per output, and their sums of squared errors."""
    factor = v.to_bfloat16(v.divide(largest, v.splat(steps)))
    inverse, error = _inverse(factor), v.splat(np.float32(0.0))
    for k in range(GROUP):
        weights = v.load(source, here + k * LANES)
        difference = v.subtract(v.multiply(_whole(weights, inverse), factor), weights)
        error = v.add(error, v.multiply(difference, difference))
    return factor, error


@jit
def _whole(weights, inverse):
    """weights * inverse, rounded to the nearest integers and limited to [-8, 7]."""
    values = v.maximum(v.nearest(v.multiply(weights, inverse)), v.splat(np.float32(-8.0)))
    return v.where_less(values, v.splat(np.float32(7.0)), values, v.splat(np.float32(7.0)))


@jit
def _inverse(factor):
    """1 / factor for each lane; 1 where factor is 0, since all weights of that group are then 0."""
    size, one = v.maximum(factor, _minus(factor)), v.splat(np.float32(1.0))
    return v.divide(one, v.where_less(v.splat(np.float32(0.0)), size, factor, one))


@jit
def _minus(x):
    return v.subtract(v.splat(np.float32(0.0)), x)
