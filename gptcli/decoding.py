"""Prefill, then one token at a time, whatever computes the logits. Knows token ids only; yields, prints nothing."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

from gptcli.config import GPTConfig, Overflow, SamplingConfig
from gptcli.errors import GptcliError
from gptcli.sampling import Array, contrast_layers, distribution, draw, like, likeliest_first

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
    """One slot of the CPU engine as a `Decoder`.

    Args:
        engine: the packed model.
        slot: which of its sequences.
        contrast: hold the last layer against this one (from 1; see `sampling.contrast_layers`); None does not.
    """

    def __init__(self, engine: "Engine", slot: int = 0, contrast: int | None = None) -> None:
        self.config = engine.config
        self.length = 0
        self.engine = engine
        self._slot = slot
        self._contrast = contrast

    def read(self, ids: Sequence[int], *, every: bool = False) -> Array:
        logits = self.engine.read(self._slot, ids, self.length, every=every, tap=self._contrast or 0)
        self.length += len(ids)
        if self._contrast is None:
            return logits
        return contrast_layers(logits[: len(logits) // 2], logits[len(logits) // 2 :])

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


@dataclass(frozen=True)
class Request:
    """What to continue and how.

    Attributes:
        prompt: at least one token id.
        max_new_tokens: when to stop at the latest.
        sampling: the distribution to draw from.
        seed: of this sequence alone: the same seed gives the same tokens in any company.
        min_new_tokens: ``eot_id`` cannot be drawn before there are so many.
        eot_id: generation stops before this token; None if nothing stops it.
        overflow: what happens past the context (see `Window`).
        n_candidates: how many of the likeliest tokens to report with each one drawn.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig
    seed: int
    min_new_tokens: int = 0
    eot_id: int | None = None
    overflow: Overflow = "slide"
    n_candidates: int = 0


class Continuation:
    """One sequence in the making, apart from what computes its logits.

    Attributes:
        unread: the ids to read next; logits are wanted after the last of them.
        restart: whether everything read before must be forgotten first.
        done: nothing more will be drawn.

    Raises:
        GptcliError: the prompt is empty, or ``overflow`` is "error" and the context is full.
    """

    def __init__(self, request: Request, context_length: int) -> None:
        if not request.prompt:
            raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
        self.request = request
        self.random = Random(request.seed)
        self.window = Window(request.prompt, context_length, request.overflow)
        self.unread: Sequence[int] = list(self.window.ids)
        self.restart = True
        self.done = request.max_new_tokens == 0
        self.count = 0
        self._seen = list(request.prompt)

    def distribution(self, logits: Array, ahead: Sequence[int] = ()) -> Array:
        """What the next token is drawn from, given logits (1, V), which may be changed; (1, V).

        Args:
            logits: of the model.
            ahead: tokens that are assumed to have been drawn already.
        """
        request = self.request
        if request.eot_id is not None and self.count + len(ahead) < request.min_new_tokens:
            logits[:, request.eot_id] = -float("inf")
        penalty = request.sampling.repetition_penalty
        return distribution(logits, request.sampling, like(logits, [[*self._seen, *ahead]]) if penalty != 1.0 else None)

    def draw(self, logits: Array) -> Token | None:
        """Draw from logits (1, V) of the last unread id; None at the end of text."""
        probabilities = self.distribution(logits)
        return self.accept(int(draw(probabilities, [self.random.random()])[0]), probabilities)

    def accept(self, token_id: int, probabilities: Array) -> Token | None:
        """Go on with this token, drawn from ``probabilities`` (1, V); None at the end of text."""
        if token_id == self.request.eot_id:
            self.done = True
            return None
        self._seen.append(token_id)
        self.count += 1
        self.done = self.count >= self.request.max_new_tokens
        self.unread, self.restart = [token_id], False
        if not self.done and self.window.append(token_id):
            self.unread, self.restart = list(self.window.ids), True
        share = float(probabilities[0, token_id])
        return Token(token_id, share, _likeliest(probabilities, self.request.n_candidates))


def decode(decoder: Decoder, request: Request) -> Iterator[Token]:
    """Continue a prompt, token by token.

    Args:
        decoder: has room for the prompt and the new tokens, or for its context; what it has read is forgotten.
        request: what to continue and how.

    Yields:
        each token as soon as it is drawn; never ``eot_id``.

    Raises:
        GptcliError: the prompt is empty, or ``overflow`` is "error" and the context is full.
    """
    text = Continuation(request, decoder.config.context_length)
    while not text.done:
        if text.restart:
            decoder.crop(0)
        token = text.draw(decoder.read(text.unread))
        if token is not None:
            yield token


def decode_together(
    engine: "Engine", requests: Sequence[Request]
) -> Generator[tuple[int, Token | None], bool | None, None]:
    """Continue many prompts at once; a finished one gives its place to the next that waits.

    Each gets the tokens it would get alone.

    Yields:
        (number of the request, its next token), and (number, None) when it has ended. Send True to end it early.
    """
    waiting = deque(enumerate(requests))
    active: dict[int, tuple[int, Continuation]] = {}
    lengths = [0] * engine.slots
    while waiting or active:
        for slot in range(engine.slots):
            if slot not in active and waiting:
                number, request = waiting.popleft()
                active[slot] = number, Continuation(request, engine.config.context_length)
        rows = {}
        for slot, (_, text) in active.items():
            if text.restart:  # a prompt, or a window that has moved, is read on its own
                rows[slot] = engine.read(slot, text.unread, 0).copy()
                lengths[slot] = len(text.unread)
        together = [slot for slot, (_, text) in active.items() if not text.restart]
        if together:
            ids, positions = [active[slot][1].unread[0] for slot in together], [lengths[slot] for slot in together]
            logits = engine.step(ids, positions, together, range(len(together)))
            for row, slot in enumerate(together):
                rows[slot] = logits[row : row + 1]
                lengths[slot] += 1
        for slot, (number, text) in list(active.items()):
            token = text.draw(rows[slot])
            stopped = token is not None and (yield number, token)
            if stopped or text.done:
                del active[slot]
                yield number, None


def _likeliest(probabilities: Array, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest of (1, V) probabilities that are possible at all."""
    if count == 0:
        return ()
    order = likeliest_first(probabilities)[0, :count]
    pairs = ((int(i), float(probabilities[0, i])) for i in order)
    return tuple((i, p) for i, p in pairs if p > 0)
