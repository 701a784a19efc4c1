"""Causal attention with dropout on its weights, forward and backward, compiled: one head of one window at a time.

The attention weights of a block of `QUERIES` queries are stored (keys, 48), so that the softmax needs no sum across a
vector and each product reads adjacent elements. They are not kept after the call: the backward pass computes them again
from each query's largest score and 1 / its sum of exponentials (FlashAttention, Dao et al., 2022), and the dropout mask
from row and column (dropout_hash.py).

Queries, keys and values are copied to a thread's scratch, padded with zeros to whole tiles and panels.
"""

# mypy: ignore-errors

import numpy as np

from gptcli.kernels.cpu import row_vectors as r
from gptcli.kernels.cpu import simd as v
from gptcli.kernels.cpu.dropout_hash import kept, row_keys
from gptcli.kernels.cpu.matmul import LANES, TILE
from gptcli.kernels.cpu.memory_layout import padded
from gptcli.kernels.cpu.simd import jit

PANELS = 3
QUERIES = PANELS * LANES  # 48, also a multiple of TILE (12 or 6)
NEVER = np.float32(-3e38)  # the score of a masked key, in place of -inf
LEAST = np.float32(-80.0)  # e^x is set to 0 below: products with denormal numbers take a hundred times as long


def scratch_size(length: int, head_size: int) -> int:
    """Number of float32 of scratch per thread for windows of ``length`` tokens."""
    keys, channels = padded(length, TILE), padded(head_size, LANES)
    tiles_of_keys = keys // TILE * LANES * channels
    return 3 * keys * channels + 2 * (tiles_of_keys + keys * QUERIES) + (5 * channels + 2 * TILE + 3) * QUERIES


_padded = jit(padded)


@jit
def _copy(source, at, count, size, stride, target, to, target_stride, factor):
    """target[to + i target_stride + k] = factor source[at + i stride + k] for i < ``count`` and k < ``size``."""
    whole, factors = size // LANES * LANES, v.splat(factor)
    for i in range(count):
        row, place = at + i * stride, to + i * target_stride
        for k in range(0, whole, LANES):
            v.store(target, place + k, v.multiply(v.load(source, row + k), factors))
        for k in range(whole, size):
            target[place + k] = source[row + k] * factor


@jit
def _rows(source, at, stride, count, whole, size, channels, factor, scratch, to):
    """Write rows (count, size) of source times a factor as (whole, channels), padded with zeros."""
    _copy(source, at, count, size, stride, scratch, to, channels, factor)
    if size < channels:
        for i in range(count):
            for k in range(size, channels):
                scratch[to + i * channels + k] = 0.0
    for i in range(to + count * channels, to + whole * channels):
        scratch[i] = 0.0


@jit
def _turned(scratch, rows, channels, whole, width, to):
    """Transpose rows (whole, channels) into whole / width tiles (channels, 16); only ``width`` columns are used."""
    for first in range(0, whole, width):
        tile = to + first // width * channels * LANES
        for k in range(0, channels, LANES):
            r.transpose(scratch, rows + first * channels + k, channels, width, tile + k * LANES)


@jit
def _multiply(scratch, start, step, apart, panels, inputs, at, pitch, stride, to, to_stride, add):
    """to[i, 16 p :] = (``add``: +=) the sum over k of scratch[at + k pitch + i stride] times vector k of panel p.

    For `TILE` rows i and all panels; panel p begins at start + p step, and its vectors are ``apart`` elements apart.
    """
    panel = np.int64(0)
    while panel < panels:
        first, target = start + panel * step, to + panel * LANES
        a = r.load_rows(r.zeros(TILE), scratch, target, to_stride) if add else r.zeros(TILE)
        if v.WIDE_REGISTERS and panels - panel >= 2:
            b = r.load_rows(a, scratch, target + LANES, to_stride) if add else r.zeros(TILE)
            for k in range(inputs):
                left, right = v.load(scratch, first + k * apart), v.load(scratch, first + step + k * apart)
                a, b = r.fma_rows_twice(a, b, left, right, scratch, at + k * pitch, stride)
            r.store_rows(scratch, target + LANES, to_stride, b)
            panel += 1
        else:
            for k in range(inputs):
                a = r.fma_rows(a, v.load(scratch, first + k * apart), scratch, at + k * pitch, stride)
        r.store_rows(scratch, target, to_stride, a)
        panel += 1


@jit
def _visible(scores, key, query):
    """Scores of one key for 16 queries from ``query`` on; `NEVER` for queries before the key."""
    if key <= query:
        return scores
    position = v.add(v.splat(np.float32(query)), v.iota())
    return v.where_less(position, v.splat(np.float32(key)), v.splat(NEVER), scores)


