"""Backward passes written by hand where autograd would hold too much, or draw random numbers too slowly.

Each has a plain formula beside it in the docstring, and a test that holds it to that formula.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_BYTES = 72 * 2**20
GROUP_BYTES = 4 * 2**20
QUERIES = 128  # whose scores are computed together


def keep_mask(shape: tuple[int, ...] | torch.Size, drop_rate: float) -> tuple[Tensor, float]:
    """Which activations dropout keeps, on the CPU, and the factor that keeps their mean.

    Sixteen random bits an element instead of torch's one Bernoulli draw: five times as fast. The rate is rounded to
    a multiple of 2⁻¹⁶, and the factor is that of the rounded rate.

    Returns:
        bool of ``shape``, and 1 / (1 - rate).
    """
    numel = math.prod(shape)
    bits = torch.empty((numel + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:numel]
    dropped = min(round(drop_rate * 2**16), 2**16 - 1)
    return torch.ge(bits, dropped - 2**15).view(shape), 2**16 / (2**16 - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop_rate: float) -> Tensor:
        mask, ctx.factor = keep_mask(x.shape, drop_rate)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (grads[0] * mask).mul_(ctx.factor), None


def dropout(x: Tensor, drop_rate: float, training: bool) -> Tensor:
    """x with a share ``drop_rate`` of its elements zeroed and the rest scaled to the same mean; any shape."""
    if not training or drop_rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, drop_rate)
    out: Tensor = _Dropout.apply(x, drop_rate)
    return out


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float) -> Tensor:
        batch, heads, length, width = queries.shape
        mask, ctx.factor = keep_mask((batch, heads, length, length), drop_rate)
        # Laid out (B, T, H, D), so that joining the heads afterwards costs no copy.
        out = queries.new_empty(batch, length, heads, width).transpose(1, 2)
        for at, rows, past in _tiles(batch, heads, length):
            weights = _causal_softmax(queries[at][:, rows], keys[at][:, past])
            out[at][:, rows] = (weights * mask[at][:, rows, past]) @ values[at][:, past]
        out.mul_(ctx.factor)
        ctx.save_for_backward(queries, keys, values, mask, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, mask, out = ctx.saved_tensors
        grad_out = grads[0]
        batch, heads, length, width = queries.shape
        scale = 1 / math.sqrt(width)
        grad_q, grad_k, grad_v = (queries.new_empty(batch, length, heads, width).transpose(1, 2) for _ in range(3))
        # Row sums of (dL/dweights * weights), which are those of (dL/dout * out): FlashAttention, Dao et al., 2022.
        delta = (grad_out * out).sum(dim=-1, keepdim=True)
        for at, rows, past in _tiles(batch, heads, length):
            query, grad = queries[at][:, rows], grad_out[at][:, rows]
            weights = _causal_softmax(query, keys[at][:, past])
            kept = mask[at][:, rows, past]
            part_v = (weights * kept).mul_(ctx.factor).transpose(-2, -1) @ grad
            grad_scores = (grad @ values[at][:, past].transpose(-2, -1)).mul_(kept).mul_(ctx.factor)
            grad_scores.sub_(delta[at][:, rows]).mul_(weights).mul_(scale)
            grad_q[at][:, rows] = grad_scores @ keys[at][:, past]
            part_k = grad_scores.transpose(-2, -1) @ query
            for whole, part in ((grad_k, part_k), (grad_v, part_v)):
                if past.stop == length:  # the first tile of these heads: nothing to add to yet
                    whole[at] = part
                else:
                    whole[at][:, past] += part
        return grad_q, grad_k, grad_v, None


def _tiles(batch: int, heads: int, length: int) -> Iterator[tuple[tuple[int, slice], slice, slice]]:
    """A few heads of one row of the batch, some of their queries from the last to the first, and the past of these.

    So the scores stay in the cache, and most of the future is never computed.
    """
    size = max(1, GROUP_BYTES // (4 * min(length, QUERIES) * length))
    for row in range(batch):
        for start in range(0, heads, size):
            for end in range(length, 0, -QUERIES):
                yield (row, slice(start, min(start + size, heads))), slice(max(0, end - QUERIES), end), slice(0, end)


def _causal_softmax(queries: Tensor, keys: Tensor) -> Tensor:
    """(heads, T, S) attention weights of queries (heads, T, D), the last T of the S tokens, and keys (heads, S, D)."""
    shape = queries.size(-2), keys.size(-2)
    future = torch.full(shape, -torch.inf, device=queries.device, dtype=queries.dtype).triu(1 + shape[1] - shape[0])
    scores = torch.baddbmm(future, queries, keys.transpose(-2, -1), alpha=1 / math.sqrt(queries.size(-1)))
    return torch.softmax(scores, dim=-1)


def dropout_attention(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float) -> Tensor:
    """Causal attention with dropout on its weights: dropout(softmax(Q Kᵀ / √D + M)) V.

    torch's fused attention has no dropout on the CPU and falls back to holding every weight several times. Here the
    weights are made a few heads at a time and made again in the backward pass; one byte a weight (the mask) stays.

    Args:
        queries, keys, values: (B, H, T, D).
        drop_rate: share of the weights set to zero.

    Returns:
        (B, H, T, D)
    """
    if queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=drop_rate, is_causal=True)
    out: Tensor = _DropoutAttention.apply(queries, keys, values, drop_rate)
    return out


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, wants_grad: bool) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if wants_grad else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if wants_grad else None
        total = torch.zeros((), device=hidden.device)
        chunks = max(1, -(-4 * len(hidden) * head.size(0) // CHUNK_BYTES))
        rows = -(-len(hidden) // chunks)  # of equal size: a few rows would cost the head's gradient a whole pass
        buffer = torch.empty(rows, head.size(0), device=hidden.device)  # one for all chunks, worked on in place
        for h, y, start in zip(hidden.split(rows), targets.split(rows), range(0, len(hidden), rows), strict=True):
            logits = buffer[: len(h)]  # (rows, V)
            if h.dtype == logits.dtype:
                torch.mm(h, head.T, out=logits)
            else:
                logits.copy_(h @ head.T)
            logits.sub_(logits.amax(dim=-1, keepdim=True))
            of_target = logits.gather(1, y[:, None])
            sums = logits.exp_().sum(dim=-1, keepdim=True)
            total += (sums.log() - of_target).sum()
            if grad_hidden is not None and grad_head is not None:
                # d loss / d logits = (softmax(logits) - onehot(targets)) / N
                grad_logits = logits.div_(sums.mul_(len(hidden)))
                grad_logits.scatter_add_(1, y[:, None], torch.full_like(of_target, -1 / len(hidden)))
                grad_logits = grad_logits.to(head.dtype)
                if h.dtype == torch.float32:
                    torch.mm(grad_logits, head, out=grad_hidden[start : start + rows])
                    grad_head.addmm_(grad_logits.T, h)
                else:  # sums of lower precision, added up in float32
                    grad_hidden[start : start + rows] = grad_logits @ head
                    grad_head += grad_logits.T @ h
        ctx.grads = grad_hidden, grad_head
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.grads
        del ctx.grads
        return grad_hidden.mul_(grads[0]), grad_head.mul_(grads[0]), None, None


def chunked_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """cross_entropy(hidden headᵀ, targets), the mean in nats, without ever holding all the logits.

    Logits exist for a few hundred tokens at a time, and their gradient is made at once, so memory does not grow with
    tokens × vocabulary. Softmax and sum are float32 or better for any dtype.

    Args:
        hidden: (..., C), after the final norm.
        head: (V, C).
        targets: (...) int64, the token that came.

    Returns:
        a float32 scalar.
    """
    rows, wants_grad = hidden.reshape(-1, hidden.size(-1)), torch.is_grad_enabled()
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        rows, head = rows.to(dtype), head.to(dtype)
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _ChunkedCrossEntropy.apply(rows, head, targets.reshape(-1), wants_grad)
    return loss
