"""Products of a matrix with one row of activations, fused with the operations before and after them.

A decode step is bound by the memory bandwidth of the weights, so one kernel computes the layer norm before the product,
or combines the parts of the attention, the product, and the bias, activation, residual sum or cache write after it.
Weights are rows (N, K), one for each output (see row_weights.py): float, int8 with one scale a row, or int4 with one
scale for each group of 32 inputs; packed weights are converted to float32 in registers.

Each program computes a few outputs over all inputs. It loads all of its weights at once, with programmatic dependent
launch before the previous kernel has ended, and multiplies and sums in float32.
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
    """(H_PADDED, D): the attention of one row, the mean of its parts (SPLITS, H, D) weighted by exp(lse); padding 0."""
    head = tl.arange(0, H_PADDED)
    element = head[:, None] * D + tl.arange(0, D)[None, :]
    largest = tl.full((H_PADDED,), -float("inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        there = (head < H) & (head * 0 + split * CHUNK < length)
        largest = tl.maximum(largest, tl.load(lse + split * H + head, mask=there, other=-float("inf")))
    largest = tl.where(head < H, largest, 0.0)
    total = tl.zeros((H_PADDED,), tl.float32)
    found = tl.zeros((H_PADDED, D), tl.float32)
    for split in tl.static_range(SPLITS):
        there = (head < H) & (head * 0 + split * CHUNK < length)
        share = tl.exp(tl.load(lse + split * H + head, mask=there, other=-float("inf")) - largest)
        total += share
        found += share[:, None] * tl.load(parts + split * H * D + element, mask=there[:, None], other=0.0)
    return found / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def store_qkv(y, live, n, q, cache, slot, place, row, C, D, S, H, part_stride):
    """Outputs n of the fused projection: queries to q (R, C), keys and values to their positions in the cache."""
    tl.store(q + row * C + n, y, mask=live & (n < C))
    inner = n % C
    part = (n // C - 1).to(tl.int64)
    where = part * part_stride + ((slot * H + inner // D) * S + place) * D + inner % D
    tl.store(cache + where, y.to(cache.dtype.element_ty), mask=live & (n >= C))


@triton.jit
def _term(bits, exponent, MASK: tl.constexpr, ZERO: tl.constexpr, UNIT: tl.constexpr, x):
    """q x, where the masked bits are UNIT (q + ZERO) for an integer q.

    Integer conversion is slow. The masked bits as the mantissa of a float32 with the exponent of 2^23 give 2^23 plus
    their value, so a subtraction replaces the conversion; dividing x by UNIT replaces a shift of the bits.
    """
    q = (bits & MASK | exponent).to(tl.float32, bitcast=True) - (8388608.0 + ZERO * UNIT)
    return q * (x * (1.0 / UNIT))[None, :]


@triton.jit
def _packed_sums(w, row, exponent, FOUR_BITS: tl.constexpr, COUNT: tl.constexpr):
    """(n, COUNT): dot products of the four packed weights of an element of w (n, COUNT) with four inputs, unscaled."""
    even, odd = tl.split(tl.reshape(row, (COUNT, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    if FOUR_BITS:
        bits = w.to(tl.int32)
        y = _term(bits, exponent, 0xF, 8, 1, x0)
        y += _term(bits, exponent, 0xF0, 8, 16, x1)
        y += _term(bits, exponent, 0xF00, 8, 256, x2)
        y += _term(bits, exponent, 0xF000, 8, 4096, x3)
    else:
        bits = w ^ -0x7F7F7F80  # each byte plus 128
        y = _term(bits, exponent, 0xFF, 128, 1, x0)
        y += _term(bits, exponent, 0xFF00, 128, 256, x1)
        bits = bits >> 16
        y += _term(bits, exponent, 0xFF, 128, 1, x2)
        y += _term(bits, exponent, 0xFF00, 128, 256, x3)
    return y


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
    exponent,  # 0x4B000000; as an immediate operand it would take one more instruction
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
    """out (N): the epilogue of W y + bias; y (K) is x, the layer norm of x, or the combined attention parts x."""
    if DEPENDENT:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, WIDTH)
    live = n < N
    # No kernel writes weights, scales, biases or gains: these loads precede the wait and overlap the previous kernel.
    if KIND == "int4":
        groups = (K + 31) // 32
        short = tl.arange(0, WIDTH // 4)
        w = tl.load(
            weight + n[:, None] * (groups * 8) + short[None, :],
            mask=live[:, None] & (short < groups * 8)[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        g = tl.arange(0, WIDTH // 32)
        inside = live[:, None] & (g < groups)[None, :]
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
    if EPILOGUE == "qkv":  # loaded here, so that the load overlaps the product
        place = tl.load(places)
    elif EPILOGUE == "add":
        old = tl.load(out + n, mask=live, other=0.0)
    if PROLOGUE == "combine":
        length = tl.load(places) + 1
        row = tl.reshape(_combined(x, lse, length, H, WIDTH // D, D, SPLITS, CHUNK), (WIDTH,))
    else:
        row = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        if PROLOGUE == "norm":
            row = tl.where(k < K, row - tl.sum(row, 0) / K, 0.0)
            row = row * (1.0 / tl.sqrt(tl.sum(row * row, 0) / K + eps)) * gains + shifts
    if KIND == "int4":
        sums = _packed_sums(w, row, exponent, True, WIDTH // 4)
        y = tl.sum(tl.sum(tl.reshape(sums, (BLOCK_N, WIDTH // 32, 8)), 2) * s, 1)
    elif KIND == "int8":
        y = tl.sum(_packed_sums(w, row, exponent, False, WIDTH // 4), 1) * s
    else:
        y = tl.sum(w.to(tl.float32) * row[None, :], 1)
    if BIASED:
        y = y + b
    if EPILOGUE == "qkv":
        store_qkv(y, live, n, out, cache, 0, place, 0, K, D, S, H, part_stride)
    elif EPILOGUE == "add":
        tl.store(out + n, old + y, mask=live)
    else:
        tl.store(out + n, activated(y, ACTIVATION).to(out.dtype.element_ty), mask=live)
