"""Products of a matrix with one row of activations, fused with what stands before and after them.

A decode step is bound by reading the weights, so a product also does the layer norm in front of it and the bias,
activation, residual sum or cache write behind it. Weights lie in rows (N, K), one for each output (see row_weights.py):
float, int8 with a scale a row, or int4 in groups of 32 inputs with a scale a group; packed ones widen in registers.

Each program takes a few outputs whole, all weights of them loaded at once and before the previous kernel has ended
(programmatic dependent launch), multiplied and summed in float32.
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):
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
def store_qkv(y, live, n, q, cache, slot, place, row, C, D, S, H, part_stride):
    """Outputs n of the fused projection: queries to q (R, C), keys and values to their place in the cache."""
    tl.store(q + row * C + n, y, mask=live & (n < C))
    inner = n % C
    part = (n // C - 1).to(tl.int64)
    where = part * part_stride + ((slot * H + inner // D) * S + place) * D + inner % D
    tl.store(cache + where, y.to(cache.dtype.element_ty), mask=live & (n >= C))


@triton.jit
def _groups_of_four_bits(w, row, GROUPS: tl.constexpr):
    """(n, GROUPS): sums over each group of words w (n, GROUPS, 4) times row, without scale.

    Conversions of integers are slow, so four bits become the low end of the mantissa of 2^23, at whatever place they
    stand; what that multiplies them by is taken from the row, exactly.
    """
    half, place = tl.arange(0, 2), tl.arange(0, 4)
    bits = w[:, :, None, :] >> (half * 16)[None, None, :, None]
    bits = bits[:, :, :, None, :] & (15 << place * 4)[None, None, None, :, None] | 0x4B000000
    zero = 8388608.0 + (8 << place * 4).to(tl.float32)
    q = bits.to(tl.float32, bitcast=True) - zero[None, None, None, :, None]
    x = tl.reshape(row, (GROUPS, 2, 4, 4)) * (1.0 / (1 << place * 4).to(tl.float32))[None, None, :, None]
    products = q * x[None, :, :, :, :]
    return tl.sum(tl.sum(tl.sum(products, 4), 3), 2)


@triton.jit
def _bytes(w, row, WORDS: tl.constexpr):
    """(n, WORDS): sums over each word of w (n, WORDS), four int8, times row; converted as four bits are."""
    place = tl.arange(0, 4)
    bits = (w[:, :, None] >> (place * 8)[None, None, :]) & 255 ^ 0x4B000080
    q = bits.to(tl.float32, bitcast=True) - 8388736.0
    return tl.sum(q * tl.reshape(row, (WORDS, 4))[None, :, :], 2)


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
    K: tl.constexpr,
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
        groups = (K + 31) // 32
        g = tl.arange(0, WIDTH // 32)
        inside = live[:, None] & (g < groups)[None, :]
        word = (g * 4)[:, None] + tl.arange(0, 4)[None, :]
        w = tl.load(
            weight + (n * (groups * 4))[:, None, None] + word[None, :, :],
            mask=inside[:, :, None],
            other=0,
            eviction_policy="evict_first",
        )
        s = tl.load(scale + n[:, None] * groups + g[None, :], mask=inside, other=0.0).to(tl.float32)
    elif KIND == "int8":
        words = (K + 15) // 16 * 4
        word = tl.arange(0, WIDTH // 4)
        w = tl.load(
            weight + n[:, None] * words + word[None, :],
            mask=live[:, None] & (word < words)[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        s = tl.load(scale + n, mask=live, other=0.0).to(tl.float32)
    else:
        w = tl.load(
            weight + n[:, None] * K + k[None, :],
            mask=live[:, None] & (k < K)[None, :],
            other=0,
            eviction_policy="evict_first",
        )
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
    if KIND == "int4":
        y = tl.sum(_groups_of_four_bits(w, row, WIDTH // 32) * s, 1)
    elif KIND == "int8":
        y = tl.sum(_bytes(w, row, WIDTH // 4), 1) * s
    else:
        y = tl.sum(w.to(tl.float32) * row[None, :], 1)
    if BIASED:
        y = y + b
    if EPILOGUE == "qkv":
        store_qkv(y, live, n, out, cache, 0, tl.load(places), 0, K, D, S, H, part_stride)
    elif EPILOGUE == "add":
        tl.store(out + n, tl.load(out + n, mask=live, other=0.0) + y, mask=live)
    else:
        tl.store(out + n, activated(y, ACTIVATION).to(out.dtype.element_ty), mask=live)