@jit
def _power(score, peak):
    """e^(score - peak), or 0 where score - peak < `LEAST`."""
    below = v.subtract(score, peak)
    return v.where_less(below, v.splat(LEAST), v.splat(np.float32(0.0)), v.exp(below))


@jit
def _dot(a, at, b, place, size):
    whole, sums = size // LANES * LANES, v.splat(np.float32(0.0))
    for k in range(0, whole, LANES):
        sums = v.fma(v.load(a, at + k), v.load(b, place + k), sums)
    result = v.total(sums)
    for k in range(whole, size):
        result += a[at + k] * b[place + k]
    return result


@jit
def forward(qkv, out, statistics, window, head, heads, length, size, scale, seed, dropped, factor, scratch, free):
    """Write one head's part of out (B, T, C) and, for `backward`, of statistics (B, H, 2, T).

    Statistics are each query's largest score and 1 / its sum of exponentials.
    """
    keys, channels, width = _padded(length, TILE), _padded(size, LANES), heads * size
    stride, panels, tile, panel = 3 * width, channels // LANES, channels * LANES, channels * LANES
    values = free
    key_tiles = values + keys * channels
    weights = key_tiles + keys // TILE * tile
    queries = weights + keys * QUERIES
    found = queries + PANELS * panel
    peaks = found + QUERIES * channels
    sums = peaks + QUERIES
    first, unit = window * length * stride + head * size, window * heads + head
    one = np.float32(1.0)
    _rows(qkv, first + width, stride, length, keys, size, channels, one, scratch, values)
    _turned(scratch, values, channels, keys, TILE, key_tiles)
    _rows(qkv, first + 2 * width, stride, length, keys, size, channels, one, scratch, values)
    for query in range(0, length, QUERIES):
        count = min(QUERIES, length - query)
        seen = _padded(query + count, TILE)
        _rows(qkv, first + query * stride, stride, count, QUERIES, size, channels, scale, scratch, found)
        _turned(scratch, found, channels, QUERIES, LANES, queries)
        for i in range(0, QUERIES, LANES):
            v.store(scratch, peaks + i, v.splat(NEVER))
            v.store(scratch, sums + i, v.splat(np.float32(0.0)))
        for key in range(0, seen, TILE):
            keys_at, to = key_tiles + key // TILE * tile, weights + key * QUERIES
            _multiply(scratch, queries, panel, LANES, PANELS, size, keys_at, LANES, 1, to, QUERIES, False)
            for i in range(0, QUERIES, LANES):
                peak = v.load(scratch, peaks + i)
                for k in range(TILE):
                    peak = v.maximum(peak, _visible(v.load(scratch, to + k * QUERIES + i), key + k, query + i))
                v.store(scratch, peaks + i, peak)
        for key in range(0, seen, TILE):
            for i in range(0, QUERIES, LANES):
                peak, total = v.load(scratch, peaks + i), v.load(scratch, sums + i)
                row = row_keys(seed, head * length + query + i)
                for k in range(TILE):
                    place = weights + (key + k) * QUERIES + i
                    power = _power(_visible(v.load(scratch, place), key + k, query + i), peak)
                    total = v.add(total, power)
                    v.store(scratch, place, v.multiply(power, kept(row, np.int64(key + k), dropped, factor)))
                v.store(scratch, sums + i, total)
        for i in range(0, QUERIES, TILE):
            inputs, to = min(seen, query + i + TILE), found + i * channels
            _multiply(scratch, values, LANES, channels, panels, inputs, weights + i, QUERIES, 1, to, channels, False)
        for i in range(count):
            inverse = one / scratch[sums + i]
            to = (window * length + query + i) * width + head * size
            _copy(scratch, found + i * channels, 1, size, 0, out, to, 0, inverse)
            statistics[unit * 2 * length + query + i] = scratch[peaks + i]
            statistics[(unit * 2 + 1) * length + query + i] = inverse


