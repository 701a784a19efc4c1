"""Cross-entropy over a vocabulary, with and without gradients, in chunks of logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.kernels.gpu.triton_support import triton_reason

CHUNK_BYTES = 104 * 2**20
GPU_CHUNK_BYTES = 2**31  # so large that there are few launches
IGNORED = -100  # a target that no loss is computed for, as in torch
ALIGNED = 128  # columns are padded to a multiple: cuBLAS's kernels for an odd width such as 50,257 are slow


def counted(targets: Tensor) -> int:
    """How many of the targets a loss is computed for."""
    return int((targets != IGNORED).sum())


def _losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Each row's loss without gradients, (N) float32: in chunks of the vocabulary, so that the head is read once."""
    parts = max(1, -(-8 * len(hidden) * head.size(0) // _chunk_bytes(hidden)))  # 4 bytes a logit, 4 for logsumexp
    rows = -(-head.size(0) // parts)
    targeted = hidden.new_empty(len(hidden), dtype=torch.float32)
    buffer = hidden.new_empty(len(hidden) * rows, dtype=torch.float32)
    sums = []
    for start, part in zip(range(0, head.size(0), rows), head.split(rows), strict=True):
        logits = buffer[: len(hidden) * len(part)].view(len(hidden), len(part))
        if hidden.dtype == logits.dtype:
            torch.mm(hidden, part.T, out=logits)
        else:
            logits.copy_(hidden @ part.T)
        sums.append(torch.logsumexp(logits, dim=-1))
        inside = ((targets >= start) & (targets < start + len(part))).nonzero()[:, 0]
        targeted[inside] = logits[inside, targets[inside] - start]
    return torch.logsumexp(torch.stack(sums), dim=0) - targeted


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The mean of all rows' losses, each times its factor if ``factors`` (N) is given."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, factors: Tensor | None = None) -> Tensor:
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.empty_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=hidden.device)
        chunks = max(1, -(-4 * len(hidden) * head.size(0) // _chunk_bytes(hidden)))
        rows = -(-len(hidden) // chunks)  # equal chunks: each, however small, reads and writes the head's gradient
        buffer = torch.empty(rows, head.size(0), device=hidden.device)  # all chunks use it, in place
        mean = 1 / len(hidden)
        for h, y, start in zip(hidden.split(rows), targets.split(rows), range(0, len(hidden), rows), strict=True):
            logits = buffer[: len(h)]  # (rows, V)
            if h.dtype == logits.dtype:
                torch.mm(h, head.T, out=logits)
            else:
                logits.copy_(h @ head.T)
            torch.log_softmax(logits, dim=-1, out=logits)
            targeted = logits.gather(1, y[:, None])
            total -= (targeted if factors is None else targeted * factors[start : start + len(h), None]).sum()
            grad_logits = logits.exp_()
            # d loss / d logits = (softmax(logits) - onehot(targets)) / N; the products below divide by N
            grad_logits.scatter_add_(1, y[:, None], grad_logits.new_full((len(h), 1), -1.0))
            if factors is not None:
                grad_logits *= factors[start : start + len(h), None]
            grad_logits = grad_logits.to(head.dtype)
            part, keep = grad_hidden[start : start + rows], float(start > 0)
            torch.addmm(part, grad_logits, head, beta=0, alpha=mean, out=part)
            if grad_head is None:  # a frozen head
                continue
            if h.dtype == torch.float32:
                torch.addmm(grad_head, grad_logits.T, h, beta=keep, alpha=mean, out=grad_head)
            else:  # products in the lower precision, added in float32
                product = (grad_logits.T @ h).mul_(mean)
                grad_head = grad_head.add_(product) if start else grad_head.copy_(product)
        ctx.grads = grad_hidden, grad_head
        return total * mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_hidden, grad_head = ctx.grads
        del ctx.grads
        if grads[0].device.type == "cpu" and grads[0] == 1:  # saves a pass over the head's gradient
            return grad_hidden, grad_head, None, None
        return grad_hidden.mul_(grads[0]), None if grad_head is None else grad_head.mul_(grads[0]), None, None


def _chunk_bytes(hidden: Tensor) -> int:
    return CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES


class _TritonCrossEntropy(torch.autograd.Function):
    """Loss and gradients on a GPU: products over a padded vocabulary; one kernel for softmax and gradient, in place."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, with_gradient: bool) -> Tensor:
        from gptcli.kernels.gpu.cross_entropy import cross_entropy_

        count, vocab, width = len(hidden), head.size(0), -(-head.size(0) // ALIGNED) * ALIGNED
        matrix = hidden.new_zeros(width, head.size(1))  # (W, C): rows from V on are 0
        matrix[:vocab] = head
        chunks = max(1, -(-count * width * hidden.element_size() // GPU_CHUNK_BYTES))
        rows = -(-count // chunks)
        buffer = hidden.new_empty(rows, width)
        losses = hidden.new_empty(count, dtype=torch.float32)
        if with_gradient:
            grad_hidden = torch.empty_like(hidden)
            grad_head = torch.empty_like(matrix, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for h, y, start in zip(hidden.split(rows), targets.split(rows), range(0, count, rows), strict=True):
            logits = torch.mm(h, matrix.T, out=buffer[: len(h)])  # (rows, W)
            cross_entropy_(logits, y, losses[start : start + rows], vocab, gradient=with_gradient)
            if with_gradient:  # logits now hold N times their gradient
                part = grad_hidden[start : start + rows]
                torch.addmm(part, logits, matrix, beta=0, alpha=1 / count, out=part)
                if grad_head is None:  # a frozen head
                    continue
                product = logits.T @ h  # (W, C), summed over chunks in float32
                grad_head = (
                    grad_head.add_(product, alpha=1 / count) if start else torch.mul(product, 1 / count, out=grad_head)
                )
        if with_gradient:
            ctx.grads = grad_hidden, None if grad_head is None else grad_head[:vocab]
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_hidden, grad_head = ctx.grads
        del ctx.grads
        return grad_hidden.mul_(grads[0]), None if grad_head is None else grad_head.mul_(grads[0]), None, None


def weighted_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """As `chunked_cross_entropy` with ``has_ignored``, for a classifier: each loss times its label's weight.

    The mean is over the number of targets, so that parts of a step add up as without weights.

    Args:
        hidden: (..., C), after the final norm.
        head: (labels, C).
        targets: (...) int64, labels or `IGNORED`.
        weights: (labels) float32.
    """
    chosen = targets != IGNORED
    logits, labels = F.linear(hidden[chosen], head).float(), targets[chosen]
    return F.cross_entropy(logits, labels, weight=weights, reduction="sum") / max(1, len(labels))


def chunked_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, *, has_ignored: bool = False) -> Tensor:
    """cross_entropy(hidden headᵀ, targets), the mean in nats, computed in chunks.

    A chunk has at most `CHUNK_BYTES` of logits (on a GPU `GPU_CHUNK_BYTES`), and the forward pass computes its gradient
    before the next chunk, so memory does not grow with tokens × vocabulary. Softmax and sum are float32 for any dtype.

    Args:
        hidden: (..., C), after the final norm.
        head: (V, C).
        targets: (...) int64, the actual next tokens.
        has_ignored: whether some targets may be `IGNORED`; the mean is then over the others, of which there must be
            one, and only their rows are multiplied by the head.

    Returns:
        a float32 scalar.
    """
    rows, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    if has_ignored:
        places = (targets != IGNORED).nonzero()[:, 0]
        rows, targets = rows.index_select(0, places), targets.index_select(0, places)
    kind, fused = hidden.device.type, triton_reason(hidden.device) is None
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        rows, head = rows.to(dtype), head if fused else head.to(dtype)
    loss: Tensor
    with torch.autocast(kind, enabled=False):
        if fused:
            loss = _TritonCrossEntropy.apply(rows, head, targets, torch.is_grad_enabled())
            return loss
        if not torch.is_grad_enabled():
            return _losses(rows, head, targets).mean()
        loss = _ChunkedCrossEntropy.apply(rows, head, targets)
    return loss


@torch.no_grad()
def log_probabilities(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Of each sequence the log probability of all its targets, in nats.

    Args:
        hidden: (S, T, C), after the final norm.
        head: (V, C).
        targets: (S, T) int64, the next tokens or `IGNORED`.

    Returns:
        (S) float32.
    """
    sequence, place = (targets != IGNORED).nonzero(as_tuple=True)
    losses = _losses(hidden[sequence, place], head.to(hidden.dtype), targets[sequence, place])
    return torch.zeros(len(targets), device=hidden.device).index_add_(0, sequence, losses, alpha=-1)


def preference_loss(hidden: Tensor, head: Tensor, targets: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The loss of direct preference optimization (Rafailov et al., 2023, equation 7), the mean over the pairs.

    With r = log p(chosen) - log p(rejected), a pair's loss is -log sigmoid(beta (r - reference)). The head is
    multiplied twice, for the log probabilities and for their gradient, so that no logits are held.

    Args:
        hidden: (2P, T, C), after the final norm: of each pair the chosen answer, then the rejected one.
        head: (V, C).
        targets: (2P, T) int64, the answers' tokens; `IGNORED` in prompts and padding.
        reference: (P) float32, r by the model that training began with.
        beta: how strongly the model is held to that one.

    Returns:
        a float32 scalar.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, head = hidden.to(dtype), head.to(dtype)
    with torch.autocast(kind, enabled=False):
        chosen, rejected = log_probabilities(hidden, head, targets).view(-1, 2).unbind(1)
        margins = beta * (chosen - rejected - reference)
        loss = F.softplus(-margins).mean()
        if not torch.is_grad_enabled():
            return loss
        # d loss / d log p(chosen) = -beta sigmoid(-margin) / P, and the opposite for the rejected answer
        pulls = beta * torch.sigmoid(-margins) / len(margins)
        sequence, place = (targets != IGNORED).nonzero(as_tuple=True)
        factors = torch.stack((pulls, -pulls), 1).view(-1)[sequence] * len(sequence)  # the product below is a mean
        slope: Tensor = _ChunkedCrossEntropy.apply(hidden[sequence, place], head, targets[sequence, place], factors)
        return loss + (slope - slope.detach())
