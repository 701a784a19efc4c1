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

from gptcli import lanes as v
from gptcli import training_attention as attention
from gptcli.counters import atomic_add
from gptcli.dropout_bits import kept, row_keys
from gptcli.lanes import jit
from gptcli.products import LANES

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
def _gelu_of(x):
    """sigmoid(2u) and x times it, which is GELU's tanh form; u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    cubic = v.fma(v.multiply(x, x), v.multiply(x, v.splat(np.float32(0.044715))), x)
    power = v.exp(v.multiply(cubic, v.splat(np.float32(-1.5957691216057308))))
    share = v.divide(v.splat(np.float32(1.0)), v.add(power, v.splat(np.float32(1.0))))
    return share, v.multiply(x, share)


def gelu(address):
    """y = gelu(x) and, unless its address is 0, the slope there. About: x, y, slope, count."""
    order, _ = _order(address)
    x, y, slope = _floats(order[ABOUT]), _floats(order[ABOUT + 1]), _floats(order[ABOUT + 2])
    with_slope, count = order[ABOUT + 2] != 0, order[ABOUT + 3]
    one, outer = v.splat(np.float32(1.0)), v.splat(np.float32(1.5957691216057308))
    inner = v.splat(np.float32(3 * 0.044715 * 1.5957691216057308))
    while True:
        first = atomic_add(order, NEXT, PORTION)
        if first >= count:
            break
        last = min(first + PORTION, count)
        whole = last - (last - first) % LANES
        for i in range(first, whole, LANES):
            value = v.load(x, i)
            share, result = _gelu_of(value)
            v.store(y, i, result)
            if with_slope:
                steep = v.fma(v.multiply(value, value), inner, outer)
                v.store(slope, i, v.fma(v.multiply(result, v.subtract(one, share)), steep, share))
        for i in range(whole, last):
            value = v.splat(x[i])
            share, result = _gelu_of(value)
            y[i] = v.lane(result, 0)
            if with_slope:
                steep = v.fma(v.multiply(value, value), inner, outer)
                slope[i] = v.lane(v.fma(v.multiply(result, v.subtract(one, share)), steep, share), 0)


def dropout(address):
    """y = what dropout keeps of x. About: x, y, count, seed, dropped (of 2^32), factor."""
    order, numbers = _order(address)
    x, y = _floats(order[ABOUT]), _floats(order[ABOUT + 1])
    count, seed, dropped = order[ABOUT + 2], order[ABOUT + 3], order[ABOUT + 4]
    factor = np.float32(numbers[ABOUT + 5])
    while True:
        first = atomic_add(order, NEXT, PORTION)
        if first >= count:
            break
        last = min(first + PORTION, count)
        whole = last - (last - first) % LANES
        for i in range(first, whole, LANES):
            v.store(y, i, v.multiply(v.load(x, i), kept(row_keys(seed, np.int64(i)), np.int64(0), dropped, factor)))
        for i in range(whole, last):
            y[i] = x[i] * v.lane(kept(row_keys(seed, np.int64(i)), np.int64(0), dropped, factor), 0)


def attend(address):
    """`training_attention.forward` of every head of every window.

    About: qkv, out, statistics, scratch, windows, heads, length, head size, seed, dropped (of 2^32), factor, scale,
    floats of scratch a thread.
    """
    order, numbers = _order(address)
    qkv, out, statistics = _floats(order[ABOUT]), _floats(order[ABOUT + 1]), _floats(order[ABOUT + 2])
    scratch, free = _floats(order[ABOUT + 3]), atomic_add(order, COME, 1) * order[ABOUT + 12]
    windows, heads, length, size = order[ABOUT + 4], order[ABOUT + 5], order[ABOUT + 6], order[ABOUT + 7]
    seed, dropped = order[ABOUT + 8], order[ABOUT + 9]
    factor, scale = np.float32(numbers[ABOUT + 10]), np.float32(numbers[ABOUT + 11])
    while True:
        unit = atomic_add(order, NEXT, 1)
        if unit >= windows * heads:
            break
        attention.forward(
            qkv, out, statistics, unit // heads, unit % heads, heads, length, size, scale, seed, dropped, factor,
            scratch, free,
        )  # fmt: skip


def attend_backward(address):
    """`training_attention.backward` of every head of every window.

    About: as for `attend`, then dL/dout and where to write dL/dqkv.
    """
    order, numbers = _order(address)
    qkv, out, statistics = _floats(order[ABOUT]), _floats(order[ABOUT + 1]), _floats(order[ABOUT + 2])
    scratch, free = _floats(order[ABOUT + 3]), atomic_add(order, COME, 1) * order[ABOUT + 12]
    windows, heads, length, size = order[ABOUT + 4], order[ABOUT + 5], order[ABOUT + 6], order[ABOUT + 7]
    seed, dropped = order[ABOUT + 8], order[ABOUT + 9]
    factor, scale = np.float32(numbers[ABOUT + 10]), np.float32(numbers[ABOUT + 11])
    grad_out, grad_qkv = _floats(order[ABOUT + 13]), _floats(order[ABOUT + 14])
    while True:
        unit = atomic_add(order, NEXT, 1)
        if unit >= windows * heads:
            break
        attention.backward(
            qkv, out, statistics, grad_out, grad_qkv, unit // heads, unit % heads, heads, length, size, scale, seed,
            dropped, factor, scratch, free,
        )  # fmt: skip
