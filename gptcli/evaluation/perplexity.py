"""Perplexity of a text by sliding windows: every token is scored once.

With a context of N and a stride of S, window k reads N tokens from token kS on and scores the tokens that no earlier
window has scored: each has at least N - S + 1 tokens of context, except those of the first window.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptcli.errors import GptcliError, SettingError
from gptcli.evaluation.log_likelihood import Scores, Span, score
from gptcli.model.gpt import GPTModel
from gptcli.tokenizers import Tokenizer

BLOCK = 100
CALIBRATION_BINS = 15
PART_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Protocol:
    """How a text is cut into windows.

    Attributes:
        context: N, the largest number of tokens that a window reads; with ``guide``, N includes the last target.
        stride: S, tokens from one window's start to the next's.
        guide: windows of the guide "Perplexity of fixed-length models" in transformers' documentation: the last
            of a window's N tokens is only predicted, and the first token of a window that overlaps no other is never
            scored.
    """

    context: int
    stride: int
    guide: bool = False

    @property
    def reach(self) -> int:
        """Tokens that the model reads in a window."""
        return self.context - self.guide


def make_protocol(context_length: int, context: int | None, stride: int | None, guide: bool) -> Protocol:
    """The protocol with these settings for a model; N is its context and S is N / 2 by default.

    Raises:
        GptcliError: ``context`` is larger than the model's, or ``stride`` is outside [1, N].
    """
    least = 2 if guide else 1
    if context is not None and not least <= context <= context_length:
        raise SettingError(
            f"{{context}} is {context}, but the model's context is {context_length}.",
            f"Give a number from {least} to {context_length}, or leave it out for {context_length}.",
        )
    chosen = context or context_length
    if stride is not None and not 1 <= stride <= chosen:
        raise SettingError(
            f"{{stride}} is {stride}, but the context is {chosen}.",
            f"Give a number from 1 (every token with full context) to {chosen} (windows that do not overlap).",
        )
    return Protocol(chosen, stride or max(1, chosen // 2), guide)


def windows(length: int, protocol: Protocol) -> Iterator[tuple[int, int, int]]:
    """The windows over a sequence of ``length`` tokens, as (start, end, first).

    The model reads tokens [start, end - 1) and tokens [first, end) are scored. Token 0, without context, is not scored.
    """
    start, scored = 0, 1
    while scored < length:
        end = min(start + protocol.reach + 1, length)
        first = max(scored, start + 1)
        if first < end:
            yield start, end, first
        scored = end
        start += protocol.stride


def encode(text: str, tokenizer: Tokenizer, bos: bool) -> Tensor:
    """A text as one sequence of tokens (n) int32, with the end-of-text id in front if ``bos``.

    The text is encoded in parts of at least PART_CHARACTERS, since a Python list of all ids would take ten times the
    memory of the text. A part ends after a newline between a character that is no white space and a letter or digit:
    no tokenizer has a token across that place.

    Raises:
        GptcliError: ``bos``, but the tokenizer has no end-of-text id; or a character that it cannot encode.
    """
    ids = array("i")
    if bos:
        if tokenizer.eot_id is None:
            raise SettingError(
                f"{{bos}}: the {tokenizer.kind} tokenizer has no end-of-text token to put before the text.",
                "Leave {bos} out: the first token is then read and not scored.",
            )
        ids.append(tokenizer.eot_id)
    start = 0
    while start < len(text):
        end = _part_end(text, start)
        ids.extend(tokenizer.encode(text[start:end]))
        start = end
    return torch.frombuffer(ids, dtype=torch.int32) if ids else torch.empty(0, dtype=torch.int32)


def _part_end(text: str, start: int) -> int:
    place = start + PART_CHARACTERS
    while 0 < (place := text.find("\n", place) + 1) < len(text):
        if text[place].isalnum() and not text[place - 2].isspace():
            return place
    return len(text)


@dataclass
class Measured:
    """Sums of the likelihoods of the scored tokens.

    Attributes:
        tokens: number of scored tokens.
        windows: number of windows.
        nats: negative log-likelihood of all scored tokens.
        block_nats, block_sizes: negative log-likelihood and tokens of every block of successive tokens, (blocks)
            float64.
        position_nats, position_counts: the same at index c - 1 for tokens with c tokens of context in their window,
            (N) float64; over every position of every window if ``for_plot``, else over the scored tokens.
        bin_counts, bin_hits, bin_confidence: tokens, hits and sum of probabilities, by the probability of the
            likeliest token, (CALIBRATION_BINS) float64; all 0 unless ``for_plot``.
    """

    tokens: int
    windows: int
    nats: float
    block_nats: Tensor = field(repr=False)
    block_sizes: Tensor = field(repr=False)
    position_nats: Tensor = field(repr=False)
    position_counts: Tensor = field(repr=False)
    bin_counts: Tensor = field(repr=False)
    bin_hits: Tensor = field(repr=False)
    bin_confidence: Tensor = field(repr=False)

    @property
    def mean(self) -> float:
        """The mean negative log-likelihood, in nats a token."""
        return self.nats / self.tokens

    @property
    def standard_error(self) -> float:
        """The standard error of ``mean`` as a ratio of sums over blocks, as neighbouring tokens are not independent."""
        return _block_error(self.block_nats - self.mean * self.block_sizes, self.tokens)

    def difference(self, other: "Measured") -> tuple[float, float]:
        """``self.mean - other.mean`` over the same tokens, and its paired standard error."""
        mean = self.mean - other.mean
        return mean, _block_error(self.block_nats - other.block_nats - mean * self.block_sizes, self.tokens)

    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al., 2017): mean |confidence - accuracy| over equal-width bins."""
        return float((self.bin_confidence - self.bin_hits).abs().sum() / self.bin_counts.sum())

    def is_paired_with(self, other: "Measured") -> bool:
        """Whether both have blocks of the same sizes, and so the same number of scored tokens."""
        return torch.equal(self.block_sizes, other.block_sizes)


