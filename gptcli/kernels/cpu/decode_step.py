"""A whole decode step as one compiled function: embedding, every layer, the final norm and the head, on CPU threads.

Decoding reads every weight once per token, so memory bandwidth limits its speed. A matrix (in, out) is cut into blocks
of 16 outputs, each laid out (in, 16): a thread reads a block in order of addresses and keeps all sums in registers.
Weights are float32, int8 with one scale per output, or int4 with one bfloat16 scale per output and group of 32 inputs
(see quantization.py); matmul.py converts them to float32 in registers. On a processor with AVX-512 VNNI, each row is
quantized to int16 before its product with int8 weights (see int16_matmul.py).

Rows are tokens: one when decoding, many when a prompt is read, one per sequence in a batch. The order of a row's
floating-point operations depends on neither the other rows nor the number of threads, so results are bit-identical:
cached and uncached, alone and in a batch, on one thread and on many.

Threads take work (blocks of outputs, heads, rows) from shared counters, phase by phase. The caller waits only for work
that a thread has taken, never for a thread to start: a late or absent helper thread changes the time, not the result.
All threads share the arrays that memory_layout.py describes.
"""

# mypy: ignore-errors

import numpy as np

from gptcli.kernels.cpu import atomics, cached_attention, matmul, unpacked_matmul
from gptcli.kernels.cpu import memory_layout as c
from gptcli.kernels.cpu import row_vectors as r
from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu.matmul import LANES, TILE
from gptcli.kernels.cpu.simd import jit


@jit
def _take(control, phase, amount):
    """Take the next ``amount`` units of work of a phase and return the first."""
    return atomics.atomic_add(control, c.COUNTERS + phase * 2 * c.LINE, amount)


@jit
def _finish(control, phase, amount, total):
    """Add ``amount`` to the phase's count of finished units, then wait until the count is ``total``."""
    cell = c.COUNTERS + phase * 2 * c.LINE + c.LINE
    if amount > 0:
        atomics.atomic_add(control, cell, amount)
    looks = 0
    while atomics.atomic_load(control, cell) < total:
        looks += 1
        if looks > c.SPINS:
            atomics.give_way()


# --- Products ---


@jit
def _pitch(rows):
    """Distance in work between two inputs of a row, in the layout that products read: (in, TILE) or (in, 1)."""
    return np.int64(TILE) if rows > 1 else np.int64(1)


@jit
def _place(data, width, row, pitch):
    """Offset of a row's first input in the layout that products read."""
    if pitch == 1:
        return row * matmul.row_size(data, width)
    return row // TILE * TILE * matmul.row_size(data, width) + row % TILE


@jit
def _parts(width):
    return (width + matmul.PART - 1) // matmul.PART


@jit
def _tile(zeros, together, unpacked, data, start, scale, scale_start, width, work, source, pitch, sums):
    """Write to work the sums of one or two blocks for len(zeros) rows; return len(zeros).

    Rows past the last one are computed from whatever memory holds there; the caller ignores their sums.
    """
    if unpacked:
        floats = sums + 2 * TILE * LANES
        a, b = unpacked_matmul.rows_times_two_unpacked(
            zeros, data, work, floats, scale, scale_start, width, source, pitch
        )
        r.store_rows(work, sums, LANES, a)
        r.store_rows(work, sums + TILE * LANES, LANES, b)
    elif together == 2:
        a, b = matmul.rows_times_two_blocks(zeros, data, start, scale, scale_start, width, work, source, pitch)
        r.store_rows(work, sums, LANES, a)
        r.store_rows(work, sums + TILE * LANES, LANES, b)
    else:
        a = matmul.rows_times_block(zeros, data, start, scale, scale_start, width, work, source, pitch)
        r.store_rows(work, sums, LANES, a)
    return np.int64(len(zeros))


