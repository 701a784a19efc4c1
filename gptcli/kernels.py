"""A whole decode step as one compiled function: embedding, every layer, the final norm and the head, on CPU threads.

Decoding reads every weight once a token, so memory sets the pace, and the kernels are built around that stream. A
matrix (in, out) is cut into blocks of 16 outputs, each laid out (in, 16): a thread walks through a block in order, all
sums stay in registers. Weights are float32, int8 with one scale an output, or int4 with one bfloat16 scale per group
of 32 inputs (see quantization.py); products.py widens them in registers. Where the machine multiplies pairs of int16
twice as fast as floats, int8 weights meet rows that are quantised to int16 before each product (see integers.py).

Rows are tokens: one when decoding, many when a prompt is read, one of each sequence in a batch. Every row's arithmetic
has the same order whatever the company and the threads, so results are equal to the bit: cached and uncached, alone
and in a batch, on one thread and on many.

Threads take work (blocks of outputs, heads, rows) from shared counters, phase by phase. The caller never waits for a
thread, only for work that somebody has taken: a late or absent helper costs time, not correctness.

All functions share six flat arrays, so that there is little to pass on and to compile:
    data     packed weights: float32, int8, int16 holding two int8, or uint8 holding two int4
    scale    of int8 float32, one an output; of int4 the bits of bfloat16, 16 a group of 32 inputs of a block
    floats   float32: biases, layer norms (weight, bias), positions (context, C), epsilon, each layer's attention scale
    work     float32: activations, logits and the cache
    table    int64: sizes, and where things begin in the arrays above
    control  int64: what the step is about, and the counters
"""

# mypy: ignore-errors

import numpy as np

from gptcli import lanes as v
from gptcli import products
from gptcli.lanes import jit
from gptcli.products import LANES, TILE

# Cells of the table: sizes; where things begin in floats and in work; six cells a matrix; the program, a row a phase.
LAYERS, HEADS, EMB_DIM, CAPACITY, MAX_ROWS, SCRATCH_SIZE, STEPS = range(7)
NORMS, WPE, EPSILON, FACTORS = range(7, 11)
X, NORMED, CONTEXT, PROJECTED, HIDDEN, LOGITS, SCRATCH, KEYS, VALUES = range(11, 20)
WTE, QKV, ATTENTION, EXPAND, CONTRACT, HEAD = range(20, 56, 6)
DATA, SCALE, BIAS, INPUTS, OUTPUTS = range(5)
PROGRAM = 56

# A row of the program: what to do, with which matrix or norm, in which layer, from where to where in work.
EMBED, NORM, ARRANGE, MULTIPLY, ATTEND = range(5)
OPERATION, WHICH, LAYER, SOURCE, TARGET, STRIDE, THEN, SELECTION, CONDITION = range(9)
STEP = 9
ALL_ROWS, WANTED_ROWS = 0, 1  # SELECTION
ALWAYS, IF_TAPPED = 0, -1  # CONDITION; or a layer (counted from 1): only if that one is tapped

