"""Prefill, then one token at a time, whatever computes the logits. Knows token ids only; yields, prints nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

from gptcli.config import GPTConfig, Overflow, SamplingConfig
from gptcli.errors import GptcliError
from gptcli.sampling import Array, distribution, draw, like, likeliest_first

if TYPE_CHECKING:
    from gptcli.engine import Engine


class Decoder(Protocol):
    """A model that remembers the sequence it has read so far.

    Attributes:
        config: the model's shape.
        length: tokens read and not forgotten.
    """

    config: GPTConfig
    length: int

    def read(self, ids: Sequence[int], *, every: bool = False) -> Array:
        """Read more tokens; logits (1, V) after the last of them, or (T, V) after each. Valid until the next call."""

    def crop(self, length: int) -> None:
        """Forget every token after the first ``length``."""


class CpuDecoder:
    """One slot of the CPU engine as a `Decoder`."""

    def __init__(self, engine: "Engine", slot: int = 0) -> None:
        self.config = engine.config
        self.length = 0
        self._engine = engine
        self._slot = slot

    def read(self, ids: Sequence[int], *, every: bool = False) -> Array:
        logits = self._engine.read(self._slot, ids, self.length, every=every)
        self.length += len(ids)
        return logits

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: what was drawn.
        probability: its share of the distribution it was drawn from.
        candidates: the likeliest (id, probability) pairs, likeliest first; empty unless asked for.
    """

    id: int
    probability: float
    candidates: tuple[tuple[int, float], ...] = ()


class Window:
    """The tokens that the model sees, kept within its context by one of three rules.

    "slide" drops the older half when the context is full, so the cost of a token stays flat; "crop" drops one token a
    step, the course's way: exact, and everything is read again each time; "error" refuses.

    Raises:
        GptcliError: with "error", when a token no longer fits.
    """

    def __init__(self, prompt: Sequence[int], context_length: int, overflow: Overflow) -> None:
        self.context_length = context_length
        self.overflow = overflow
        self.ids = list(prompt)
        if len(prompt) > context_length:
            self._refuse_if_asked(len(prompt))
            self.ids = self.ids[-context_length:]

    def append(self, token_id: int) -> bool:
        """Add a token; True if older ones were dropped, so that every position has moved."""
        self.ids.append(token_id)
        if len(self.ids) <= self.context_length:
            return False
        self._refuse_if_asked(len(self.ids))
        kept = self.context_length if self.overflow == "crop" else self.context_length - self.context_length // 2
        self.ids = self.ids[-kept:]
        return True

    def _refuse_if_asked(self, length: int) -> None:
        if self.overflow == "error":
            raise GptcliError(
                f"The text has grown to {length} tokens, but the model's context holds {self.context_length}.",
                "Shorten the prompt, lower --max-new-tokens, or let --overflow slide (or crop) drop the oldest tokens.",
            )


def decode(
    decoder: Decoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    min_new_tokens: int = 0,
    eot_id: int | None = None,
    overflow: Overflow = "slide",
    n_candidates: int = 0,
) -> Iterator[Token]:
    """Continue ``prompt``, token by token.

    Args:
        decoder: has room for the prompt and the new tokens, or for its context; what it has read is forgotten.
        prompt: at least one token id.
        max_new_tokens: when to stop at the latest.
        sampling: the distribution to draw from.
        seed: of this sequence alone: the same seed gives the same tokens in any company.
        min_new_tokens: ``eot_id`` cannot be drawn before there are so many.
        eot_id: generation stops before this token; None if nothing stops it.
        overflow: what happens past the context (see `Window`).
        n_candidates: how many of the likeliest tokens to report with each one drawn.

    Yields:
        each token as soon as it is drawn; never ``eot_id``.

    Raises:
        GptcliError: the prompt is empty, or ``overflow`` is "error" and the context is full.
    """
    if not prompt:
        raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
    random = Random(seed)
    window = Window(prompt, decoder.config.context_length, overflow)
    seen = list(prompt)
    unread: Sequence[int] = window.ids
    decoder.crop(0)
    for count in range(max_new_tokens):
        logits = decoder.read(unread)
        if eot_id is not None and count < min_new_tokens:
            logits[:, eot_id] = -float("inf")
        seen_ids = like(logits, [seen]) if sampling.repetition_penalty != 1.0 else None
        probabilities = distribution(logits, sampling, seen_ids)
        token_id = int(draw(probabilities, [random.random()])[0])
        if token_id == eot_id:
            return
        yield Token(token_id, float(probabilities[0, token_id]), _likeliest(probabilities, n_candidates))
        seen.append(token_id)
        unread = [token_id]
        if count + 1 < max_new_tokens and window.append(token_id):
            unread = window.ids
            decoder.crop(0)


def _likeliest(probabilities: Array, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest of (1, V) probabilities that are possible at all."""
    if count == 0:
        return ()
    order = likeliest_first(probabilities)[0, :count]
    pairs = ((int(i), float(probabilities[0, i])) for i in order)
    return tuple((i, p) for i, p in pairs if p > 0)
