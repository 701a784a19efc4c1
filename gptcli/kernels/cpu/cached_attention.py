"""Attention of one head over the key-value cache, for decode_step.py.

For each sequence, layer and head, the cache holds values as (capacity, head size padded to 16), and keys in panels of
16 positions, (head size, 16), so that both products read memory in order. A single key written into such a panel would
touch one cache line per channel. The panel that is not full therefore holds (16, head size); `remember` transposes it
when it is full, and until then `attend` transposes it into scratch. cpu_engine.py records which panel is not full, and
transposes a full panel back after a rollback into it.
"""

# mypy: ignore-errors

import numpy as np

from gptcli.kernels.cpu import matmul, row_vectors
from gptcli.kernels.cpu import memory_layout as c
from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu.matmul import LANES, TILE
from gptcli.kernels.cpu.simd import jit


@jit
def remember(work, table, control, row, layer, head, thread):
    """Write the key and the value of a row into the cache, at the row's position."""
    size = table[c.HEAD_SIZE]
    keys, values = _cache_of(table, control, row, layer, head)
    position = control[_positions(table) + row]
    panel, number = keys + position // LANES * size * LANES, position % LANES
    source = table[c.PROJECTED] + row * table[c.QKV + c.OUTPUTS] + table[c.EMB_DIM] + head * size
    for k in range(size):
        work[panel + number * size + k] = work[source + k]
    if number == LANES - 1:
        turned = table[c.SCRATCH] + thread * table[c.SCRATCH_SIZE]
        _turn(work, panel, LANES, size, turned)
        for i in range(0, size * LANES, LANES):
            v.store(work, panel + i, v.load(work, turned + i))
    source += table[c.EMB_DIM]
    spread = (size + LANES - 1) // LANES * LANES
    for i in range(0, spread, LANES):  # the padding past the head size is never used
        v.store(work, values + position * spread + i, v.load(work, source + i))


@jit
def attend(floats, work, table, control, row, count, layer, head, thread):
    """Causal attention of ``count`` rows of one sequence; their positions are consecutive and already in the cache."""
    capacity, size = table[c.CAPACITY], table[c.HEAD_SIZE]
    panels = (size + LANES - 1) // LANES
    spread = panels * LANES
    keys, values = _cache_of(table, control, row, layer, head)
    first = control[_positions(table) + row]
    length = first + count
    full, begun = length // LANES, length % LANES
    scores = table[c.SCRATCH] + thread * table[c.SCRATCH_SIZE]
    inverses = scores + TILE * capacity
    context = inverses + LANES
    stride, width = table[c.QKV + c.OUTPUTS], table[c.ATTENTION + c.INPUTS]
    query, target = table[c.PROJECTED] + row * stride + head * size, table[c.CONTEXT] + row * width + head * size
    _products(work, keys, size * LANES, LANES, full, size, query, stride, count, scores, capacity)
    if begun:
        turned = context + TILE * spread
        _turn(work, keys + full * size * LANES, begun, size, turned)
        _products(work, turned, 0, LANES, 1, size, query, stride, count, scores + full * LANES, capacity)
    factor = floats[table[c.FACTORS] + layer]
    for i in range(count):
        known = first + i + 1
        work[inverses + i] = _softmax(work, scores + i * capacity, known, (length + LANES - 1) // LANES * LANES, factor)
    _products(work, values, LANES, spread, panels, length, scores, capacity, count, context, spread)
    for i in range(count):
        for k in range(size):
            work[target + i * width + k] = work[context + i * spread + k] * work[inverses + i]


@jit
def _positions(table):
    """Index in control of the rows' positions; `MAX_ROWS` elements later come their slots."""
    return c.COUNTERS + table[c.STEPS] * 2 * c.LINE + table[c.MAX_ROWS]


@jit
def _cache_of(table, control, row, layer, head):
    """Indices in work of the first key and the first value of a row's sequence, for one layer and head."""
    capacity, size = table[c.CAPACITY], table[c.HEAD_SIZE]
    panels = (size + LANES - 1) // LANES
    slot = control[_positions(table) + table[c.MAX_ROWS] + row]
    where = (slot * table[c.LAYERS] + layer) * table[c.HEADS] + head
    return table[c.KEYS] + where * capacity * size, table[c.VALUES] + where * capacity * panels * LANES


@jit
def _turn(work, panel, count, size, to):
    """Write ``count`` positions of a panel (16, size) as (size, 16), in squares of 16 x 16."""
    for i in range(0, size, LANES):
        row_vectors.transpose(work, panel + i, size, count, to + i * LANES)


@jit
def _softmax(work, at, length, padded, factor):
    """Replace a row of scores s by exp(factor (s - max s)), zeros after ``length``; return 1 / the sum."""
    whole = length // LANES * LANES
    peaks = v.splat(work[at])
    for i in range(0, whole, LANES):
        peaks = v.maximum(peaks, v.load(work, at + i))
    peak = v.lane(peaks, 0)
    for i in range(1, LANES):
        peak = max(peak, v.lane(peaks, i))
    for i in range(whole, length):
        peak = max(peak, work[at + i])
    scale, shift = v.splat(factor), v.splat(-peak * factor)
    for i in range(0, padded, LANES):
        v.store(work, at + i, v.exp(v.fma(v.load(work, at + i), scale, shift)))
    for i in range(length, padded):
        work[at + i] = 0.0
    sums = v.splat(np.float32(0.0))
    for i in range(0, padded, LANES):
        sums = v.add(sums, v.load(work, at + i))
    return np.float32(1.0) / v.total(sums)


@jit
def _products(work, start, step, apart, panels, inputs, x, stride, count, y, y_stride):
    """y[i, 16 p : 16 p + 16] = x[i] times panel p (inputs, 16); see `row_times_four_panels`.

    For more than one row, `TILE` rows are computed: y holds `TILE` rows, and the caller ignores those past ``count``.
    """
    panel = np.int64(0)
    while panel < panels:
        first = start + panel * step
        if count > 1 and panels - panel >= 2 and v.WIDE_REGISTERS:
            left, right = matmul.rows_times_two_panels(
                row_vectors.zeros(TILE), work, first, step, apart, inputs, work, x, stride
            )
            row_vectors.store_rows(work, y + panel * LANES, y_stride, left)
            row_vectors.store_rows(work, y + (panel + 1) * LANES, y_stride, right)
            panel += 2
        elif count > 1:
            tile = matmul.rows_times_panel(row_vectors.zeros(TILE), work, first, apart, inputs, work, x, stride)
            row_vectors.store_rows(work, y + panel * LANES, y_stride, tile)
            panel += 1
        elif panels - panel >= 4:
            four = matmul.row_times_four_panels(work, first, step, apart, inputs, work, x)
            row_vectors.store_rows(work, y + panel * LANES, LANES, four)
            panel += 4
        else:
            one = matmul.rows_times_panel(row_vectors.zeros(1), work, first, apart, inputs, work, x, stride)
            row_vectors.store_rows(work, y + panel * LANES, y_stride, one)
            panel += 1