# Cells of control; those that threads fight over have a cache line each.
LINE = 8
OPEN, INSIDE, ROWS, WANTED, TAP, EPOCH, ASLEEP = 0, 8, 16, 17, 18, 19, 24
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

    Attention wants scores and context of `TILE` rows and their sums; a product two tiles of sums, then two blocks of
    int4 weights of at most ``inputs`` inputs as floats.
    """
    panels = -(-head_size // LANES)
    return max(TILE * capacity + TILE * panels * LANES + LANES, 2 * TILE * LANES + 2 * inputs * LANES)


@jit
def _take(control, phase, amount):
    """The first of the next ``amount`` units of work of a phase."""
    return v.atomic_add(control, COUNTERS + phase * 2 * LINE, amount)


@jit
def _finish(control, phase, amount, total):
    """Report ``amount`` units as done, then wait until all ``total`` are."""
    cell = COUNTERS + phase * 2 * LINE + LINE
    if amount > 0:
        v.atomic_add(control, cell, amount)
    looks = 0
    while v.atomic_load(control, cell) < total:
        looks += 1
        if looks > SPINS:
            v.give_way()


# --- Products ---


@jit
def _pitch(rows):
    """Cells between two inputs of a row, as products take it."""
    return np.int64(TILE) if rows > 1 else np.int64(1)


@jit
def _place(data, width, row, pitch):
    """Where a row begins among those that products take."""
    return row // pitch * pitch * products.row_size(data, width) + row % pitch


@jit
def _parts(width):
    return (width + products.PART - 1) // products.PART


@jit
def _tile(zeros, together, unpacked, data, start, scale, scale_start, width, work, source, pitch, sums):
    """Sums of one block or two for as many rows as there are ``zeros``; returns that number.

    It may be more rows than there are: those past the end are whatever lies there, and nothing of them is kept.
    """
    if unpacked:
        floats = sums + 2 * TILE * LANES
        a, b = products.rows_times_two_unpacked(zeros, work, floats, scale, scale_start, width, source, pitch)
        v.store_rows(work, sums, LANES, a)
        v.store_rows(work, sums + TILE * LANES, LANES, b)
    elif together == 2:
        a, b = products.rows_times_two_blocks(zeros, data, start, scale, scale_start, width, work, source, pitch)
        v.store_rows(work, sums, LANES, a)
        v.store_rows(work, sums + TILE * LANES, LANES, b)
    else:
        a = products.rows_times_block(zeros, data, start, scale, scale_start, width, work, source, pitch)
        v.store_rows(work, sums, LANES, a)
    return np.int64(len(zeros))


@jit
def _complete(data, scale, floats, work, table, step, block, sums, row, count):
    """Turn the sums (count, 16) of a block into what the phase asks for: scale, bias and what comes then."""
    matrix = table[step + WHICH]
    stride, then = table[step + STRIDE], table[step + THEN]
    where = table[step + LAYER] * (table[matrix + OUTPUTS] // LANES) + block
    scale_size = products.scale_size(data, table[matrix + INPUTS])
    factor = products.output_scale(data, scale, table[matrix + SCALE] + where * scale_size)
    bias = v.load(floats, table[matrix + BIAS] + where * LANES)
    for i in range(count):
        total = v.fma(v.load(work, sums + i * LANES), factor, bias)
        target = table[step + TARGET] + (row + i) * stride + block * LANES
        if then == GELU:
            total = _gelu(total)
        elif then == RELU:
            total = v.maximum(total, v.splat(np.float32(0.0)))
        elif then == ADD:
            total = v.add(v.load(work, target), total)
        v.store(work, target, total)


@jit
def _multiply(data, scale, floats, work, table, control, step, rows, thread, phase):
    """y = x @ W + b for all rows, or y = gelu(…), or y += …"""
    matrix, x = table[step + WHICH], table[step + SOURCE]
    width = table[matrix + INPUTS]
    blocks = table[matrix + OUTPUTS] // LANES
    size, scale_size = products.block_size(data, width), products.scale_size(data, width)
    pitch = _pitch(rows)
    sums = table[SCRATCH] + thread * table[SCRATCH_SIZE]
    done = np.int64(0)
    while True:
        first = _take(control, phase, 4)
        if first >= blocks:
            break
        last = min(first + 4, blocks)
        done += last - first
        block = first
        while block < last:
            where = table[step + LAYER] * blocks + block
            start, scales = table[matrix + DATA] + where * size, table[matrix + SCALE] + where * scale_size
            if rows == 1 and last - block == 4:
                four = products.row_times_four_blocks(data, start, scale, scales, width, work, x)
                v.store_rows(work, sums, LANES, four)
                for i in range(4):
                    _complete(data, scale, floats, work, table, step, block + i, sums + i * LANES, 0, 1)
                block += 4
                continue
            together = 2 if v.WIDE_REGISTERS and last - block >= 2 else 1
            unpacked = False
            if together == 2 and rows > TILE:  # once, and not for every tile of rows
                unpacked = products.unpack(data, start, 2 * size, work, sums + 2 * TILE * LANES)
            row = np.int64(0)
            while row < rows:
                left, at = rows - row, x + _place(data, width, row, pitch)
                if left >= TILE:
                    count = _tile(
                        v.zeros(TILE), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
                    )
                elif left > 4 and v.WIDE_REGISTERS:
                    count = _tile(
                        v.zeros(8), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
                    )
                elif left > 1:
                    count = _tile(
                        v.zeros(4), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
                    )
                else:
                    count = _tile(
                        v.zeros(1), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
                    )
                count = min(count, left)
                for i in range(together):
                    to = sums + i * TILE * LANES
                    _complete(data, scale, floats, work, table, step, block + i, to, row, count)
                row += count
            block += together
    _finish(control, phase, done, blocks)


@jit
def _gelu(x):
    """GELU's tanh form: x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    cubic = v.fma(v.multiply(x, x), v.multiply(x, v.splat(np.float32(0.044715))), x)
    power = v.exp(v.multiply(cubic, v.splat(np.float32(-1.5957691216057308))))
    return v.divide(x, v.add(power, v.splat(np.float32(1.0))))