@jit
def backward(
    qkv, out, statistics, grad_out, grad_qkv, window, head, heads, length, size, scale, seed, dropped, factor, scratch,
    free,
):  # fmt: skip
    """Write one head's part of dL/dqkv (B, T, 3C), from dL/dout (B, T, C)."""
    keys, channels, width = _padded(length, TILE), _padded(size, LANES), heads * size
    stride, panels, tile, panel = 3 * width, channels // LANES, channels * LANES, channels * LANES
    key_rows = free
    key_tiles = key_rows + keys * channels
    value_tiles = key_tiles + keys // TILE * tile
    grad_keys = value_tiles + keys // TILE * tile
    grad_values = grad_keys + keys * channels
    weights = grad_values + keys * channels
    grads = weights + keys * QUERIES  # dL/dscores
    query_rows = grads + keys * QUERIES
    queries = query_rows + QUERIES * channels
    wanted_rows = queries + PANELS * panel  # dL/dout
    wanted = wanted_rows + QUERIES * channels
    found = wanted + PANELS * panel
    scores = found + QUERIES * channels
    changes = scores + TILE * QUERIES
    peaks = changes + TILE * QUERIES
    inverses = peaks + QUERIES
    deltas = inverses + QUERIES
    first, unit = window * length * stride + head * size, window * heads + head
    first_out = window * length * width + head * size
    one = np.float32(1.0)
    _rows(qkv, first + 2 * width, stride, length, keys, size, channels, one, scratch, key_rows)
    _turned(scratch, key_rows, channels, keys, TILE, value_tiles)
    _rows(qkv, first + width, stride, length, keys, size, channels, one, scratch, key_rows)
    _turned(scratch, key_rows, channels, keys, TILE, key_tiles)
    for i in range(0, 2 * keys * channels, LANES):
        v.store(scratch, grad_keys + i, v.splat(np.float32(0.0)))
    for query in range(0, length, QUERIES):
        count = min(QUERIES, length - query)
        seen = _padded(query + count, TILE)
        at, at_out = first + query * stride, first_out + query * width
        _rows(qkv, at, stride, count, QUERIES, size, channels, scale, scratch, query_rows)
        _turned(scratch, query_rows, channels, QUERIES, LANES, queries)
        _rows(grad_out, at_out, width, count, QUERIES, size, channels, one, scratch, wanted_rows)
        _turned(scratch, wanted_rows, channels, QUERIES, LANES, wanted)
        for i in range(QUERIES):  # padding has weights and gradients of 0
            inside, row = i < count, at_out + i * width
            scratch[deltas + i] = _dot(grad_out, row, out, row, size) if inside else np.float32(0.0)
            scratch[peaks + i] = statistics[unit * 2 * length + query + i] if inside else np.float32(0.0)
            scratch[inverses + i] = statistics[(unit * 2 + 1) * length + query + i] if inside else np.float32(0.0)
        for key in range(0, seen, TILE):
            keys_at, values_at = key_tiles + key // TILE * tile, value_tiles + key // TILE * tile
            _multiply(scratch, queries, panel, LANES, PANELS, size, keys_at, LANES, 1, scores, QUERIES, False)
            _multiply(scratch, wanted, panel, LANES, PANELS, size, values_at, LANES, 1, changes, QUERIES, False)
            for i in range(0, QUERIES, LANES):
                peak, inverse = v.load(scratch, peaks + i), v.load(scratch, inverses + i)
                delta, row = v.load(scratch, deltas + i), row_keys(seed, head * length + query + i)
                for k in range(TILE):
                    score = _visible(v.load(scratch, scores + k * QUERIES + i), key + k, query + i)
                    weight = v.multiply(_power(score, peak), inverse)
                    keep = kept(row, np.int64(key + k), dropped, factor)
                    change = v.subtract(v.multiply(v.load(scratch, changes + k * QUERIES + i), keep), delta)
                    place = (key + k) * QUERIES + i
                    v.store(scratch, weights + place, v.multiply(weight, keep))
                    v.store(scratch, grads + place, v.multiply(weight, change))
        for i in range(0, QUERIES, TILE):
            inputs, to = min(seen, query + i + TILE), found + i * channels
            _multiply(scratch, key_rows, LANES, channels, panels, inputs, grads + i, QUERIES, 1, to, channels, False)
        for key in range(0, seen, TILE):
            skipped = max(0, key - query) // TILE * TILE  # queries before these keys
            inputs, place = QUERIES - skipped, key * QUERIES + skipped
            _multiply(
                scratch, wanted_rows + skipped * channels, LANES, channels, panels, inputs, weights + place, 1, QUERIES,
                grad_values + key * channels, channels, True,
            )  # fmt: skip
            _multiply(
                scratch, query_rows + skipped * channels, LANES, channels, panels, inputs, grads + place, 1, QUERIES,
                grad_keys + key * channels, channels, True,
            )  # fmt: skip
        _copy(scratch, found, count, size, channels, grad_qkv, at, stride, scale)
    _copy(scratch, grad_keys, length, size, channels, grad_qkv, first + width, stride, one)
    _copy(scratch, grad_values, length, size, channels, grad_qkv, first + 2 * width, stride, one)
