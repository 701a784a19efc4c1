"""The compiled kernels of a training step; train_kernels.py calls them with tensors.

Several threads call a kernel at once, with the address of a task as its one argument. A task is an int64 array: the
number of threads that have started, the next unit of work to take, and the kernel's arguments in the order of its
docstring. An argument is the address of a float32 array, an int64, or the bits of a float64 (factor, scale).
"""

# mypy: ignore-errors

import numpy as np
from numba import carray

from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu import train_attention
from gptcli.kernels.cpu.atomics import atomic_add
from gptcli.kernels.cpu.dropout_hash import kept_columns, row_key
from gptcli.kernels.cpu.matmul import LANES
from gptcli.kernels.cpu.simd import jit

PASSES = ("gelu", "dropout", "attend", "attend_backward")
STARTED, NEXT, ARGUMENTS = 0, 8, 16  # indices into a task; counters are a cache line (64 bytes) apart
CELLS = ARGUMENTS + 16
CHUNK = 4096  # elements that a thread takes at once in elementwise kernels


@jit
def _floats(address):
    """The float32 array at an address, without its true length (2^40 stands for it)."""
    return carray(v.at_address(address), (np.int64(1) << 40,), np.float32)


@jit
def _integers(address):
    """The int64 array at an address, without its true length."""
    return carray(v.at_address(address), (np.int64(1) << 40,), np.int64)


@jit
def _task(address):
    """A task as int64 and as float64, two views of the same memory."""
    return carray(v.at_address(address), (CELLS,), np.int64), carray(v.at_address(address), (CELLS,), np.float64)


@jit
def _chunk(task, count):
    """Take the next `CHUNK` elements; return the first, the end of whole vectors of 16, and the end."""
    first = atomic_add(task, NEXT, CHUNK)
    last = min(first + CHUNK, count)
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
    """y = gelu(x) and, unless the address of slope is 0, slope = gelu'(x). Arguments: x, y, slope, count."""
    task, _ = _task(address)
    x, y, slope = _floats(task[ARGUMENTS]), _floats(task[ARGUMENTS + 1]), _floats(task[ARGUMENTS + 2])
    with_slope, count = task[ARGUMENTS + 2] != 0, task[ARGUMENTS + 3]
    while True:
        first, whole, last = _chunk(task, count)
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
    """y = dropout(x) of (rows, columns). Arguments: x, y, rows, rows of a window, columns, seeds, dropped, factor."""
    task, numbers = _task(address)
    x, y = _floats(task[ARGUMENTS]), _floats(task[ARGUMENTS + 1])
    rows, length, columns = task[ARGUMENTS + 2], task[ARGUMENTS + 3], task[ARGUMENTS + 4]
    seeds, dropped = _integers(task[ARGUMENTS + 5]), task[ARGUMENTS + 6]
    factor = np.float32(numbers[ARGUMENTS + 7])
    whole, at_once = columns - columns % LANES, max(1, CHUNK // max(columns, 1))
    while True:
        start = atomic_add(task, NEXT, at_once)
        if start >= rows:
            break
        for row in range(start, min(start + at_once, rows)):
            key, first = row_key(seeds[row // length], row % length), row * columns
            for k in range(0, whole, LANES):
                keep = kept_columns(key, np.int64(k), dropped, factor)
                v.store(y, first + k, v.multiply(v.load(x, first + k), keep))
            if whole < columns:
                keep = kept_columns(key, whole, dropped, factor)
                for k in range(whole, columns):
                    y[first + k] = x[first + k] * v.lane(keep, k - whole)


@jit
def _attention_arguments(address):
    """The arguments common to both passes of attention, and the offset of this thread's scratch."""
    task, numbers = _task(address)
    qkv, out, statistics = _floats(task[ARGUMENTS]), _floats(task[ARGUMENTS + 1]), _floats(task[ARGUMENTS + 2])
    scratch, free = _floats(task[ARGUMENTS + 3]), atomic_add(task, STARTED, 1) * task[ARGUMENTS + 12]
    sizes = task[ARGUMENTS + 4], task[ARGUMENTS + 5], task[ARGUMENTS + 6], task[ARGUMENTS + 7]
    kept_by = _integers(task[ARGUMENTS + 8]), task[ARGUMENTS + 9], np.float32(numbers[ARGUMENTS + 10])
    return task, (qkv, out, statistics), sizes, np.float32(numbers[ARGUMENTS + 11]), kept_by, scratch, free


def attend(address):
    """`train_attention.forward` for every head of every window.

    Arguments: qkv, out, statistics, scratch, windows, heads, length, head size, seeds, dropped (of 2^32), factor,
    scale, float32 of scratch per thread.
    """
    task, (qkv, out, statistics), sizes, scale, (seeds, dropped, factor), scratch, free = _attention_arguments(address)
    windows, heads, length, size = sizes
    while True:
        unit = atomic_add(task, NEXT, 1)
        if unit >= windows * heads:
            break
        train_attention.forward(
            qkv, out, statistics, unit // heads, unit % heads, heads, length, size, scale, seeds[unit // heads],
            dropped, factor, scratch, free,
        )  # fmt: skip


def attend_backward(address):
    """`train_attention.backward` of every head of every window.

    Arguments: those of `attend`, then dL/dout and dL/dqkv, which is written.
    """
    task, (qkv, out, statistics), sizes, scale, (seeds, dropped, factor), scratch, free = _attention_arguments(address)
    windows, heads, length, size = sizes
    grad_out, grad_qkv = _floats(task[ARGUMENTS + 13]), _floats(task[ARGUMENTS + 14])
    while True:
        unit = atomic_add(task, NEXT, 1)
        if unit >= windows * heads:
            break
        train_attention.backward(
            qkv, out, statistics, grad_out, grad_qkv, unit // heads, unit % heads, heads, length, size, scale,
            seeds[unit // heads], dropped, factor, scratch, free,
        )  # fmt: skip