# --- Between the projections ---


@jit
def _sum(vector):
    """Of its 16 floats, in order."""
    total = np.float32(0.0)
    for i in range(LANES):
        total += v.lane(vector, i)
    return total


@jit
def _norm(floats, work, table, x, which, y):
    """Layer norm of one row (biased variance); the padding, zero in x, weight and bias, stays zero."""
    emb_dim, width = table[EMB_DIM], table[QKV + INPUTS]
    sums = v.splat(np.float32(0.0))
    for i in range(0, width, LANES):
        sums = v.add(sums, v.load(work, x + i))
    mean = _sum(sums) / np.float32(emb_dim)
    means, squares = v.splat(mean), v.splat(np.float32(0.0))
    for i in range(0, width, LANES):
        centred = v.subtract(v.load(work, x + i), means)
        squares = v.fma(centred, centred, squares)
    padding = np.float32(width - emb_dim) * mean * mean
    variance = max((_sum(squares) - padding) / np.float32(emb_dim), np.float32(0.0))
    factor = v.splat(np.float32(1.0) / np.sqrt(variance + floats[table[EPSILON]]))
    weight = table[NORMS] + 2 * which * width
    for i in range(0, width, LANES):
        centred = v.multiply(v.subtract(v.load(work, x + i), means), factor)
        v.store(work, y + i, v.fma(centred, v.load(floats, weight + i), v.load(floats, weight + width + i)))


@jit
def _norm_rows(data, floats, work, table, control, step, rows, thread, phase):
    """Layer norm of every row, or of those whose logits are wanted, as products take it."""
    width, pitch = table[QKV + INPUTS], _pitch(rows)
    scratch = table[SCRATCH] + thread * table[SCRATCH_SIZE]
    listed = COUNTERS + table[STEPS] * 2 * LINE + 3 * table[MAX_ROWS]
    done = np.int64(0)
    while True:
        first = _take(control, phase, pitch)  # threads would fight over the lines of a tile
        if first >= rows:
            break
        for i in range(first, min(first + pitch, rows)):
            row = control[listed + i] if table[step + SELECTION] == WANTED_ROWS else i
            _norm(floats, work, table, table[step + SOURCE] + row * width, table[step + WHICH], scratch)
            target = table[step + TARGET] + _place(data, width, i, pitch)
            for part in range(_parts(width)):
                products.write_part(data, work, scratch, width, part, target, pitch)
            done += 1
    _finish(control, phase, done, rows)


@jit
def _arrange(data, work, table, control, step, rows, phase):
    """Rows of floats as the product with this matrix takes them."""
    width, pitch = table[table[step + WHICH] + INPUTS], _pitch(rows)
    parts = _parts(width)
    total = (rows + pitch - 1) // pitch * parts
    done = np.int64(0)
    while True:
        unit = _take(control, phase, 1)
        if unit >= total:
            break
        first, part = unit // parts * pitch, unit % parts
        for row in range(first, min(first + pitch, rows)):
            source, target = table[step + SOURCE] + row * width, table[step + TARGET] + _place(data, width, row, pitch)
            products.write_part(data, work, source, width, part, target, pitch)
        done += 1
    _finish(control, phase, done, total)


