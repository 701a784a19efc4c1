"""Where things are in the flat arrays that the kernels share: the cells of the table, of the program and of control.

All kernels share six flat arrays, so that there is little to pass on and to compile:
    data     packed weights: float32, int8, int16 holding two int8, or uint8 holding two int4
    scale    of int8 float32, one an output; of int4 the bits of bfloat16, 16 a group of 32 inputs of a block
    floats   float32: biases, layer norms (weight, bias), positions (context, C), epsilon, each layer's attention scale
    work     float32: activations, logits and the cache
    table    int64: sizes, and where things begin in the arrays above
    control  int64: what the step is about, and the counters
"""

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.kernels.cpu.matmul import LANES, TILE

# Cells of the table: sizes; where things begin in floats and in work; six cells a matrix; the program, a row a phase.
LAYERS, HEADS, HEAD_SIZE, EMB_DIM, CAPACITY, MAX_ROWS, SCRATCH_SIZE, STEPS = range(8)
NORMS, WPE, EPSILON, FACTORS = range(8, 12)
X, NORMED, CONTEXT, PROJECTED, HIDDEN, LOGITS, SCRATCH, KEYS, VALUES = range(12, 21)
WTE, QKV, ATTENTION, EXPAND, CONTRACT, HEAD = range(21, 57, 6)
DATA, SCALE, BIAS, INPUTS, OUTPUTS = range(5)
PROGRAM = 57

# A row of the program: what to do, with which matrix or norm, in which layer, from where to where in work.
EMBED, NORM, ARRANGE, MULTIPLY, ATTEND = range(5)
OPERATION, WHICH, LAYER, SOURCE, TARGET, STRIDE, THEN, SELECTION, CONDITION = range(9)
STEP = 9
ALL_ROWS, WANTED_ROWS = 0, 1  # SELECTION
ALWAYS, IF_EARLY_EXIT = 0, -1  # CONDITION; or a layer (counted from 1): only if that one is early_exit

# Cells of control; those that threads fight over have a cache line each.
LINE = 8
OPEN, INSIDE, ROWS, WANTED, EXIT_LAYER, EPOCH, ASLEEP = 0, 8, 16, 17, 18, 19, 24
MAX_THREADS = 64
COUNTERS = ASLEEP + LINE * MAX_THREADS  # then ids, positions, slots and the wanted rows, MAX_ROWS each

PLAIN, GELU, RELU, ADD = range(4)  # what to do with x @ W + b
SPINS = 2_000  # looks at a counter before the core is offered to others
IDLE = 12_000  # looks for work before a helper goes to sleep


def counter_cells(steps: int) -> int:
    """How many cells of control the counters of a program of ``steps`` phases take."""
    return steps * 2 * LINE


def scratch_size(capacity: int, head_size: int, inputs: int) -> int:
    """How many floats of scratch a thread needs.

    Attention wants scores and context of `TILE` rows, their sums and a panel of keys; a product two tiles of sums, then
    two blocks of int4 weights of at most ``inputs`` inputs as floats.
    """
    panels = -(-head_size // LANES)
    attention = TILE * capacity + LANES + TILE * panels * LANES + panels * LANES * LANES
    return max(attention, 2 * TILE * LANES + 2 * inputs * LANES)


def padded(count: int, multiple: int) -> int:
    """The least multiple that is no less than ``count``."""
    return -(-count // multiple) * multiple


def allocate(count: int, dtype: Any, *, huge: bool = True) -> NDArray[Any]:
    """Zeros; a long stream misses fewer translations on ``huge`` pages, where the system has them.

    What is used here and there alone, as a cache is, would be filled with zeros whole on such pages.
    """
    size = max(count, 1) * np.dtype(dtype).itemsize
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    memory = mmap.mmap(-1, padded(size, 2**21), **private)  # what is shared, the default, seldom gets huge pages
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=dtype, count=max(count, 1))
