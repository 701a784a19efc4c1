"""Matrices into the blocks that kernels.py walks through: as they come, or from blocks of float32 into int8 or int4.

A block is 16 outputs of a matrix, laid out (in, 16); see products.py. What `quantize` makes of a weight is what
quantization.py makes of it: a model that is in memory already gets its packed twin in a fraction of a second.
"""

# mypy: ignore-errors

import numpy as np
from numba import types
from numba.extending import overload

from gptcli.kernels.cpu import simd
from gptcli.kernels.cpu.matmul import GROUP, LANES
from gptcli.kernels.cpu.simd import OPTIONS, jit


def pack(source, target, first, inputs):
    """Write a matrix (in, out) of any strides into blocks (inputs, 16) of ``target``, from element ``first`` on."""
    rows, columns = source.shape
    for block in range((columns + LANES - 1) // LANES):
        kept = min(LANES, columns - block * LANES)
        start = first + block * inputs * LANES
        for k in range(rows):
            for i in range(kept):
                target[start + k * LANES + i] = source[k, block * LANES + i]


def pack_pairs(source, target, first, inputs):
    """Write a matrix (in, out) of int8 into blocks (inputs / 2, 16) of int16: see integers.py."""
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


def quantize(source, source_at, target, at, scale, scale_at, inputs, count):
    """Pack ``count`` blocks (inputs, 16) of float32 from source[source_at:] into target[at:] and scale[scale_at:]."""
    for block in range(count):
        start = source_at + block * inputs * LANES
        quantize_block(source, start, target, at, scale, scale_at, inputs, block)


def quantize_block(source, start, target, at, scale, scale_at, inputs, block):
    """Pack the float32 block at source[start:] as the block of that number of ``target`` and ``scale``."""


@overload(quantize_block, jit_options=OPTIONS)
def _quantize_block_of(source, start, target, at, scale, scale_at, inputs, block):
    if target.dtype == types.uint8:
        return _int4_block
    if target.dtype == types.int16:
        return _int8_block_of_pairs
    return _int8_block


@jit
def _int8_scale(source, start, inputs):
    largest = simd.splat(np.float32(0.0))
    for k in range(inputs):
        weights = simd.load(source, start + k * LANES)
        largest = simd.maximum(largest, simd.maximum(weights, _minus(weights)))
    factor = simd.divide(largest, simd.splat(np.float32(127.0)))
    return simd.where_less(simd.splat(np.float32(0.0)), factor, factor, simd.splat(np.float32(1.0)))


def _int8_block_of_pairs(source, start, target, at, scale, scale_at, inputs, block):
    """See integers.py: input 2j in the low byte of an int16, 2j + 1 in the high one."""
    factor = _int8_scale(source, start, inputs)
    simd.store(scale, scale_at + block * LANES, factor)
    byte = simd.splat(np.float32(256.0))
    for k in range(0, inputs, 2):
        low = simd.nearest(simd.divide(simd.load(source, start + k * LANES), factor))
        high = simd.nearest(simd.divide(simd.load(source, start + (k + 1) * LANES), factor))
        low = simd.where_less(low, simd.splat(np.float32(0.0)), simd.add(low, byte), low)
        simd.store(target, at + (block * inputs + k) // 2 * LANES, simd.fma(high, byte, low))


def _int8_block(source, start, target, at, scale, scale_at, inputs, block):
    factor = _int8_scale(source, start, inputs)
    simd.store(scale, scale_at + block * LANES, factor)
    for k in range(inputs):
        values = simd.nearest(simd.divide(simd.load(source, start + k * LANES), factor))
        simd.store(target, at + (block * inputs + k) * LANES, values)


def _int4_block(source, start, target, at, scale, scale_at, inputs, block):
    """Of the scales around each group's largest weight, the one with the smallest squared error."""
    for group in range(inputs // GROUP):
        here = start + group * GROUP * LANES
        low = high = simd.load(source, here)
        for k in range(1, GROUP):
            weights = simd.load(source, here + k * LANES)
            low, high = simd.where_less(weights, low, weights, low), simd.maximum(high, weights)
        largest = simd.where_less(high, _minus(low), low, high)
        factor, least = _fit(source, here, largest, np.float32(-8.0))
        for steps in (np.float32(-7.3), np.float32(7.5)):
            other, error = _fit(source, here, largest, steps)
            factor = simd.where_less(error, least, other, factor)
            least = simd.where_less(error, least, error, least)
        simd.store(scale, scale_at + (block * (inputs // GROUP) + group) * LANES, factor)
        inverse, first = _inverse(factor), at + (block * inputs + group * GROUP) // 2 * LANES
        eight = simd.splat(np.float32(8.0))
        for k in range(0, GROUP, 2):
            low = simd.add(_whole(simd.load(source, here + k * LANES), inverse), eight)
            high = simd.add(_whole(simd.load(source, here + (k + 1) * LANES), inverse), eight)
            simd.store(target, first + k // 2 * LANES, simd.fma(high, simd.splat(np.float32(16.0)), low))


@jit
def _fit(source, here, largest, steps):
    """The scale that makes the largest weights of a group ``steps``, and each one's sum of squared errors."""
    factor = simd.to_bfloat16(simd.divide(largest, simd.splat(steps)))
    inverse, error = _inverse(factor), simd.splat(np.float32(0.0))
    for k in range(GROUP):
        weights = simd.load(source, here + k * LANES)
        difference = simd.subtract(simd.multiply(_whole(weights, inverse), factor), weights)
        error = simd.add(error, simd.multiply(difference, difference))
    return factor, error


@jit
def _whole(weights, inverse):
    """The whole numbers in [-8, 7] that come closest."""
    values = simd.maximum(simd.nearest(simd.multiply(weights, inverse)), simd.splat(np.float32(-8.0)))
    return simd.where_less(values, simd.splat(np.float32(7.0)), values, simd.splat(np.float32(7.0)))


@jit
def _inverse(factor):
    """One over each; 1 where it is 0, as then all weights are."""
    size, one = simd.maximum(factor, _minus(factor)), simd.splat(np.float32(1.0))
    return simd.divide(one, simd.where_less(simd.splat(np.float32(0.0)), size, factor, one))


@jit
def _minus(x):
    return simd.subtract(simd.splat(np.float32(0.0)), x)
