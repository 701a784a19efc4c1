"""Dropout, GELU and attention with hand-written backward passes, which hold less than autograd's.

The docstrings of the public functions give the formulas, and tests compare with them. Compiled kernels, if given and if
they accept the tensor, compute the same functions on the CPU in less time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gptcli.kernels.cpu.train_kernels import TrainKernels
from gptcli.model.dropout_mask import SITES, keep_mask, random_seeds, threshold

Seeds = Tensor | Sequence[Tensor | None]  # of a block's masks: `SITES` times (B) int64, or None for random ones
RANDOM: Seeds = (None,) * SITES
GROUP_BYTES = 4 * 2**20
QUERIES = 128  # queries of a tile: see `_tiles`


class _CompiledGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: TrainKernels) -> Tensor:
        y, slope = kernels.gelu(x, with_slope=True)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


def gelu(x: Tensor, kernels: TrainKernels | None = None) -> Tensor:
    """GELU in its tanh form: x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³))); any shape."""
    if kernels is None or not kernels.accept(x):
        return F.gelu(x, approximate="tanh")
    if not (torch.is_grad_enabled() and x.requires_grad):
        return kernels.gelu(x, with_slope=False)[0]
    y: Tensor = _CompiledGelu.apply(x, kernels)
    return y


class _CompiledDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop_rate: float, seeds: Tensor, kernels: TrainKernels) -> Tensor:
        ctx.again = kernels, seeds, threshold(drop_rate)
        return kernels.dropout(x, seeds, *ctx.again[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        kernels, seeds, rate = ctx.again
        return kernels.dropout(grads[0], seeds, *rate), None, None, None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop_rate: float, seeds: Tensor) -> Tensor:
        dropped, ctx.factor = threshold(drop_rate)
        mask = keep_mask(seeds, 1, x.size(1), x.size(2), dropped, False).squeeze(1)
        ctx.save_for_backward(mask)
        y: Tensor = (x * mask).mul_(ctx.factor)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (grads[0] * mask).mul_(ctx.factor), None, None


def dropout(
    x: Tensor, drop_rate: float, training: bool, seeds: Tensor | None = None, kernels: TrainKernels | None = None
) -> Tensor:
    """x with each element zeroed with probability ``drop_rate``, the others times 1 / (1 - drop_rate).

    Args:
        x: (B, T, C).
        drop_rate: from 0 up to, not including, 1.
        training: if False, x is returned.
        seeds: (B) int64, which decide the mask on a CPU (dropout_mask.py); None for random ones.
        kernels: used if they accept x.
    """
    if not training or drop_rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, drop_rate)
    seeds = random_seeds(x.size(0)) if seeds is None else seeds
    out: Tensor
    if kernels is None or not kernels.accept(x):
        out = _Dropout.apply(x, drop_rate, seeds)
    else:
        out = _CompiledDropout.apply(x, drop_rate, seeds, kernels)
    return out


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, n_heads: int, drop_rate: float, scale: float, seeds: Tensor, kernels: TrainKernels
    ) -> Tensor:
        ctx.again = kernels, seeds, *threshold(drop_rate), scale
        out, statistics = kernels.attention(qkv, n_heads, *ctx.again[1:])
        ctx.save_for_backward(qkv, out, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        qkv, out, statistics = ctx.saved_tensors
        kernels, *how = ctx.again
        return kernels.attention_backward(qkv, out, statistics, grads[0], *how), None, None, None, None, None


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_heads: int, drop_rate: float, scale: float, seeds: Tensor) -> Tensor:
        batch, length, width = qkv.shape
        dropped, ctx.factor = threshold(drop_rate)
        mask = keep_mask(seeds, n_heads, length, length, dropped, True)
        out = qkv.new_empty(batch, length, width // 3)
        queries, keys, values = split_heads(qkv, n_heads)
        heads_out = split_heads(out, n_heads, 1)[0]
        future = _future(length, qkv)
        for at, rows, past in _tiles(batch, n_heads, length):
            weights = _causal_softmax(queries[at][:, rows], keys[at][:, past], scale, future)
            weights.mul_(mask[at][:, rows, past])
            _multiply(weights, values[at][:, past], heads_out[at][:, rows], ctx.factor)
        ctx.save_for_backward(qkv, mask, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        qkv, mask, out = ctx.saved_tensors
        batch, n_heads, length, _ = mask.shape
        grad_qkv = torch.empty_like(qkv)
        queries, keys, values = split_heads(qkv, n_heads)
        grad_q, grad_k, grad_v = split_heads(grad_qkv, n_heads)
        # Row sums of (dL/dweights * weights), equal to those of (dL/dout * out): FlashAttention, Dao et al., 2022.
        delta = split_heads(grads[0] * out, n_heads, 1)[0].sum(dim=-1, keepdim=True)
        grad_out = split_heads(grads[0] * ctx.factor, n_heads, 1)[0]
        future = _future(length, qkv)
        for at, rows, past in _tiles(batch, n_heads, length):
            query, grad = queries[at][:, rows], grad_out[at][:, rows]
            weights = _causal_softmax(query, keys[at][:, past], ctx.scale, future)
            kept = mask[at][:, rows, past].to(weights.dtype)
            grad_scores = torch.bmm(grad, values[at][:, past].transpose(1, 2))
            grad_scores.mul_(kept).sub_(delta[at][:, rows]).mul_(weights)
            first = past.stop == length  # the first tile of these heads writes all of grad_k and grad_v
            _multiply(weights.mul_(kept).transpose(1, 2), grad, grad_v[at][:, past], add=not first)
            _multiply(grad_scores, keys[at][:, past], grad_q[at][:, rows], ctx.scale)
            _multiply(grad_scores.transpose(1, 2), query, grad_k[at][:, past], ctx.scale, add=not first)
        return grad_qkv, None, None, None, None


def split_heads(joined: Tensor, n_heads: int, parts: int = 3) -> tuple[Tensor, ...]:
    """Views (B, H, T, D) of the ``parts`` of a tensor (B, T, parts H D): queries, keys and values."""
    views: tuple[Tensor, ...] = joined.unflatten(-1, (parts, n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return views


def _tiles(batch: int, heads: int, length: int) -> Iterator[tuple[tuple[int, slice], slice, slice]]:
    """Indices of tiles: (batch row, heads), at most `QUERIES` queries, and the keys up to the last of these queries.

    The tiles of the last queries come first. A tile's scores take at most `GROUP_BYTES`, unless one head's take more,
    to stay in the CPU's cache; most scores above the diagonal are not computed.
    """
    size = max(1, GROUP_BYTES // (4 * min(length, QUERIES) * length))
    for row in range(batch):
        for start in range(0, heads, size):
            for end in range(length, 0, -QUERIES):
                yield (row, slice(start, min(start + size, heads))), slice(max(0, end - QUERIES), end), slice(0, end)


def _future(length: int, like: Tensor) -> Tensor:
    """(T, S) mask of the last T = min(`QUERIES`, S) of S = ``length`` tokens: -inf above the diagonal, 0 elsewhere."""
    shape = min(QUERIES, length), length
    return like.new_full(shape, -torch.inf).triu(1 + shape[1] - shape[0])


def _causal_softmax(queries: Tensor, keys: Tensor, scale: float, future: Tensor) -> Tensor:
    """(heads, T, S) attention weights of queries (heads, T, D), the last T of the S tokens, and keys (heads, S, D)."""
    mask = future[-queries.size(1) :, -keys.size(1) :]
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1, out=scores)


def _multiply(a: Tensor, b: Tensor, out: Tensor, factor: float = 1.0, add: bool = False) -> None:
    """out = factor a @ b, or out += factor a @ b; all (heads, ., .)."""
    product = torch.bmm(a, b)  # contiguous: bmm computes only a contiguous result for all heads in one call
    if add:
        out.add_(product, alpha=factor)
    else:
        out.copy_(product.mul_(factor))  # not out=: torch.compile refuses it for a tensor that is not contiguous


def dropout_attention(
    qkv: Tensor, n_heads: int, drop_rate: float, scale: float, seeds: Tensor | None = None,
    kernels: TrainKernels | None = None,
) -> Tensor:  # fmt: skip
    """Causal attention with dropout on its weights: dropout(softmax(scale Q Kᵀ + M)) V.

    torch's fused attention has no dropout on the CPU; its fallback holds all weights several times. This function
    computes the weights of a few heads at a time, computes them again in the backward pass, and holds only the mask,
    one byte a weight.

    Args:
        qkv: (B, T, 3C), queries, keys and values concatenated.
        n_heads: H.
        drop_rate: probability that a weight is set to zero.
        scale: of the scores; 1 / √D in standard attention.
        seeds: (B) int64, which decide the mask on a CPU (dropout_mask.py); None for random ones.
        kernels: used if they accept qkv; they hold 8 bytes a query and head instead of the mask.

    Returns:
        (B, T, C)
    """
    if qkv.device.type != "cpu":
        queries, keys, values = split_heads(qkv, n_heads)
        heads = F.scaled_dot_product_attention(queries, keys, values, dropout_p=drop_rate, is_causal=True, scale=scale)
        return heads.transpose(1, 2).flatten(2)
    seeds = random_seeds(qkv.size(0)) if seeds is None else seeds
    with torch.autocast("cpu", enabled=False):
        out: Tensor
        if kernels is None or not kernels.accept(qkv):
            out = _DropoutAttention.apply(qkv, n_heads, drop_rate, scale, seeds)
        else:
            out = _CompiledAttention.apply(qkv, n_heads, drop_rate, scale, seeds, kernels)
    return out
