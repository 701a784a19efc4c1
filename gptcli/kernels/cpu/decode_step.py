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
thread, only for work that somebody has taken: a late or absent helper costs time, not correctness. All share the
arrays that cells.py describes.
"""

# mypy: ignore-errors

import numpy as np

from gptcli.kernels.cpu import atomics, cached_attention, matmul, memory_layout, row_vectors, simd
from gptcli.kernels.cpu.matmul import LANES, TILE
from gptcli.kernels.cpu.simd import jit


@jit
def _take(control, phase, amount):
    """The first of the next ``amount`` units of work of a phase."""
    return atomics.atomic_add(control, memory_layout.COUNTERS + phase * 2 * memory_layout.LINE, amount)


@jit
def _finish(control, phase, amount, total):
    """Report ``amount`` units as done, then wait until all ``total`` are."""
    cell = memory_layout.COUNTERS + phase * 2 * memory_layout.LINE + memory_layout.LINE
    if amount > 0:
        atomics.atomic_add(control, cell, amount)
    looks = 0
    while atomics.atomic_load(control, cell) < total:
        looks += 1
        if looks > memory_layout.SPINS:
            atomics.give_way()


# --- Products ---


@jit
def _pitch(rows):
    """Cells between two inputs of a row, as products take it."""
    return np.int64(TILE) if rows > 1 else np.int64(1)


@jit
def _place(data, width, row, pitch):
    """Where a row begins among those that products take."""
    if pitch == 1:
        return row * matmul.row_size(data, width)
    return row // TILE * TILE * matmul.row_size(data, width) + row % TILE


@jit
def _parts(width):
    return (width + matmul.PART - 1) // matmul.PART


@jit
def _tile(zeros, together, unpacked, data, start, scale, scale_start, width, work, source, pitch, sums):
    """Sums of one block or two for as many rows as there are ``zeros``; returns that number.

    It may be more rows than there are: those past the end are whatever lies there, and nothing of them is kept.
    """
    if unpacked:
        floats = sums + 2 * TILE * LANES
        a, b = matmul.rows_times_two_unpacked(zeros, work, floats, scale, scale_start, width, source, pitch)
        row_vectors.store_rows(work, sums, LANES, a)
        row_vectors.store_rows(work, sums + TILE * LANES, LANES, b)
    elif together == 2:
        a, b = matmul.rows_times_two_blocks(zeros, data, start, scale, scale_start, width, work, source, pitch)
        row_vectors.store_rows(work, sums, LANES, a)
        row_vectors.store_rows(work, sums + TILE * LANES, LANES, b)
    else:
        a = matmul.rows_times_block(zeros, data, start, scale, scale_start, width, work, source, pitch)
        row_vectors.store_rows(work, sums, LANES, a)
    return np.int64(len(zeros))


@jit
def _complete(data, scale, floats, work, table, step, block, sums, row, count):
    """Turn the sums (count, 16) of a block into what the phase asks for: scale, bias and what comes then."""
    matrix = table[step + memory_layout.WHICH]
    stride, then = table[step + memory_layout.STRIDE], table[step + memory_layout.THEN]
    where = table[step + memory_layout.LAYER] * (table[matrix + memory_layout.OUTPUTS] // LANES) + block
    scale_size = matmul.scale_size(data, table[matrix + memory_layout.INPUTS])
    factor = matmul.output_scale(data, scale, table[matrix + memory_layout.SCALE] + where * scale_size)
    bias = simd.load(floats, table[matrix + memory_layout.BIAS] + where * LANES)
    for i in range(count):
        total = simd.fma(simd.load(work, sums + i * LANES), factor, bias)
        target = table[step + memory_layout.TARGET] + (row + i) * stride + block * LANES
        if then == memory_layout.GELU:
            total = _gelu(total)
        elif then == memory_layout.RELU:
            total = simd.maximum(total, simd.splat(np.float32(0.0)))
        elif then == memory_layout.ADD:
            total = simd.add(simd.load(work, target), total)
        simd.store(work, target, total)


@jit
def _multiply(data, scale, floats, work, table, control, step, rows, thread, phase):
    """y = x @ W + b for all rows, or y = gelu(…), or y += …"""
    matrix, x = table[step + memory_layout.WHICH], table[step + memory_layout.SOURCE]
    width = table[matrix + memory_layout.INPUTS]
    blocks = table[matrix + memory_layout.OUTPUTS] // LANES
    size, scale_size = matmul.block_size(data, width), matmul.scale_size(data, width)
    pitch = _pitch(rows)
    sums = table[memory_layout.SCRATCH] + thread * table[memory_layout.SCRATCH_SIZE]
    done = np.int64(0)
    while True:
        first = _take(control, phase, 4)
        if first >= blocks:
            break
        last = min(first + 4, blocks)
        done += last - first
        block = first
        while block < last:
            where = table[step + memory_layout.LAYER] * blocks + block
            start, scales = (
                table[matrix + memory_layout.DATA] + where * size,
                table[matrix + memory_layout.SCALE] + where * scale_size,
            )
            if rows == 1 and last - block == 4:
                four = matmul.row_times_four_blocks(data, start, scale, scales, width, work, x)
                row_vectors.store_rows(work, sums, LANES, four)
                for i in range(4):
                    _complete(data, scale, floats, work, table, step, block + i, sums + i * LANES, 0, 1)
                block += 4
                continue
            together = 2 if simd.WIDE_REGISTERS and last - block >= 2 else 1
            unpacked = False
            if together == 2 and rows > TILE:  # once, and not for every tile of rows
                unpacked = matmul.unpack(data, start, 2 * size, work, sums + 2 * TILE * LANES)
            row = np.int64(0)
            while row < rows:
                left, at = rows - row, x + _place(data, width, row, pitch)
                if left >= TILE:
                    count = _tile(
                        row_vectors.zeros(TILE),
                        together,
                        unpacked,
                        data,
                        start,
                        scale,
                        scales,
                        width,
                        work,
                        at,
                        pitch,
                        sums,
                    )
                elif left > 4 and simd.WIDE_REGISTERS:
                    count = _tile(
                        row_vectors.zeros(8),
                        together,
                        unpacked,
                        data,
                        start,
                        scale,
                        scales,
                        width,
                        work,
                        at,
                        pitch,
                        sums,
                    )
                elif left > 1:
                    count = _tile(
                        row_vectors.zeros(4),
                        together,
                        unpacked,
                        data,
                        start,
                        scale,
                        scales,
                        width,
                        work,
                        at,
                        pitch,
                        sums,
                    )
                else:
                    count = _tile(
                        row_vectors.zeros(1),
                        together,
                        unpacked,
                        data,
                        start,
                        scale,
                        scales,
                        width,
                        work,
                        at,
                        pitch,
                        sums,
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
    cubic = simd.fma(simd.multiply(x, x), simd.multiply(x, simd.splat(np.float32(0.044715))), x)
    power = simd.exp(simd.multiply(cubic, simd.splat(np.float32(-1.5957691216057308))))
    return simd.divide(x, simd.add(power, simd.splat(np.float32(1.0))))


# --- Between the projections ---


@jit
def _norm(floats, work, table, x, which, y):
    """Layer norm of one row (biased variance); the padding, zero in x, weight and bias, stays zero."""
    emb_dim, width = table[memory_layout.EMB_DIM], table[memory_layout.QKV + memory_layout.INPUTS]
    sums = simd.splat(np.float32(0.0))
    for i in range(0, width, LANES):
        sums = simd.add(sums, simd.load(work, x + i))
    mean = simd.total(sums) / np.float32(emb_dim)
    means, squares = simd.splat(mean), simd.splat(np.float32(0.0))
    for i in range(0, width, LANES):
        centred = simd.subtract(simd.load(work, x + i), means)
        squares = simd.fma(centred, centred, squares)
    padding = np.float32(width - emb_dim) * mean * mean
    variance = max((simd.total(squares) - padding) / np.float32(emb_dim), np.float32(0.0))
    factor = simd.splat(np.float32(1.0) / np.sqrt(variance + floats[table[memory_layout.EPSILON]]))
    weight = table[memory_layout.NORMS] + 2 * which * width
    for i in range(0, width, LANES):
        centred = simd.multiply(simd.subtract(simd.load(work, x + i), means), factor)
        simd.store(work, y + i, simd.fma(centred, simd.load(floats, weight + i), simd.load(floats, weight + width + i)))


@jit
def _norm_rows(data, floats, work, table, control, step, rows, thread, phase):
    """Layer norm of every row, or of those whose logits are wanted, as products take it."""
    width, pitch = table[memory_layout.QKV + memory_layout.INPUTS], _pitch(rows)
    scratch = table[memory_layout.SCRATCH] + thread * table[memory_layout.SCRATCH_SIZE]
    listed = (
        memory_layout.COUNTERS + table[memory_layout.STEPS] * 2 * memory_layout.LINE + 3 * table[memory_layout.MAX_ROWS]
    )
    done = np.int64(0)
    while True:
        first = _take(control, phase, pitch)  # threads would fight over the lines of a tile
        if first >= rows:
            break
        for i in range(first, min(first + pitch, rows)):
            row = control[listed + i] if table[step + memory_layout.SELECTION] == memory_layout.WANTED_ROWS else i
            _norm(
                floats,
                work,
                table,
                table[step + memory_layout.SOURCE] + row * width,
                table[step + memory_layout.WHICH],
                scratch,
            )
            target = table[step + memory_layout.TARGET] + _place(data, width, i, pitch)
            for part in range(_parts(width)):
                matmul.write_part(data, work, scratch, width, part, target, pitch)
            done += 1
    _finish(control, phase, done, rows)


@jit
def _arrange(data, work, table, control, step, rows, phase):
    """Rows of floats as the product with this matrix takes them."""
    width, pitch = table[table[step + memory_layout.WHICH] + memory_layout.INPUTS], _pitch(rows)
    parts = _parts(width)
    total = (rows + pitch - 1) // pitch * parts
    done = np.int64(0)
    while True:
        unit = _take(control, phase, 1)
        if unit >= total:
            break
        first, part = unit // parts * pitch, unit % parts
        for row in range(first, min(first + pitch, rows)):
            source, target = (
                table[step + memory_layout.SOURCE] + row * width,
                table[step + memory_layout.TARGET] + _place(data, width, row, pitch),
            )
            matmul.write_part(data, work, source, width, part, target, pitch)
        done += 1
    _finish(control, phase, done, total)


@jit
def _embed(data, scale, floats, work, table, control, rows, phase):
    """Token plus position."""
    emb_dim, width = table[memory_layout.EMB_DIM], table[memory_layout.QKV + memory_layout.INPUTS]
    ids = memory_layout.COUNTERS + table[memory_layout.STEPS] * 2 * memory_layout.LINE
    done = np.int64(0)
    while True:
        row = _take(control, phase, 1)
        if row >= rows:
            break
        token, position = control[ids + row], control[ids + table[memory_layout.MAX_ROWS] + row]
        for k in range(emb_dim):
            value = matmul.weight(
                data,
                table[memory_layout.WTE + memory_layout.DATA],
                scale,
                table[memory_layout.WTE + memory_layout.SCALE],
                width,
                k,
                token,
            )
            work[table[memory_layout.X] + row * width + k] = (
                value + floats[table[memory_layout.WPE] + position * emb_dim + k]
            )
        done += 1
    _finish(control, phase, done, rows)


@jit
def _attention(floats, work, table, control, layer, rows, thread, phase):
    """Causal attention of all rows, head by head; their keys and values go into the cache first."""
    slots = (
        memory_layout.COUNTERS + table[memory_layout.STEPS] * 2 * memory_layout.LINE + 2 * table[memory_layout.MAX_ROWS]
    )
    done = np.int64(0)
    while True:
        head = _take(control, phase, 1)
        if head >= table[memory_layout.HEADS]:
            break
        done += 1
        row = np.int64(0)
        while row < rows:
            count = np.int64(1)
            while count < TILE and row + count < rows and control[slots + row + count] == control[slots + row]:
                count += 1
            count = count if count >= 3 else np.int64(1)
            for i in range(row, row + count):
                cached_attention.remember(work, table, control, i, layer, head, thread)
            cached_attention.attend(floats, work, table, control, row, count, layer, head, thread)
            row += count
    _finish(control, phase, done, table[memory_layout.HEADS])


def run(data, scale, floats, work, table, control, thread):
    """Thread 0 computes one step and returns; any other helps with steps until there have been none for a while."""
    last, looks, epoch = np.int64(0), np.int64(0), np.int64(0)
    steps = table[memory_layout.STEPS]
    if thread == 0:
        for i in range(steps * 2 * memory_layout.LINE):
            control[memory_layout.COUNTERS + i] = 0
        control[memory_layout.EPOCH] += 1
        atomics.atomic_store(control, memory_layout.OPEN, control[memory_layout.EPOCH])
    while looks < memory_layout.IDLE:
        if thread != 0:
            epoch = atomics.atomic_load(control, memory_layout.OPEN)
            if epoch == 0 or epoch == last:
                looks += 1
                if looks > memory_layout.SPINS:
                    atomics.give_way()
                continue
            atomics.atomic_add(control, memory_layout.INSIDE, 1)
        if thread == 0 or atomics.atomic_load(control, memory_layout.OPEN) == epoch:
            for phase in range(steps):
                step = memory_layout.PROGRAM + phase * memory_layout.STEP
                condition = table[step + memory_layout.CONDITION]
                rows = (
                    control[memory_layout.WANTED]
                    if table[step + memory_layout.SELECTION] == memory_layout.WANTED_ROWS
                    else control[memory_layout.ROWS]
                )
                if rows == 0 or (
                    condition != memory_layout.ALWAYS
                    and condition != control[memory_layout.TAP]
                    and not (condition == memory_layout.IF_TAPPED and control[memory_layout.TAP] > 0)
                ):
                    continue
                operation = table[step + memory_layout.OPERATION]
                if operation == memory_layout.MULTIPLY:
                    _multiply(data, scale, floats, work, table, control, step, rows, thread, phase)
                elif operation == memory_layout.NORM:
                    _norm_rows(data, floats, work, table, control, step, rows, thread, phase)
                elif operation == memory_layout.ARRANGE:
                    _arrange(data, work, table, control, step, rows, phase)
                elif operation == memory_layout.ATTEND:
                    _attention(floats, work, table, control, table[step + memory_layout.LAYER], rows, thread, phase)
                else:
                    _embed(data, scale, floats, work, table, control, rows, phase)
            last, looks = epoch, np.int64(0)
        if thread == 0:
            atomics.atomic_store(control, memory_layout.OPEN, 0)
            while atomics.atomic_load(control, memory_layout.INSIDE) != 0:
                atomics.give_way()
            return
        atomics.atomic_add(control, memory_layout.INSIDE, -1)
    atomics.atomic_store(control, memory_layout.ASLEEP + thread * memory_layout.LINE, 1)
