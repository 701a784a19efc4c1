"""Kernels that draw tokens as `sampling.distribution` and `sampling.draw` do, and write the inputs of the next step.

The exponential race of `sampling.draw` takes two launches: in the first, each program computes the winner, the largest
logit and the sum of exponentials of one part of the vocabulary; in the second, one program a row combines the parts.
The kernels compute keys as `sampling.draw_key` of seed and count, so a row's draws do not depend on other rows.
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

TO_UNIT = tl.constexpr(-(2**-32) * (1 - 2**-20))  # -`sampling._TO_UNIT`


@triton.jit
def _mixed(number):
    """`sampling._mixed`, on uint64."""
    number = number + 0x9E3779B97F4A7C15
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB
    return number ^ (number >> 31)


@triton.jit
def _times(token, key):
    """float32 below 0: the times of `sampling.draw`, log1p(-u) of a hash of the key (uint64) and the token (uint32)."""
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    h = token * 0x9E3779B9 + low
    h = (h ^ (h >> 16)) * 0x7FEB352D ^ high
    h = (h ^ (h >> 15)) * 0x846CA68B
    h = h ^ (h >> 16)
    x = (h.to(tl.float32) + 0.5) * TO_UNIT
    # The hardware's log has an absolute error of 2e-7, too large for the winner's time, which is near 0. Above -0.25
    # the series log(1 + x) = 2 atanh(x / (2 + x)) replaces it, with an error of 3e-10.
    near = tl.maximum(x, -0.25)
    s = near / (2.0 + near)
    q = s * s
    series = 2.0 * s * (1.0 + q * (0.3333333333333333 + q * (0.2 + q * (0.14285714285714285 + q * 0.1111111111111111))))
    return tl.where(x > -0.25, series, tl.log(1.0 + x))


@triton.jit
def race_kernel(
    logits,
    mask,
    temperatures,
    seeds,
    counts,
    eots,
    least,
    parts,
    winners,
    V,
    MASKED: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The race of one part of a row, for P parts and R rows.

    Writes parts (R, 4, P) float32: largest logit, sum of exponentials, best score, and the NaN flag (1 if a logit is
    NaN or inf); and winners (R, P) int32. With PROBABILITIES, ``logits`` holds the probabilities of
    `sampling.distribution`.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row, part, count = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    token = part * BLOCK + tl.arange(0, BLOCK)
    inside = token < V
    x = tl.load(logits + row.to(tl.int64) * V + token, mask=inside, other=-float("inf")).to(tl.float32)
    broken = tl.max(((x != x) | (x == float("inf"))).to(tl.float32), 0)
    temperature = tl.load(temperatures + row)
    drawn = tl.load(counts + row)
    key = _mixed(_mixed(tl.load(seeds + row).to(tl.uint64)) + drawn.to(tl.uint64))
    times = _times(token.to(tl.uint32), key)
    if PROBABILITIES:
        p = tl.where(inside, x, 0.0)
        largest = 0.0
        total = tl.sum(p, 0)
        score = p / times
    else:
        if MASKED:
            x += tl.load(mask + token, mask=inside, other=-float("inf"))
        early = drawn < tl.load(least + row)
        x = tl.where(early & (token == tl.load(eots + row)), -float("inf"), x)
        largest = tl.max(x, 0)
        shifted = x - tl.where(largest > -float("inf"), largest, 0.0)
        p = tl.exp(shifted / tl.maximum(temperature, 1e-30))
        total = tl.sum(p, 0)
        score = tl.where(temperature > 0, p / times, tl.where(shifted < 0, 0.0, -1.0))
    best = tl.min(tl.where(inside, score, 0.0), 0)
    winner = tl.min(tl.where(inside & (score == best), token, V), 0)
    base = parts + row * 4 * count + part
    tl.store(base, largest)
    tl.store(base + count, total)
    tl.store(base + 2 * count, best)
    tl.store(base + 3 * count, broken)
    tl.store(winners + row * count + part, winner)


@triton.jit
def settle_kernel(
    logits,
    mask,
    temperatures,
    parts,
    winners,
    ids,
    places,
    counts,
    seen,
    out,
    ids_stride,
    V,
    padding,
    P,
    MASKED: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    REMEMBER: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Combine the parts of a row: out (R, 3) int32 is the id, the float32 bits of its probability, and the NaN flag.

    Except in padding rows, the id is written as the next input, and position and count are increased by 1.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    part = tl.arange(0, WIDTH)
    inside = part < P
    base = parts + row * 4 * P + part
    largest = tl.load(base, mask=inside, other=-float("inf"))
    total = tl.load(base + P, mask=inside, other=0.0)
    best = tl.load(base + 2 * P, mask=inside, other=0.0)
    broken = tl.max(tl.load(base + 3 * P, mask=inside, other=0.0), 0)
    winner = tl.load(winners + row * P + part, mask=inside, other=V)
    temperature = tl.load(temperatures + row)
    top = tl.max(largest, 0)
    if PROBABILITIES:
        factor = tl.where(inside, 1.0, 0.0)
    else:
        shifted = tl.where(largest > -float("inf"), largest - top, -float("inf"))
        factor = tl.exp(shifted / tl.maximum(temperature, 1e-30))
        factor = tl.where(temperature > 0, factor, tl.where(shifted < 0, 0.0, 1.0))
    score = tl.where(inside, best * factor, 0.0)
    token = tl.min(tl.where(inside & (score == tl.min(score, 0)), winner, V), 0)
    token = tl.minimum(token, V - 1)
    x = tl.load(logits + row.to(tl.int64) * V + token).to(tl.float32)
    if PROBABILITIES:
        share = x
    else:
        if MASKED:
            x += tl.load(mask + token)
        share = tl.exp((x - top) / tl.maximum(temperature, 1e-30)) / tl.sum(total * factor, 0)
        share = tl.where(temperature > 0, share, 1.0)
    tl.store(out + row * 3, token)
    tl.store(out + row * 3 + 1, share.to(tl.int32, bitcast=True))
    tl.store(out + row * 3 + 2, broken.to(tl.int32))
    place = tl.load(places + row)
    if place < padding:
        tl.store(ids + row * ids_stride, token.to(tl.int64))
        tl.store(places + row, place + 1)
        tl.store(counts + row, tl.load(counts + row) + 1)
        if REMEMBER:
            tl.store(seen + row.to(tl.int64) * V + token, 1)
