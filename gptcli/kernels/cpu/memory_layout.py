"""The layout of the flat arrays of the kernels: indices into the table, its program and control.

All kernels share six arrays:
    data     packed weights: float32, int8, int16 holding two int8, uint8 holding two int4, or uint32 eight
    scale    for int8 float32, one per output; for int4 uint16 bits of bfloat16, 16 per group of 32 inputs of a block
    floats   float32: biases, layer norms (weight, bias), positions (context, C), epsilon, each layer's attention scale
    work     float32: activations, logits and the key-value cache
    table    int64: sizes, offsets into the arrays above, and the program
    control  int64: the inputs of a step, and the counters of its phases
"""

import contextlib
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16  # outputs of a block of a matrix, and float32 in a vector of simd.py

# Indices into the table: sizes; offsets into floats and work; six elements per matrix; the program, one row per phase.
LAYERS, HEADS, HEAD_SIZE, EMB_DIM, CAPACITY, MAX_ROWS, SCRATCH_SIZE, STEPS = range(8)
NORMS, WPE, EPSILON, FACTORS = range(8, 12)
X, NORMED, CONTEXT, PROJECTED, HIDDEN, LOGITS, SCRATCH, KEYS, VALUES = range(12, 21)
WTE, QKV, ATTENTION, EXPAND, CONTRACT, HEAD = range(21, 57, 6)
DATA, SCALE, BIAS, INPUTS, OUTPUTS = range(5)
PROGRAM = 57

# A row of the program: operation, matrix or norm, layer, offsets of source and target in work, elements per target row,
# what follows a product, which rows, and when.
EMBED, NORM, ARRANGE, MULTIPLY, ATTEND = range(5)
OPERATION, WHICH, LAYER, SOURCE, TARGET, STRIDE, THEN, SELECTION, CONDITION = range(9)
STEP = 9
ALL_ROWS, WANTED_ROWS = 0, 1  # SELECTION
ALWAYS, IF_EARLY_EXIT = 0, -1  # CONDITION; a number n >= 1: only if the early-exit layer is n

# Indices into control. Each element that several threads write has its own cache line of `LINE` int64 (64 bytes).
LINE = 8
OPEN, INSIDE, ROWS, WANTED, EXIT_LAYER, EPOCH, ASLEEP = 0, 8, 16, 17, 18, 19, 24
MAX_THREADS = 64
COUNTERS = ASLEEP + LINE * MAX_THREADS  # after the counters: ids, positions, slots and wanted rows, MAX_ROWS each

PLAIN, GELU, RELU, ADD = range(4)  # THEN: what to do with x @ W + b
SPINS = 2_000  # loads of a counter before a waiting thread yields its core
IDLE = 12_000  # loads that find no step before a helper thread returns to sleep


def counter_cells(steps: int) -> int:
    """Number of int64 in control for the counters of ``steps`` phases: taken and finished, a cache line each."""
    return steps * 2 * LINE


def scratch_size(capacity: int, head_size: int, inputs: int, tile: int) -> int:
    """Number of float32 of scratch per thread.

    Attention needs scores and context of ``tile`` rows (matmul.TILE), 16 inverse sums and a panel of keys; a product
    needs two tiles of sums, then two blocks of int4 weights of at most ``inputs`` inputs as float32.
    """
    panels = -(-head_size // LANES)
    attention = tile * capacity + LANES + tile * panels * LANES + panels * LANES * LANES
    return max(attention, 2 * tile * LANES + 2 * inputs * LANES)


def pack(source: NDArray[Any], target: NDArray[Any], first: int, inputs: int) -> None:
    """Write a matrix (in, out) of any strides into blocks (inputs, 16) of ``target``, from element ``first`` on.

    A block is 16 outputs of a matrix. What a block has more than the matrix is left as it is.
    """
    rows, columns = source.shape
    whole, rest = divmod(columns, LANES)
    count = padded(columns, LANES) // LANES
    blocks = target[first : first + count * inputs * LANES].reshape(count, inputs, LANES)
    blocks[:whole, :rows] = source[:, : whole * LANES].reshape(rows, whole, LANES).transpose(1, 0, 2)
    if rest:
        blocks[whole, :rows, :rest] = source[:, whole * LANES :]


def padded(count: int, multiple: int) -> int:
    """``count`` rounded up to a multiple of ``multiple``."""
    return -(-count // multiple) * multiple


def allocate(count: int, dtype: Any, *, huge: bool = True) -> NDArray[Any]:
    """Zeros; ``huge`` asks Linux for 2 MiB pages, on which reading a long array misses the TLB less often.

    Set it to False for a sparsely used array such as the key-value cache: a huge page is zeroed whole on first access.
    """
    size = max(count, 1) * np.dtype(dtype).itemsize
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    memory = mmap.mmap(-1, padded(size, 2**21), **private)  # shared memory, the default, seldom gets huge pages
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=dtype, count=max(count, 1))
