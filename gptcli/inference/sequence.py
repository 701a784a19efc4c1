"""One text in the making, apart from what computes its logits: its window, what its seed draws next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.config.sampling import Overflow, SamplingConfig
from gptcli.errors import GptcliError
from gptcli.inference.sampling import (
    Array,
    distribution,
    draw,
    draw_key,
    greedy,
    like,
    likeliest,
    likeliest_first,
    not_finite,
    penalise_repeats,
)


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
        seen: every id so far, of the prompt as well, whatever the window has dropped.

    Raises:
        GptcliError: the prompt is empty, ``overflow`` is "error" and the context is full, or logits are not finite.
    """

    def __init__(self, request: Request, context_length: int) -> None:
        if not request.prompt:
            raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
        self.request = request
        self.window = Window(request.prompt, context_length, request.overflow)
        self.unread: Sequence[int] = list(self.window.ids)
        self.restart = True
        self.done = request.max_new_tokens == 0
        self.count = 0
        self.seen = list(request.prompt)

    def distribution(self, logits: Array, ahead: Sequence[int] = ()) -> Array:
        """What the next token is drawn from, given logits (1, V), which may be changed; (1, V).

        Args:
            logits: of the model.
            ahead: tokens that are assumed to have been drawn already.
        """
        self.hold_back(logits, len(ahead))
        return distribution(logits, self.request.sampling, self.history(logits, ahead))

    def history(self, logits: Array, ahead: Sequence[int] = ()) -> Array | None:
        """(1, S): the tokens that the repetition penalty is about, beside ``logits``; None without a penalty."""
        return like(logits, [[*self.seen, *ahead]]) if self.request.sampling.repetition_penalty != 1.0 else None

    def likeliest(self, logits: Array, ahead: Sequence[int] = ()) -> tuple[int, float]:
        """The token that is drawn if drawing is greedy, and how far ahead its score is; as `distribution`."""
        self.hold_back(logits, len(ahead))
        seen = self.history(logits, ahead)
        if seen is not None:
            logits = penalise_repeats(logits, seen, self.request.sampling.repetition_penalty)
        return likeliest(logits)

    def key(self, ahead: int = 0) -> int:
        """What the next token is drawn by; or the one after ``ahead`` more."""
        return draw_key(self.request.seed, self.count + ahead)

    def hold_back(self, logits: Array, ahead: int = 0) -> None:
        """Make the end of text impossible in logits (1, V) while there are too few tokens."""
        if self.request.eot_id is not None and self.count + ahead < self.request.min_new_tokens:
            logits[:, self.request.eot_id] = -float("inf")

    def draw(self, logits: Array) -> Token | None:
        """Draw from logits (1, V) of the last unread id; None at the end of text."""
        return draw_rows([self], logits)[0]

    def accept(self, token_id: int, probabilities: Array | None = None, share: float | None = None) -> Token | None:
        """Go on with this token, drawn from ``probabilities`` (1, V) as its ``share``; None at the end of text.

        Without both it was the only one possible.
        """
        if token_id == self.request.eot_id:
            self.done = True
            return None
        self.seen.append(token_id)
        self.count += 1
        self.done = self.count >= self.request.max_new_tokens
        self.unread, self.restart = [token_id], False
        if not self.done and self.window.append(token_id):
            self.unread, self.restart = list(self.window.ids), True
        if probabilities is None:
            certain = ((token_id, 1.0),) if self.request.n_candidates else ()
            return Token(token_id, 1.0 if share is None else share, certain)
        share = float(probabilities[0, token_id]) if share is None else share
        return Token(token_id, share, _likeliest(probabilities, self.request.n_candidates))


def draw_rows(texts: Sequence[Continuation], logits: Array) -> list[Token | None]:
    """Draw for several sequences from logits (B, V) of their last unread ids; those that sample alike at once.

    Each gets what it would get alone; None is the end of its text.

    Raises:
        GptcliError: logits leave nothing to draw.
    """
    alike: dict[Any, list[int]] = {}
    for row, text in enumerate(texts):
        sampling = text.request.sampling
        alike.setdefault(sampling if sampling.repetition_penalty == 1.0 else row, []).append(row)
    tokens: list[Token | None] = [None] * len(texts)
    for rows in alike.values():
        group = [texts[row] for row in rows]
        part = logits if len(rows) == len(logits) else logits[rows]
        for place, text in enumerate(group):
            text.hold_back(part[place : place + 1])
        sampling, seen = group[0].request.sampling, group[0].history(part) if len(group) == 1 else None
        if sampling.temperature == 0:
            ids = greedy(part, sampling, seen).tolist()
            _check_drawn(group, part, ids)
            for place, token_id in enumerate(ids):
                tokens[rows[place]] = group[place].accept(token_id)
            continue
        probabilities = distribution(part, sampling, seen)
        ids = draw(probabilities, [text.key() for text in group]).tolist()
        _check_drawn(group, part, ids)
        shares = probabilities[list(range(len(ids))), ids].tolist()
        for place, text in enumerate(group):
            tokens[rows[place]] = text.accept(ids[place], probabilities[place : place + 1], shares[place])
    return tokens


def _check_drawn(texts: Sequence[Continuation], logits: Array, ids: Sequence[int]) -> None:
    """Raise GptcliError where the id that was drawn from a row of logits is -1: there was nothing to draw."""
    for text, row, token_id in zip(texts, logits, ids, strict=True):
        if token_id < 0:
            if text.count < text.request.min_new_tokens and bool((row == -float("inf")).all()):
                raise GptcliError(
                    "Only the end of the text is left to draw, and --min-new-tokens does not let it end yet.",
                    "Lower --min-new-tokens, or leave --contrast-layer out.",
                )
            raise not_finite()


def _likeliest(probabilities: Array, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest of (1, V) probabilities that are possible at all."""
    if count == 0:
        return ()
    order = likeliest_first(probabilities)[0, :count]
    pairs = ((int(i), float(probabilities[0, i])) for i in order)
    return tuple((i, p) for i, p in pairs if p > 0)