@jit
def _embed(data, scale, floats, work, table, control, rows, phase):
    """Token plus position."""
    emb_dim, width = table[EMB_DIM], table[QKV + INPUTS]
    ids = COUNTERS + table[STEPS] * 2 * LINE
    done = np.int64(0)
    while True:
        row = _take(control, phase, 1)
        if row >= rows:
            break
        token, position = control[ids + row], control[ids + table[MAX_ROWS] + row]
        for k in range(emb_dim):
            value = products.weight(data, table[WTE + DATA], scale, table[WTE + SCALE], width, k, token)
            work[table[X] + row * width + k] = value + floats[table[WPE] + position * emb_dim + k]
        done += 1
    _finish(control, phase, done, rows)


@jit
def _softmax(work, at, length, padded, factor):
    """exp(factor (s - max)) of a row of scores, zeros after ``length``; returns 1 / their sum."""
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
    return np.float32(1.0) / _sum(sums)


@jit
def _products(work, start, step, panels, inputs, x, stride, count, y, y_stride):
    """y[i, 16 p : 16 p + 16] = x[i] times panel p (inputs, 16); panels begin ``step`` apart.

    Of more than one row, `TILE` are computed: y has room for those past the end, and nothing of them is kept.
    """
    panel = np.int64(0)
    while panel < panels:
        first = start + panel * step
        if count > 1 and panels - panel >= 2 and v.WIDE_REGISTERS:
            left, right = products.rows_times_two_panels(v.zeros(TILE), work, first, step, inputs, work, x, stride)
            v.store_rows(work, y + panel * LANES, y_stride, left)
            v.store_rows(work, y + (panel + 1) * LANES, y_stride, right)
            panel += 2
        elif count > 1:
            tile = products.rows_times_panel(v.zeros(TILE), work, first, inputs, work, x, stride)
            v.store_rows(work, y + panel * LANES, y_stride, tile)
            panel += 1
        elif panels - panel >= 4:
            four = products.row_times_four_panels(work, first, step, inputs, work, x)
            v.store_rows(work, y + panel * LANES, LANES, four)
            panel += 4
        else:
            one = products.rows_times_panel(v.zeros(1), work, first, inputs, work, x, stride)
            v.store_rows(work, y + panel * LANES, y_stride, one)
            panel += 1


