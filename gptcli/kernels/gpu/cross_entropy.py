"""Softmax cross-entropy of rows of logits in one kernel: the loss, and the gradient in place of the logits.

A program of 512 threads computes one row. It reads the row twice, for the sum of exponentials and for the gradient, and
writes the gradient once; the second read comes partly from the L2 cache. A row whose sum overflows is read once more.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits that a program reads at once: 16 bytes of bfloat16 a thread
WARPS = 16


@triton.jit
def _row_block(logits, place, VOCAB: tl.constexpr, WIDTH: tl.constexpr):
    """Logits in float32, -inf for padding. The mask is WIDTH, which is aligned, so that loads are of 16 bytes."""
    x = tl.load(logits + place, mask=place < WIDTH, other=0.0).to(tl.float32)
    return tl.where(place < VOCAB, x, -float("inf"))


@triton.jit
def _cross_entropy_kernel(
    logits, targets, losses, VOCAB: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = tl.program_id(0).to(tl.int64)
    logits += row * WIDTH
    target = tl.load(targets + row)
    targeted = tl.load(logits + target).to(tl.float32)  # before a thread overwrites this logit
    columns = tl.arange(0, BLOCK)
    # Exponentials are relative to the largest logit of the first block, so the loop needs no reduction.
    shift = tl.max(_row_block(logits, columns, VOCAB, WIDTH), 0)
    sums = tl.zeros([BLOCK], tl.float32)
    for number in range(0, BLOCKS):
        sums += tl.exp(_row_block(logits, number * BLOCK + columns, VOCAB, WIDTH) - shift)
    total = tl.sum(sums, 0)
    if not (total < float("inf")):  # a later logit is larger by 88 or more, or NaN: use the online softmax
        shift = -float("inf")
        total = 0.0
        for again in range(0, BLOCKS):
            x = _row_block(logits, again * BLOCK + columns, VOCAB, WIDTH)
            new = tl.maximum(shift, tl.max(x, 0))
            total = total * tl.exp(shift - new) + tl.sum(tl.exp(x - new), 0)
            shift = new
    log_sum = shift + tl.log(total)
    tl.store(losses + row, log_sum - targeted)
    if GRADIENT:
        for number in range(0, BLOCKS):
            place = (BLOCKS - 1 - number) * BLOCK + columns  # backwards, since the L2 cache holds the end of the row
            gradient = tl.exp(_row_block(logits, place, VOCAB, WIDTH) - log_sum) - tl.where(place == target, 1.0, 0.0)
            gradient = gradient.to(logits.dtype.element_ty)
            tl.store(logits + place, gradient, mask=place < WIDTH, eviction_policy="evict_first")


def cross_entropy_(logits: Tensor, targets: Tensor, losses: Tensor, vocab: int, *, gradient: bool) -> None:
    """Write the loss of each row in nats; with ``gradient``, replace logits by softmax(logits) - onehot(targets).

    Args:
        logits: (N, W) contiguous, float32, bfloat16 or float16; columns from ``vocab`` on are padding with any finite
            values, and their gradient is 0. The arithmetic is float32.
        targets: (N) int64, in 0 … ``vocab`` - 1.
        losses: (N) float32, the output.
        vocab: V ≤ W.
        gradient: whether to overwrite the logits.
    """
    rows, width = logits.shape
    block = min(BLOCK, triton.next_power_of_2(width))
    _cross_entropy_kernel[(rows,)](
        logits, targets, losses, VOCAB=vocab, WIDTH=width, BLOCK=block, GRADIENT=gradient,
        num_warps=max(1, WARPS * block // BLOCK),
    )  # fmt: skip
