"""The compiled passes of a training step; compiled.py puts them to tensors.

A pass is a function of one address, which every thread of a team calls. There lies an order (int64): how many threads
have come, the next unit of work that nobody has taken, and what the pass is about, as its docstring lists it;
addresses are those of float32, a number with a fraction is float64.
"""

# mypy: ignore-errors

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu import train_attention
from gptcli.kernels.cpu.atomics import atomic_add
from gptcli.kernels.cpu.dropout_hash import kept, row_keys
from gptcli.kernels.cpu.matmul import LANES
from gptcli.kernels.cpu.simd import jit

PASSES = ("gelu", "dropout", "attend", "attend_backward")
COME, NEXT, ABOUT = 0, 8, 16  # a cache line apart
CELLS = ABOUT + 16
PORTION = 4096  # elements of a pass over single elements that a thread takes at once


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


@jit
def _floats(address):
    """The floats from an address on; the caller knows how many."""
    return carray(_pointer(address), (np.int64(1) << 40,), np.float32)


@jit
def _order(address):
    """An order as integers and as floats."""
    return carray(_pointer(address), (CELLS,), np.int64), carray(_pointer(address), (CELLS,), np.float64)


@jit
def _portion(order, count):
    """The next elements that nobody has taken: first, the end of whole vectors, and the end."""
    first = atomic_add(order, NEXT, PORTION)
    last = min(first + PORTION, count)
    return first, last - (last - first) % LANES, last


@jit
def _gelu_of(x):
    """x sigmoid(2u), which is GELU's tanh form, and its slope; u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    twice, one = np.float32(1.5957691216057308), v.splat(np.float32(1.0))
    square = v.multiply(x, x)
    inner = v.fma(square, v.splat(np.float32(0.044715)), one)
    power = v.exp(v.multiply(v.multiply(x, inner), v.splat(-twice)))
    share = v.divide(one, v.add(power, one))
    y = v.multiply(x, share)
    steepness = v.fma(square, v.splat(np.float32(3 * 0.044715) * twice), v.splat(twice))  # of 2u
    return y, v.fma(v.multiply(y, v.subtract(one, share)), steepness, share)


def gelu(address):
    """y = gelu(x) and, unless its address is 0, the slope there. About: x, y, slope, count."""
    order, _ = _order(address)
    x, y, slope = _floats(order[ABOUT]), _floats(order[ABOUT + 1]), _floats(order[ABOUT + 2])
    with_slope, count = order[ABOUT + 2] != 0, order[ABOUT + 3]
    while True:
        first, whole, last = _portion(order, count)
        if first >= count:
            break
        for i in range(first, whole, LANES):
            result, steepness = _gelu_of(v.load(x, i))
            v.store(y, i, result)
            if with_slope:
                v.store(slope, i, steepness)
        for i in range(whole, last):
            result, steepness = _gelu_of(v.splat(x[i]))
            y[i] = v.lane(result, 0)
            if with_slope:
                slope[i] = v.lane(steepness, 0)


def dropout(address):
    """y = what dropout keeps of x. About: x, y, count, seed, dropped (of 2^32), factor."""
    order, numbers = _order(address)
    x, y = _floats(order[ABOUT]), _floats(order[ABOUT + 1])
    count, seed, dropped = order[ABOUT + 2], order[ABOUT + 3], order[ABOUT + 4]
    factor = np.float32(numbers[ABOUT + 5])
    while True:
        first, whole, last = _portion(order, count)
        if first >= count:
            break
        for i in range(first, whole, LANES):
            v.store(y, i, v.multiply(v.load(x, i), kept(row_keys(seed, np.int64(i)), np.int64(0), dropped, factor)))
        for i in range(whole, last):
            y[i] = x[i] * v.lane(kept(row_keys(seed, np.int64(i)), np.int64(0), dropped, factor), 0)


@jit
def _about_attention(address):
    """What both passes of attention ask of an order, and where this thread's scratch begins."""
    order, numbers = _order(address)
    qkv, out, statistics = _floats(order[ABOUT]), _floats(order[ABOUT + 1]), _floats(order[ABOUT + 2])
    scratch, free = _floats(order[ABOUT + 3]), atomic_add(order, COME, 1) * order[ABOUT + 12]
    sizes = order[ABOUT + 4], order[ABOUT + 5], order[ABOUT + 6], order[ABOUT + 7]
    kept_by = order[ABOUT + 8], order[ABOUT + 9], np.float32(numbers[ABOUT + 10])
    return order, (qkv, out, statistics), sizes, np.float32(numbers[ABOUT + 11]), kept_by, scratch, free


def attend(address):
    """`training_attention.forward` of every head of every window.

    About: qkv, out, statistics, scratch, windows, heads, length, head size, seed, dropped (of 2^32), factor, scale,
    floats of scratch a thread.
    """
    order, (qkv, out, statistics), sizes, scale, (seed, dropped, factor), scratch, free = _about_attention(address)
    windows, heads, length, size = sizes
    while True:
        unit = atomic_add(order, NEXT, 1)
        if unit >= windows * heads:
            break
        train_attention.forward(
            qkv, out, statistics, unit // heads, unit % heads, heads, length, size, scale, seed, dropped, factor,
            scratch, free,
        )  # fmt: skip


def attend_backward(address):
    """`training_attention.backward` of every head of every window.

    About: as for `attend`, then dL/dout and where to write dL/dqkv.
    """
    order, (qkv, out, statistics), sizes, scale, (seed, dropped, factor), scratch, free = _about_attention(address)
    windows, heads, length, size = sizes
    grad_out, grad_qkv = _floats(order[ABOUT + 13]), _floats(order[ABOUT + 14])
    while True:
        unit = atomic_add(order, NEXT, 1)
        if unit >= windows * heads:
            break
        train_attention.backward(
            qkv, out, statistics, grad_out, grad_qkv, unit // heads, unit % heads, heads, length, size, scale, seed,
            dropped, factor, scratch, free,
        )  # fmt: skip