@jit
def _attend(floats, work, table, control, row, count, slot, layer, head, thread):
    """``count`` rows of one sequence, at consecutive positions, look at the cache through one head."""
    capacity, heads, layers = table[CAPACITY], table[HEADS], table[LAYERS]
    size = table[EMB_DIM] // heads
    panels = (size + LANES - 1) // LANES
    positions = COUNTERS + table[STEPS] * 2 * LINE + table[MAX_ROWS] + row
    padded = (control[positions + count - 1] // LANES + 1) * LANES
    where = (slot * layers + layer) * heads + head
    keys, values = table[KEYS] + where * capacity * size, table[VALUES] + where * capacity * panels * LANES
    scores = table[SCRATCH] + thread * table[SCRATCH_SIZE]
    inverses = scores + TILE * capacity
    context = inverses + LANES
    stride, width = table[QKV + OUTPUTS], table[ATTENTION + INPUTS]
    query, target = table[PROJECTED] + row * stride + head * size, table[CONTEXT] + row * width + head * size
    factor = floats[table[FACTORS] + layer]
    for part in range(2):
        if part == 0:
            _products(work, keys, size * LANES, padded // LANES, size, query, stride, count, scores, capacity)
            for i in range(count):
                length = control[positions + i] + 1
                work[inverses + i] = _softmax(work, scores + i * capacity, length, padded, factor)
        else:
            step, spread = capacity * LANES, panels * LANES
            _products(work, values, step, panels, padded, scores, capacity, count, context, spread)
    for i in range(count):
        for k in range(size):
            work[target + i * width + k] = work[context + i * panels * LANES + k] * work[inverses + i]


@jit
def _attention(floats, work, table, control, layer, rows, thread, phase):
    """Causal attention of all rows, head by head; their keys and values go into the cache first."""
    heads, layers, capacity, emb_dim = table[HEADS], table[LAYERS], table[CAPACITY], table[EMB_DIM]
    size = emb_dim // heads
    panels = (size + LANES - 1) // LANES
    positions = COUNTERS + table[STEPS] * 2 * LINE + table[MAX_ROWS]
    slots = positions + table[MAX_ROWS]
    done = np.int64(0)
    while True:
        head = _take(control, phase, 1)
        if head >= heads:
            break
        done += 1
        for row in range(rows):
            position = control[positions + row]
            where = (control[slots + row] * layers + layer) * heads + head
            key = table[KEYS] + where * capacity * size + position // LANES * size * LANES + position % LANES
            value = table[VALUES] + where * capacity * panels * LANES + position * LANES
            source = table[PROJECTED] + row * table[QKV + OUTPUTS] + emb_dim + head * size
            for k in range(size):
                work[key + k * LANES] = work[source + k]
            for panel in range(panels):  # what a last one holds past the head's end is never looked at
                v.store(work, value + panel * capacity * LANES, v.load(work, source + emb_dim + panel * LANES))
        row = np.int64(0)
        while row < rows:
            slot = control[slots + row]
            count = np.int64(1)
            while count < TILE and row + count < rows and control[slots + row + count] == slot:
                count += 1
            count = count if count >= 3 else np.int64(1)
            _attend(floats, work, table, control, row, count, slot, layer, head, thread)
            row += count
    _finish(control, phase, done, heads)


def run(data, scale, floats, work, table, control, thread):
    """Thread 0 computes one step and returns; any other helps with steps until there have been none for a while."""
    last, looks, epoch = np.int64(0), np.int64(0), np.int64(0)
    steps = table[STEPS]
    if thread == 0:
        for i in range(steps * 2 * LINE):
            control[COUNTERS + i] = 0
        control[EPOCH] += 1
        v.atomic_store(control, OPEN, control[EPOCH])
    while looks < IDLE:
        if thread != 0:
            epoch = v.atomic_load(control, OPEN)
            if epoch == 0 or epoch == last:
                looks += 1
                if looks > SPINS:
                    v.give_way()
                continue
            v.atomic_add(control, INSIDE, 1)
        if thread == 0 or v.atomic_load(control, OPEN) == epoch:
            for phase in range(steps):
                step = PROGRAM + phase * STEP
                condition = table[step + CONDITION]
                rows = control[WANTED] if table[step + SELECTION] == WANTED_ROWS else control[ROWS]
                if rows == 0 or (
                    condition != ALWAYS
                    and condition != control[TAP]
                    and not (condition == IF_TAPPED and control[TAP] > 0)
                ):
                    continue
                operation = table[step + OPERATION]
                if operation == MULTIPLY:
                    _multiply(data, scale, floats, work, table, control, step, rows, thread, phase)
                elif operation == NORM:
                    _norm_rows(data, floats, work, table, control, step, rows, thread, phase)
                elif operation == ARRANGE:
                    _arrange(data, work, table, control, step, rows, phase)
                elif operation == ATTEND:
                    _attention(floats, work, table, control, table[step + LAYER], rows, thread, phase)
                else:
                    _embed(data, scale, floats, work, table, control, rows, phase)
            last, looks = epoch, np.int64(0)
        if thread == 0:
            v.atomic_store(control, OPEN, 0)
            while v.atomic_load(control, INSIDE) != 0:
                v.give_way()
            return
        v.atomic_add(control, INSIDE, -1)
    v.atomic_store(control, ASLEEP + thread * LINE, 1)
