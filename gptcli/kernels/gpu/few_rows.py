"""Products of a matrix with a few rows of activations, fused with the bias, activation, residual sum or cache write.

A program computes a few outputs over all inputs. A block of inputs can be divided among its warps (KB > 1): each warp
sums its part with `tl.dot`, and the sums are added at the end, so a program of 16 outputs can use four warps. Weights
are stored in rows (see row_weights.py); with programmatic dependent launch a program prefetches its rows into the L2
cache while the previous kernel runs.
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from gptcli.kernels.gpu.matvec import activated, store_qkv


@triton.jit
def _fetch(pointer, offset, size):
    """Prefetch ``size`` bytes from pointer + offset into the L2 cache (Hopper); all three are multiples of 16."""
    tl.inline_asm_elementwise(
        """
        {
        .reg .pred one;
        .reg .b32 lane;
        mov.u32 lane, %tid.x;
        setp.eq.u32 one, lane, 0;
        @one cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }
        """,
        "=r,l,r",
        [pointer.to(tl.int64) + offset, size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _weights(
    weight, scale, n, live, start, K: tl.constexpr, KIND: tl.constexpr, KB: tl.constexpr, KW: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """(KB, KW, n) in DTYPE: the weights of KB x KW inputs from start on; int8 weights are not multiplied by scales."""
    if KIND == "int4":
        GROUPS: tl.constexpr = (K + 31) // 32
        byte = start // 2 + (tl.arange(0, KB) * (KW // 2))[:, None, None] + tl.arange(0, KW // 2)[None, None, :]
        row = n[None, :, None] * GROUPS
        inside = live[None, :, None] & (byte < GROUPS * 16)
        w = tl.load(weight + row * 16 + byte, mask=inside, other=0).to(tl.int32)
        group = start // 32 + (tl.arange(0, KB) * (KW // 32))[:, None, None] + tl.arange(0, KW // 32)[None, None, :]
        s = tl.load(scale + row + group, mask=live[None, :, None] & (group < GROUPS), other=0.0)  # (KB, n, KW / 32)
        low = (w & 0xF | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
        high = (w >> 4 & 0xF | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
        q = tl.reshape(tl.join(low, high), (KB, n.shape[0], KW // 32, 32)) * s.to(tl.float32)[:, :, :, None]
        return tl.permute(tl.reshape(q.to(DTYPE), (KB, n.shape[0], KW)), (0, 2, 1))
    k = start + tl.arange(0, KB)[:, None, None] * KW + tl.arange(0, KW)[None, :, None]
    ROW: tl.constexpr = (K + 15) // 16 * 16 if KIND == "int8" else K
    inside = live[None, None, :] & (k < K)
    return tl.load(weight + n[None, None, :] * ROW + k, mask=inside, other=0).to(DTYPE)


@triton.jit
def few_rows_kernel(
    x,
    weight,
    scale,
    bias,
    out,
    cache,
    places,
    R,
    T,
    N,
    K: tl.constexpr,
    H,
    D,
    S,
    part_stride,
    KIND: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KB: tl.constexpr,
    KW: tl.constexpr,
    DTYPE: tl.constexpr,
    FETCH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """out (R, N): the epilogue of x W + bias, x (R, K). A block has KB x KW inputs; the KB sums are kept separate."""
    first = tl.program_id(0) * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    live, live_n = row < R, n < N
    if DEPENDENT:
        gdc_launch_dependents()
        if FETCH > 0 and tl.program_id(1) == 0:  # FETCH: bytes of a row of weights, 0 for no prefetch
            _fetch(weight, first.to(tl.int64) * FETCH, tl.minimum(N - first, BLOCK_N) * FETCH)
    b = tl.zeros((BLOCK_N,), tl.float32)
    if BIASED:
        b = tl.load(bias + n, mask=live_n, other=0.0).to(tl.float32)
    s = b
    if KIND == "int8":
        s = tl.load(scale + n, mask=live_n, other=0.0).to(tl.float32)
    if DEPENDENT:
        gdc_wait()
    both = live[:, None] & live_n[None, :]
    where = row[:, None] * N + n[None, :]
    slot = row // T
    if EPILOGUE == "qkv":  # loaded here, so that the load overlaps the product
        place = tl.load(places + slot, mask=live, other=0) + row % T
    elif EPILOGUE == "add":
        old = tl.load(out + where, mask=both, other=0.0)
    if KB == 1:
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, KW):
            k = start + tl.arange(0, KW)
            block = tl.load(x + row[:, None] * K + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
            w = tl.reshape(_weights(weight, scale, n, live_n, start, K, KIND, 1, KW, DTYPE), (KW, BLOCK_N))
            y = tl.dot(block, w, y, input_precision="ieee")
    else:
        parts = tl.zeros((KB, BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, KB * KW):
            k = start + tl.arange(0, KB)[:, None, None] * KW + tl.arange(0, KW)[None, None, :]
            block = tl.load(x + row[None, :, None] * K + k, mask=live[None, :, None] & (k < K), other=0.0)
            w = _weights(weight, scale, n, live_n, start, K, KIND, KB, KW, DTYPE)
            parts = tl.dot(block, w, parts, input_precision="ieee")
        y = tl.sum(parts, 0)
    if KIND == "int8":
        y = y * s[None, :]
    y = y + b[None, :]
    if EPILOGUE == "qkv":
        store_qkv(y, both, n[None, :], out, cache, slot[:, None], place[:, None], row[:, None], K, D, S, H, part_stride)
    elif EPILOGUE == "add":
        tl.store(out + where, old + y, mask=both)
    else:
        tl.store(out + where.to(tl.int64), activated(y, ACTIVATION).to(out.dtype.element_ty), mask=both)
