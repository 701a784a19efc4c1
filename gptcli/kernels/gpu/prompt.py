"""A prompt's layer norms, its attention, products with what follows them, and what lies between cuBLAS's products.

Narrow models are bound by launches and not by arithmetic, so a product there also writes the cache or adds to the
residual stream; wide ones are multiplied by cuBLAS (see prompt_launches.py).
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from gptcli.kernels.gpu.matvec import activated, store_qkv


@triton.jit
def norm_kernel(x, bias, gain, shift, out, C, eps, BIASED: tl.constexpr, WIDTH: tl.constexpr, DEPENDENT: tl.constexpr):
    """A row of x (T, C) becomes x + bias, and out (T, C) its layer norm."""
    if DEPENDENT:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    inside = k < C
    gains = tl.load(gain + k, mask=inside, other=0.0).to(tl.float32)
    shifts = tl.load(shift + k, mask=inside, other=0.0).to(tl.float32)
    if DEPENDENT:
        gdc_wait()
    block = tl.load(x + row * C + k, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        block += tl.load(bias + k, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + row * C + k, block.to(x.dtype.element_ty), mask=inside)
    centred = tl.where(inside, block - tl.sum(block, 0) / C, 0.0)
    normed = centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps))
    tl.store(out + row * C + k, (normed * gains + shifts).to(out.dtype.element_ty), mask=inside)


@triton.jit
def write_cache_kernel(qkv, cache, slots, C, H, D, S, part_stride, WIDTH: tl.constexpr):
    """Keys and values of token t, columns C to 3C of qkv (T, 3C), into place t of the slot in cache (2, B, H, S, D)."""
    token, part = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, WIDTH)
    inside = k < C
    block = tl.load(qkv + token * 3 * C + (1 + part) * C + k, mask=inside, other=0.0)
    slot = tl.load(slots)
    where = part.to(tl.int64) * part_stride + ((slot * H + k // D) * S + token) * D + k % D
    tl.store(cache + where, block, mask=inside)


@triton.jit
def widen_kernel(rows, scale, out, N, K, KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """out (N, K) from packed rows (row_weights.py)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None] & (k < K)[None, :]
    if KIND == "int4":
        groups = (K + 31) // 32
        byte = tl.load(rows + n[:, None] * (groups * 16) + (k // 2)[None, :], mask=inside, other=0).to(tl.int32)
        w = (byte >> (k % 2 * 4)[None, :] & 15).to(tl.float32) - 8.0
        w *= tl.load(scale + n[:, None] * groups + (k // 32)[None, :], mask=inside, other=0.0).to(tl.float32)
    else:
        w = tl.load(rows + n[:, None] * ((K + 15) // 16 * 16) + k[None, :], mask=inside, other=0).to(tl.float32)
        w *= tl.load(scale + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    tl.store(out + n[:, None] * K + k[None, :], w.to(out.dtype.element_ty), mask=inside)


@triton.jit
def product_kernel(
    x,
    weight,
    bias,
    out,
    cache,
    slots,
    T,
    N,
    K: tl.constexpr,
    H,
    D,
    S,
    part_stride,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """out (T, N) of x (T, K) and rows of weights (N, K): activated, or added to it, or queries with the rest cached."""
    if DEPENDENT:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    b = tl.zeros((BLOCK_N,), tl.float32)
    if BIASED:
        b = tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if DEPENDENT:
        gdc_wait()
    from_x = x + tl.minimum(row, T - 1)[:, None] * K  # what lies past the end is not stored
    from_w = weight + tl.minimum(n, N - 1)[None, :] * K
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if K % BLOCK_K == 0:
            block, w = tl.load(from_x + k[None, :]), tl.load(from_w + k[:, None])
        else:
            block = tl.load(from_x + k[None, :], mask=(k < K)[None, :], other=0.0)
            w = tl.load(from_w + k[:, None], mask=(k < K)[:, None], other=0.0)
        y = tl.dot(block, w, y)
    y = y + b[None, :]
    both = (row < T)[:, None] & (n < N)[None, :]
    where = row[:, None] * N + n[None, :]
    if EPILOGUE == "qkv":
        store_qkv(
            y.to(out.dtype.element_ty), both, n[None, :], out, cache, tl.load(slots), row[:, None], row[:, None], K, D,
            S, H, part_stride
        )  # fmt: skip
    elif EPILOGUE == "add":
        old = tl.load(out + where, mask=both, other=0.0).to(tl.float32)
        tl.store(out + where, (old + y).to(out.dtype.element_ty), mask=both)
    else:
        tl.store(out + where, activated(y, ACTIVATION).to(out.dtype.element_ty), mask=both)


@triton.jit
def causal_kernel(
    q,
    cache,
    slots,
    out,
    T,
    H,
    D: tl.constexpr,
    S,
    part_stride,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """out (T, H, D) of queries q (T, H, D) at places 0 to T, which look at what the cache holds up to themselves."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M  # the longest begin first
    head = tl.program_id(1)
    row, d = first + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    inside = (row < T)[:, None] & (d < D)[None, :]
    query = tl.load(q + (row[:, None] * H + head) * D + d[None, :], mask=inside, other=0.0)
    keys = cache + (tl.load(slots) * H + head) * S * D
    values = keys + part_stride
    largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    found = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for start in range(0, tl.minimum(first + BLOCK_M, T), BLOCK_N):
        s = start + tl.arange(0, BLOCK_N)
        key = tl.load(keys + s[None, :] * D + d[:, None], mask=(s < T)[None, :] & (d < D)[:, None], other=0.0)
        value = tl.load(values + s[:, None] * D + d[None, :], mask=(s < T)[:, None] & (d < D)[None, :], other=0.0)
        score = tl.where(row[:, None] >= s[None, :], tl.dot(query, key) * scale, -float("inf"))
        new = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp2(score - new[:, None])
        kept = tl.exp2(largest - new)
        total = total * kept + tl.sum(share, 1)
        found = tl.dot(share.to(value.dtype), value, found * kept[:, None])
        largest = new
    found = found / total[:, None]
    tl.store(out + (row[:, None] * H + head) * D + d[None, :], found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def pick_kernel(x, bias, last, out, C, BIASED: tl.constexpr, WIDTH: tl.constexpr, DEPENDENT: tl.constexpr):
    """out (1, C) float32: row ``last`` of x (T, C), plus bias."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    k = tl.arange(0, WIDTH)
    row = tl.load(x + tl.load(last) * C + k, mask=k < C, other=0.0).to(tl.float32)
    if BIASED:
        row += tl.load(bias + k, mask=k < C, other=0.0).to(tl.float32)
    tl.store(out + k, row, mask=k < C)
