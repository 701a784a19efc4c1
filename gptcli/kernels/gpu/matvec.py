"""Products of a matrix with one row or a few rows of activations, fused with what stands before and after them.

A decode step is bound by reading the weights, so a product also does the layer norm in front of it and the bias,
activation, residual sum or cache write behind it. Weights lie in rows (N, K), one for each output (see row_weights.py):
float, int8 with a scale a row, or int4 in groups of 32 inputs with a scale a group; packed ones widen in registers.

One row: each program takes a few outputs whole, all weights of them loaded at once and before the previous kernel has
ended (programmatic dependent launch), multiplied and summed in float32. A few rows: `tl.dot` over blocks of inputs.
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _activated(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu_new":  # x/2 (1 + tanh u) = x sigmoid(2u)
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0)
    return y


@triton.jit
def _combined(
    parts, lse, length, H, H_PADDED: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, CHUNK: tl.constexpr
):
    """(H_PADDED, D): the attention of one row from its parts (SPLITS, H, D), each weighted by exp(lse)."""
    head = tl.arange(0, H_PADDED)
    element = head[:, None] * D + tl.arange(0, D)[None, :]
    largest = tl.full((H_PADDED,), -float("inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        there = (head < H) & (split * CHUNK < length)
        largest = tl.maximum(largest, tl.load(lse + split * H + head, mask=there, other=-float("inf")))
    largest = tl.where(head < H, largest, 0.0)
    total = tl.zeros((H_PADDED,), tl.float32)
    found = tl.zeros((H_PADDED, D), tl.float32)
    for split in tl.static_range(SPLITS):
        there = (head < H) & (split * CHUNK < length)
        share = tl.exp(tl.load(lse + split * H + head, mask=there, other=-float("inf")) - largest)
        total += share
        found += share[:, None] * tl.load(parts + split * H * D + element, mask=there[:, None], other=0.0)
    return found / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def _store_qkv(y, live, n, q, cache, slot, place, row, C, D, S, H, part_stride):
    """Outputs n of the fused projection: queries to q (R, C), keys and values to their place in the cache."""
    tl.store(q + row * C + n, y, mask=live & (n < C))
    inner = n % C
    part = (n // C - 1).to(tl.int64)
    where = part * part_stride + ((slot * H + inner // D) * S + place) * D + inner % D
    tl.store(cache + where, y.to(cache.dtype.element_ty), mask=live & (n >= C))


@triton.jit
def one_row_kernel(
    x,
    weight,
    scale,
    bias,
    gain,
    shift,
    out,
    cache,
    places,
    lse,
    N,
    K,
    eps,
    H,
    D: tl.constexpr,
    S,
    part_stride,
    KIND: tl.constexpr,
    PROLOGUE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, WIDTH)
    live = n < N
    # What no kernel writes is loaded before the wait: the weights are on their way while the last kernel still runs.
    if KIND == "int4":
        groups = tl.cdiv(K, 32)
        g = tl.arange(0, WIDTH // 32)
        byte = (g * 16)[:, None] + tl.arange(0, 16)[None, :]
        inside = live[:, None] & (g < groups)[None, :]
        w = tl.load(
            weight + (n * (groups * 16))[:, None, None] + byte[None, :, :],
            mask=inside[:, :, None],
            other=0,
            eviction_policy="evict_first",
        )
        s = tl.load(scale + n[:, None] * groups + g[None, :], mask=inside, other=0.0).to(tl.float32)
    else:
        w = tl.load(
            weight + n[:, None] * K + k[None, :],
            mask=live[:, None] & (k < K)[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        if KIND == "int8":
            s = tl.load(scale + n, mask=live, other=0.0).to(tl.float32)
    if BIASED:
        b = tl.load(bias + n, mask=live, other=0.0).to(tl.float32)
    if PROLOGUE == "norm":
        gains = tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32)
        shifts = tl.load(shift + k, mask=k < K, other=0.0).to(tl.float32)
    if DEPENDENT:
        gdc_wait()
    if PROLOGUE == "combine":
        length = tl.load(places) + 1
        row = tl.reshape(_combined(x, lse, length, H, WIDTH // D, D, SPLITS, CHUNK), (WIDTH,))
    else:
        row = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        if PROLOGUE == "norm":
            row = tl.where(k < K, row - tl.sum(row, 0) / K, 0.0)
            row = row * (1.0 / tl.sqrt(tl.sum(row * row, 0) / K + eps)) * gains + shifts
    if KIND == "int4":  # byte j of a group holds input j below input j + 16, each plus 8
        low, high = tl.split(tl.permute(tl.reshape(row, (WIDTH // 32, 2, 16)), (0, 2, 1)))
        products = (w & 15).to(tl.float32) * low[None, :, :] + (w >> 4).to(tl.float32) * high[None, :, :]
        y = tl.sum((tl.sum(products, 2) - 8.0 * tl.sum(low + high, 1)[None, :]) * s, 1)
    else:
        y = tl.sum(w.to(tl.float32) * row[None, :], 1)
        if KIND == "int8":
            y = y * s
    if BIASED:
        y = y + b
    if EPILOGUE == "qkv":
        _store_qkv(y, live, n, out, cache, 0, tl.load(places), 0, K, D, S, H, part_stride)
    elif EPILOGUE == "add":
        tl.store(out + n, tl.load(out + n, mask=live, other=0.0) + y, mask=live)
    else:
        tl.store(out + n, _activated(y, ACTIVATION).to(out.dtype.element_ty), mask=live)


@triton.jit
def _statistics(x, row, live, K, eps, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Mean and 1 / deviation of each row, in one pass that merges blocks (Chan et al., 1979)."""
    mean = tl.zeros((BLOCK_M,), tl.float32)
    square = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = live[:, None] & (k < K)[None, :]
        block = tl.load(x + row[:, None] * K + k[None, :], mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(K - start, BLOCK_K).to(tl.float32)
        block_mean = tl.sum(block, 1) / count
        centred = tl.where(inside, block - block_mean[:, None], 0.0)
        delta = block_mean - mean
        share = count / (start + count)
        square += tl.sum(centred * centred, 1) + delta * delta * start * share
        mean += delta * share
    return mean, 1.0 / tl.sqrt(square / K + eps)


@triton.jit
def _inputs(x, gain, shift, row, live, k, K, mean, deviation, NORMED: tl.constexpr):
    """(BLOCK_M, inputs k) of the rows, normed if so."""
    inside = k < K
    block = tl.load(x + row[:, None] * K + k[None, :], mask=live[:, None] & inside[None, :], other=0.0)
    if NORMED:
        gains = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
        shifts = tl.load(shift + k, mask=inside, other=0.0).to(tl.float32)
        block = (block.to(tl.float32) - mean[:, None]) * deviation[:, None] * gains[None, :] + shifts[None, :]
    return block


@triton.jit
def few_rows_kernel(
    x,
    weight,
    scale,
    bias,
    gain,
    shift,
    out,
    cache,
    places,
    R,
    T,
    N,
    K,
    eps,
    H,
    D,
    S,
    part_stride,
    KIND: tl.constexpr,
    PROLOGUE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live, live_n = row < R, n < N
    NORMED: tl.constexpr = PROLOGUE == "norm"
    mean = tl.zeros((BLOCK_M,), tl.float32)
    deviation = mean
    if NORMED:
        mean, deviation = _statistics(x, row, live, K, eps, BLOCK_M, BLOCK_K)
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if KIND == "int4":
        HALF: tl.constexpr = BLOCK_K // 2
        groups = tl.cdiv(K, 32)
        j = tl.arange(0, HALF)
        for start in range(0, K, BLOCK_K):
            low_k = start + j // 16 * 32 + j % 16
            g = start // 32 + tl.arange(0, BLOCK_K // 32)
            inside = live_n[:, None] & (g < groups)[None, :]
            byte = start // 2 + j
            w = tl.load(
                weight + n[:, None] * (groups * 16) + byte[None, :],
                mask=live_n[:, None] & (byte < groups * 16)[None, :],
                other=0,
            )
            s = tl.load(scale + n[:, None] * groups + g[None, :], mask=inside, other=0.0).to(tl.float32)
            s = tl.reshape(tl.broadcast_to(s[:, :, None], (BLOCK_N, BLOCK_K // 32, 16)), (BLOCK_N, HALF))
            low = (((w & 15).to(tl.float32) - 8.0) * s).to(DTYPE)
            high = (((w >> 4).to(tl.float32) - 8.0) * s).to(DTYPE)
            low_x = _inputs(x, gain, shift, row, live, low_k, K, mean, deviation, NORMED).to(DTYPE)
            high_x = _inputs(x, gain, shift, row, live, low_k + 16, K, mean, deviation, NORMED).to(DTYPE)
            y = tl.dot(low_x, tl.trans(low), y, input_precision="ieee")
            y = tl.dot(high_x, tl.trans(high), y, input_precision="ieee")
    else:
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            w = tl.load(weight + n[:, None] * K + k[None, :], mask=live_n[:, None] & (k < K)[None, :], other=0)
            block = _inputs(x, gain, shift, row, live, k, K, mean, deviation, NORMED).to(DTYPE)
            y = tl.dot(block, tl.trans(w.to(DTYPE)), y, input_precision="ieee")
        if KIND == "int8":
            y = y * tl.load(scale + n, mask=live_n, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        y = y + tl.load(bias + n, mask=live_n, other=0.0).to(tl.float32)[None, :]
    both = live[:, None] & live_n[None, :]
    where = row[:, None] * N + n[None, :]
    if EPILOGUE == "qkv":
        slot = row // T
        place = tl.load(places + slot, mask=live, other=0) + row % T
        _store_qkv(
            y, both, n[None, :], out, cache, slot[:, None], place[:, None], row[:, None], K, D, S, H, part_stride
        )
    elif EPILOGUE == "add":
        tl.store(out + where, tl.load(out + where, mask=both, other=0.0) + y, mask=both)
    else:
        tl.store(out + where.to(tl.int64), _activated(y, ACTIVATION).to(out.dtype.element_ty), mask=both)
