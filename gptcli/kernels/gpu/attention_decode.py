"""Attention of a few new tokens over the cache, and the embedding of tokens and positions.

The kernels read each text's length from device memory, so one captured launch is valid for all lengths. The attention
of a single row is split over parts of the cache (after Dao et al., "Flash-Decoding", 2023); the next product combines
the parts.
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def attend_kernel(
    q,
    cache,
    places,
    out,
    lse,
    T,
    H,
    S,
    padding,
    part_stride,
    scale,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Attention out (R, H, D) of queries q (R, H, D); with SPLIT, for one row: out (splits, H, D), lse (splits, H).

    lse is the log-sum-exp of a part's scores, float32.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0) // H
    head = tl.program_id(0) % H
    slot = row // T
    place = tl.load(places + slot)
    last = tl.where(place < padding, place + row % T + 1, 0).to(tl.int32)  # a padding row attends to nothing
    first = 0
    if SPLIT:
        first = tl.program_id(1) * CHUNK
        last = tl.minimum(last, first + CHUNK)
    d = tl.arange(0, WIDTH)
    query = tl.load(q + (row * H + head) * D + d, mask=d < D, other=0.0).to(tl.float32) * scale
    keys = cache + (slot * H + head).to(tl.int64) * S * D
    largest = -float("inf")
    total = 0.0
    found = tl.zeros((WIDTH,), tl.float32)
    for start in tl.range(first, last, BLOCK, num_stages=STAGES):
        s = start + tl.arange(0, BLOCK)
        inside = (s < last)[:, None] & (d < D)[None, :]
        element = s[:, None] * D + d[None, :]
        key = tl.load(keys + element, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(keys + part_stride + element, mask=inside, other=0.0).to(tl.float32)
        score = tl.where(s < last, tl.sum(key * query[None, :], 1), -float("inf"))
        new = tl.maximum(largest, tl.max(score, 0))
        share = tl.exp(score - new)
        kept = tl.exp(largest - new)
        total = total * kept + tl.sum(share, 0)
        found = found * kept + tl.sum(share[:, None] * value, 0)
        largest = new
    found = found / tl.where(total > 0, total, 1.0)
    if SPLIT:
        split = tl.program_id(1)
        tl.store(lse + split * H + head, largest + tl.log(total))
        tl.store(out + (split * H + head) * D + d, found, mask=d < D)
    else:
        tl.store(out + (row * H + head) * D + d, found.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def embed_kernel(
    ids,
    places,
    tokens,
    scale,
    positions,
    out,
    T,
    ids_stride,
    C,
    context,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """out (R, C): the sum of the token embedding, a row in a format of row_weights.py, and the position embedding."""
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    slot, number = row // T, row % T
    token = tl.load(ids + slot * ids_stride + number)
    place = tl.minimum(tl.load(places + slot) + number, context - 1)
    k = tl.arange(0, WIDTH)
    inside = k < C
    if KIND == "int4":
        groups = (C + 31) // 32
        byte = tl.load(tokens + token * (groups * 16) + k // 2, mask=inside, other=0).to(tl.int32)
        x = (byte >> k % 2 * 4 & 15).to(tl.float32) - 8.0
        x *= tl.load(scale + token * groups + k // 32, mask=inside, other=0.0).to(tl.float32)
    else:
        stride = (C + 15) // 16 * 16 if KIND == "int8" else C
        x = tl.load(tokens + token * stride + k, mask=inside, other=0).to(tl.float32)
        if KIND == "int8":
            x *= tl.load(scale + token).to(tl.float32)
    x += tl.load(positions + place * C + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * C + k, x, mask=inside)
