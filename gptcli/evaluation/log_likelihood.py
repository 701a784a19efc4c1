"""The log-likelihood of given tokens under a model; no other evaluation module reads logits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from gptcli.inference.sampling import not_finite
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import CHUNK_BYTES

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Span:
    """A sequence of tokens for one row of a forward pass; its last tokens are scored.

    Attributes:
        ids: (n) integers; the model reads the first n - 1 and predicts the last n - 1.
        first: index in ``ids`` of the first token to be scored, 1 … n - 1.
    """

    ids: Tensor
    first: int


@dataclass(frozen=True)
class Scores:
    """The scores of the m scored tokens of a span.

    Attributes:
        log_probs: (m) float64, log-likelihood in nats.
        confidences: (m) float32, the probability of the likeliest token; empty unless ``ranked``.
        hits: (m) bool, whether the likeliest token is the actual one; empty unless ``ranked``.
    """

    log_probs: Tensor
    confidences: Tensor
    hits: Tensor


def token_log_probs(model: GPTModel, hidden: Tensor, targets: Tensor, ranked: bool = False) -> Scores:
    """log_softmax of the model's logits at ``targets``, computed for at most `CHUNK_BYTES` of float32 logits at a time.

    Args:
        model: the one whose output head is applied.
        hidden: (m, C), the output of the final norm.
        targets: (m) int64.
        ranked: also find the likeliest token.

    Returns:
        scores of the m tokens, on the CPU.
    """
    rows = max(1, CHUNK_BYTES // (4 * model.config.vocab_size))
    found, confidences, hits = [], [], []
    for h, y in zip(hidden.split(rows), targets.split(rows), strict=True):
        log_probs = torch.log_softmax(model.logits(h).float(), dim=-1)  # (rows, V)
        found.append(log_probs.gather(1, y[:, None])[:, 0].double().cpu())
        if ranked:
            best, likeliest = log_probs.max(dim=-1)
            confidences.append(best.exp().cpu())
            hits.append((likeliest == y).cpu())
    nothing = torch.empty(0)
    return Scores(
        torch.cat(found), torch.cat(confidences) if ranked else nothing, torch.cat(hits) if ranked else nothing.bool()
    )


@torch.inference_mode()
def score(model: GPTModel, spans: Iterable[Span], batch_size: int, ranked: bool = False) -> Iterator[Scores]:
    """Score every span, ``batch_size`` of them at once; the memory does not depend on the number of spans.

    Shorter spans are padded on the right, which causal attention hides from the tokens before.

    Args:
        model: in eval mode.
        spans: of at most context_length + 1 tokens each.
        batch_size: spans per forward pass.
        ranked: also find the likeliest tokens.

    Yields:
        the scores of each span, in the order of ``spans``.

    Raises:
        GptcliError: a log-likelihood is NaN or infinite.
    """
    remaining = iter(spans)
    while batch := list(islice(remaining, batch_size)):
        inputs = torch.zeros(len(batch), max(len(span.ids) for span in batch) - 1, dtype=torch.int64)
        for row, span in zip(inputs, batch, strict=True):
            row[: len(span.ids) - 1] = span.ids[:-1]
        hidden = model.hidden(inputs.to(model.device))  # (B, T, C)
        wanted = torch.cat(
            [row[span.first - 1 : len(span.ids) - 1] for row, span in zip(hidden, batch, strict=True)]
        )  # (m, C)
        targets = torch.cat([span.ids[span.first :] for span in batch]).long().to(model.device)
        scores = token_log_probs(model, wanted, targets, ranked)
        if not bool(scores.log_probs.isfinite().all()):
            raise not_finite()
        sizes = [len(span.ids) - span.first for span in batch]
        parts = zip(
            scores.log_probs.split(sizes),
            scores.confidences.split(sizes) if ranked else [scores.confidences] * len(batch),
            scores.hits.split(sizes) if ranked else [scores.hits] * len(batch),
            strict=True,
        )
        yield from (Scores(*part) for part in parts)


def default_batch_size(context_length: int) -> int:
    """Spans per forward pass so that it reads at most `BATCH_TOKENS` tokens (at least one span)."""
    return max(1, BATCH_TOKENS // context_length)