def _block_error(residuals: Tensor, tokens: int) -> float:
    count = len(residuals)
    return math.sqrt(float(residuals.square().sum()) * count / (count - 1)) / tokens


def measure(
    model: GPTModel,
    runs: Sequence[Tensor],
    protocol: Protocol,
    batch_size: int,
    for_plot: bool = False,
    advance: Callable[[int], object] = lambda windows: None,
) -> Measured:
    """Score texts, each without context from the others.

    Args:
        model: in eval mode.
        runs: the tokens (n) of each text, as `encode` returns them.
        protocol: the windows.
        batch_size: windows per forward pass; it changes results by no more than rounding.
        for_plot: also collect the loss at every position of every window, and the likeliest tokens for calibration.
        advance: called with 1 after each window.

    Raises:
        GptcliError: fewer than 2 tokens to score; or logits that are not finite.
    """
    plan = [(end - first, end - start - 1) for run in runs for start, end, first in windows(len(run), protocol)]
    tokens = sum(scored for scored, _ in plan)
    if tokens < 2:
        raise GptcliError(
            f"There {'is 1 token' if tokens == 1 else 'are 0 tokens'} to score, but a mean with a standard error takes "
            "at least 2.",
            "Give a longer text: under 1,000 tokens, the standard error is large.",
        )
    block = max(1, min(BLOCK, tokens // 10))
    blocks = -(-tokens // block)
    sizes = torch.full((blocks,), float(block), dtype=torch.float64)
    sizes[-1] = tokens - block * (blocks - 1)
    zeros = [
        torch.zeros(size, dtype=torch.float64) for size in (blocks, *[protocol.context] * 2, *[CALIBRATION_BINS] * 3)
    ]
    block_nats, position_nats, position_counts, bin_counts, bin_hits, bin_confidence = zeros

    def spans() -> Iterator[Span]:
        for run in runs:
            for start, end, first in windows(len(run), protocol):
                yield Span(run[start:end], 1 if for_plot else first - start)

    done = 0
    for (scored, read), scores in zip(plan, score(model, spans(), batch_size, ranked=for_plot), strict=True):
        nats = -scores.log_probs
        position_nats[read - len(nats) : read] += nats
        position_counts[read - len(nats) : read] += 1
        kept = nats[-scored:]
        block_nats.index_add_(0, torch.arange(done, done + scored) // block, kept)
        if for_plot:
            _calibrate(scores, scored, bin_counts, bin_hits, bin_confidence)
        done += scored
        advance(1)
    return Measured(tokens, len(plan), float(block_nats.sum()), block_nats, sizes, *zeros[1:])


def _calibrate(scores: Scores, last: int, counts: Tensor, hits: Tensor, confidence: Tensor) -> None:
    sure = scores.confidences[-last:].double()
    bins = (sure * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    counts.index_add_(0, bins, torch.ones_like(sure))
    hits.index_add_(0, bins, scores.hits[-last:].double())
    confidence.index_add_(0, bins, sure)
