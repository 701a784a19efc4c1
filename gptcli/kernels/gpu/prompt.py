"""Kernels for prefill, apart from the matrix products (cuBLAS) and attention (torch); see prompt_launches.py.

They compute the layer norm with the preceding bias, write keys and values to the cache, select the last token's row and
unpack weights for cuBLAS. Decode steps of several rows also use the layer norm.
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def norm_kernel(x, bias, gain, shift, out, C, eps, BIASED: tl.constexpr, WIDTH: tl.constexpr, DEPENDENT: tl.constexpr):
    """Add bias to a row of x (T, C) in place; out (T, C) is the layer norm of the sum."""
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
    """Copy columns C to 3C of row t of qkv (T, 3C), key and value, to position t of a slot of cache (2, B, H, S, D)."""
    token, part = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, WIDTH)
    inside = k < C
    block = tl.load(qkv + token * 3 * C + (1 + part) * C + k, mask=inside, other=0.0)
    slot = tl.load(slots)
    where = part.to(tl.int64) * part_stride + ((slot * H + k // D) * S + token) * D + k % D
    tl.store(cache + where, block, mask=inside)


@triton.jit
def widen_kernel(rows, scale, out, N, K, KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """out (N, K): packed rows (see row_weights.py) times their scales, in the dtype of out."""
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