@jit
def _complete(data, scale, floats, work, table, step, block, sums, row, count):
    """Apply scale, bias and the phase's THEN to the sums (count, 16) of a block; write them to the phase's target."""
    matrix = table[step + c.WHICH]
    stride, then = table[step + c.STRIDE], table[step + c.THEN]
    where = table[step + c.LAYER] * (table[matrix + c.OUTPUTS] // LANES) + block
    scale_size = matmul.scale_size(data, table[matrix + c.INPUTS])
    factor = matmul.output_scale(data, scale, table[matrix + c.SCALE] + where * scale_size)
    bias = v.load(floats, table[matrix + c.BIAS] + where * LANES)
    for i in range(count):
        total = v.fma(v.load(work, sums + i * LANES), factor, bias)
        target = table[step + c.TARGET] + (row + i) * stride + block * LANES
        if then == c.GELU:
            total = _gelu(total)
        elif then == c.RELU:
            total = v.maximum(total, v.splat(np.float32(0.0)))
        elif then == c.ADD:
            total = v.add(v.load(work, target), total)
        v.store(work, target, total)


@jit
def _multiply(data, scale, floats, work, table, control, step, rows, thread, phase):
    """y = x @ W + b, y = gelu(x @ W + b), y = relu(x @ W + b) or y += x @ W + b for all rows, as THEN says."""
    matrix, x = table[step + c.WHICH], table[step + c.SOURCE]
    width = table[matrix + c.INPUTS]
    blocks = table[matrix + c.OUTPUTS] // LANES
    size, scale_size = matmul.block_size(data, width), matmul.scale_size(data, width)
    pitch = _pitch(rows)
    sums = table[c.SCRATCH] + thread * table[c.SCRATCH_SIZE]
    done = np.int64(0)
    while True:
        first = _take(control, phase, 4)
        if first >= blocks:
            break
        last = min(first + 4, blocks)
        done += last - first
        block = first
        while block < last:
            where = table[step + c.LAYER] * blocks + block
            start, scales = table[matrix + c.DATA] + where * size, table[matrix + c.SCALE] + where * scale_size
            if rows == 1 and last - block == 4:
                four = matmul.row_times_four_blocks(data, start, scale, scales, width, work, x)
                r.store_rows(work, sums, LANES, four)
                for i in range(4):
                    _complete(data, scale, floats, work, table, step, block + i, sums + i * LANES, 0, 1)
                block += 4
                continue
            together = 2 if v.WIDE_REGISTERS and last - block >= 2 else 1
            unpacked = False
            if together == 2 and rows > TILE:  # once for all tiles of rows
                unpacked = unpacked_matmul.unpack(data, start, 2 * size, work, sums + 2 * TILE * LANES)
            row = np.int64(0)
            while row < rows:
                left, at = rows - row, x + _place(data, width, row, pitch)
                if left >= TILE:
                    count = _tile(
                        r.zeros(TILE), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
                    )
                elif left > 4 and v.WIDE_REGISTERS:
                    count = _tile(
                        r.zeros(8), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
                    )
                elif left > 1:
                    count = _tile(
                        r.zeros(4), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
                    )
                else:
                    count = _tile(
                        r.zeros(1), together, unpacked, data, start, scale, scales, width, work, at, pitch, sums
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
def _norm(floats, work, table, x, which, y):
    """Layer norm of one row (biased variance). The padding is zero in x, weight and bias, and so in y."""
    emb_dim, width = table[c.EMB_DIM], table[c.QKV + c.INPUTS]
    sums = v.splat(np.float32(0.0))
    for i in range(0, width, LANES):
        sums = v.add(sums, v.load(work, x + i))
    mean = v.total(sums) / np.float32(emb_dim)
    means, squares = v.splat(mean), v.splat(np.float32(0.0))
    for i in range(0, width, LANES):
        centred = v.subtract(v.load(work, x + i), means)
        squares = v.fma(centred, centred, squares)
    padding = np.float32(width - emb_dim) * mean * mean
    variance = max((v.total(squares) - padding) / np.float32(emb_dim), np.float32(0.0))
    factor = v.splat(np.float32(1.0) / np.sqrt(variance + floats[table[c.EPSILON]]))
    weight = table[c.NORMS] + 2 * which * width
    for i in range(0, width, LANES):
        centred = v.multiply(v.subtract(v.load(work, x + i), means), factor)
        v.store(work, y + i, v.fma(centred, v.load(floats, weight + i), v.load(floats, weight + width + i)))


@jit
def _norm_rows(data, floats, work, table, control, step, rows, thread, phase):
    """Layer norm of every row, or of those whose logits are wanted, written in the layout that products read."""
    width, pitch = table[c.QKV + c.INPUTS], _pitch(rows)
    scratch = table[c.SCRATCH] + thread * table[c.SCRATCH_SIZE]
    listed = c.COUNTERS + table[c.STEPS] * 2 * c.LINE + 3 * table[c.MAX_ROWS]
    done = np.int64(0)
    while True:
        first = _take(control, phase, pitch)  # a whole tile: its rows share cache lines
        if first >= rows:
            break
        for i in range(first, min(first + pitch, rows)):
            row = control[listed + i] if table[step + c.SELECTION] == c.WANTED_ROWS else i
            _norm(floats, work, table, table[step + c.SOURCE] + row * width, table[step + c.WHICH], scratch)
            target = table[step + c.TARGET] + _place(data, width, i, pitch)
            for part in range(_parts(width)):
                matmul.write_part(data, work, scratch, width, part, target, pitch)
            done += 1
    _finish(control, phase, done, rows)


@jit
def _arrange(data, work, table, control, step, rows, phase):
    """Copy rows (rows, in) into the layout that the product with this matrix reads."""
    width, pitch = table[table[step + c.WHICH] + c.INPUTS], _pitch(rows)
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
                table[step + c.SOURCE] + row * width,
                table[step + c.TARGET] + _place(data, width, row, pitch),
            )
            matmul.write_part(data, work, source, width, part, target, pitch)
        done += 1
    _finish(control, phase, done, total)


@jit
def _embed(data, scale, floats, work, table, control, rows, phase):
    """x = token embedding + position embedding, for every row."""
    emb_dim, width = table[c.EMB_DIM], table[c.QKV + c.INPUTS]
    ids = c.COUNTERS + table[c.STEPS] * 2 * c.LINE
    done = np.int64(0)
    while True:
        row = _take(control, phase, 1)
        if row >= rows:
            break
        token, position = control[ids + row], control[ids + table[c.MAX_ROWS] + row]
        for k in range(emb_dim):
            value = matmul.weight(data, table[c.WTE + c.DATA], scale, table[c.WTE + c.SCALE], width, k, token)
            work[table[c.X] + row * width + k] = value + floats[table[c.WPE] + position * emb_dim + k]
        done += 1
    _finish(control, phase, done, rows)


@jit
def _attention(floats, work, table, control, layer, rows, thread, phase):
    """Causal attention of all rows; a unit of work is a head. Keys and values are written to the cache first.

    Up to `TILE` consecutive rows of one slot are computed together, fewer than 3 one by one.
    """
    slots = c.COUNTERS + table[c.STEPS] * 2 * c.LINE + 2 * table[c.MAX_ROWS]
    done = np.int64(0)
    while True:
        head = _take(control, phase, 1)
        if head >= table[c.HEADS]:
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
    _finish(control, phase, done, table[c.HEADS])


def run(data, scale, floats, work, table, control, thread):
    """Thread 0 computes one step and returns; any other joins steps until `IDLE` loads in a row find none."""
    last, looks, epoch = np.int64(0), np.int64(0), np.int64(0)
    steps = table[c.STEPS]
    if thread == 0:
        for i in range(steps * 2 * c.LINE):
            control[c.COUNTERS + i] = 0
        control[c.EPOCH] += 1
        atomics.atomic_store(control, c.OPEN, control[c.EPOCH])
    while looks < c.IDLE:
        if thread != 0:
            epoch = atomics.atomic_load(control, c.OPEN)
            if epoch == 0 or epoch == last:
                looks += 1
                if looks > c.SPINS:
                    atomics.give_way()
                continue
            atomics.atomic_add(control, c.INSIDE, 1)
        if thread == 0 or atomics.atomic_load(control, c.OPEN) == epoch:
            for phase in range(steps):
                step = c.PROGRAM + phase * c.STEP
                condition = table[step + c.CONDITION]
                rows = control[c.WANTED] if table[step + c.SELECTION] == c.WANTED_ROWS else control[c.ROWS]
                if rows == 0 or (
                    condition != c.ALWAYS
                    and condition != control[c.EXIT_LAYER]
                    and not (condition == c.IF_EARLY_EXIT and control[c.EXIT_LAYER] > 0)
                ):
                    continue
                operation = table[step + c.OPERATION]
                if operation == c.MULTIPLY:
                    _multiply(data, scale, floats, work, table, control, step, rows, thread, phase)
                elif operation == c.NORM:
                    _norm_rows(data, floats, work, table, control, step, rows, thread, phase)
                elif operation == c.ARRANGE:
                    _arrange(data, work, table, control, step, rows, phase)
                elif operation == c.ATTEND:
                    _attention(floats, work, table, control, table[step + c.LAYER], rows, thread, phase)
                else:
                    _embed(data, scale, floats, work, table, control, rows, phase)
            last, looks = epoch, np.int64(0)
        if thread == 0:
            atomics.atomic_store(control, c.OPEN, 0)
            while atomics.atomic_load(control, c.INSIDE) != 0:
                atomics.give_way()
            return
        atomics.atomic_add(control, c.INSIDE, -1)
    atomics.atomic_store(control, c.ASLEEP + thread * c.LINE, 1)
