"""State of one text while it is generated, independent of the engine: its window, its ids and its draws."""

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
        id: of the drawn token.
        probability: of the token in the distribution that it was drawn from.
        candidates: (id, probability) of the likeliest tokens, likeliest first; empty if n_candidates is 0.
    """

    id: int
    probability: float
    candidates: tuple[tuple[int, float], ...] = ()


class Window:
    """The tokens of the model's context window, limited to the context length by one of three rules.

    "slide" drops the older half when the context is full, so the whole window is read again only once in half a
    context; "crop" drops one token a step, as the course does, and the whole window is read again each time; "error"
    raises.

    Raises:
        GptcliError: with "error", if the tokens exceed the context.
    """

    def __init__(self, prompt: Sequence[int], context_length: int, overflow: Overflow) -> None:
        self.context_length = context_length
        self.overflow = overflow
        self.ids = list(prompt)
        if len(prompt) > context_length:
            self._refuse_if_asked(len(prompt))
            self.ids = self.ids[-context_length:]

    def append(self, token_id: int) -> bool:
        """Append a token; True if older tokens were dropped, which changes the position of all others."""
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
    """A prompt and the options of its continuation.

    Attributes:
        prompt: at least one token id.
        max_new_tokens: the most tokens to generate.
        sampling: options of the distribution to draw from.
        seed: of this sequence: the tokens depend on it and not on other sequences in the batch.
        min_new_tokens: the number of new tokens before which ``eot_id`` cannot be drawn.
        eot_id: generation stops before this token; None if no token stops it.
        overflow: the rule for a full context (see `Window`).
        n_candidates: how many of the likeliest tokens to report with each drawn token.
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
    """State of one sequence while it is generated, independent of the engine.

    Attributes:
        unread: the ids to read next; the next draw takes the logits of the last of them.
        restart: whether the cache must be emptied before ``unread`` is read.
        done: whether the sequence has ended.
        seen: all ids of the prompt and the continuation, including those that the window has dropped.

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
        """The probabilities (1, V) of the next token.

        Args:
            logits: (1, V), of the model or a draft; may be changed.
            ahead: proposed tokens, treated as already drawn.
        """
        self.hold_back(logits, len(ahead))
        return distribution(logits, self.request.sampling, self.history(logits, ahead))

    def history(self, logits: Array, ahead: Sequence[int] = ()) -> Array | None:
        """(1, S): the ids that the repetition penalty changes, on the device of ``logits``; None without a penalty."""
        return like(logits, [[*self.seen, *ahead]]) if self.request.sampling.repetition_penalty != 1.0 else None

    def likeliest(self, logits: Array, ahead: Sequence[int] = ()) -> tuple[int, float]:
        """The greedy token and the margin of its score over the second; arguments as for `distribution`."""
        self.hold_back(logits, len(ahead))
        seen = self.history(logits, ahead)
        if seen is not None:
            logits = penalise_repeats(logits, seen, self.request.sampling.repetition_penalty)
        return likeliest(logits)

    def key(self, ahead: int = 0) -> int:
        """The key (see `sampling.draw`) of the next draw, or of the draw after ``ahead`` more tokens."""
        return draw_key(self.request.seed, self.count + ahead)

    def hold_back(self, logits: Array, ahead: int = 0) -> None:
        """Set the logit of ``eot_id`` in logits (1, V) to -inf if there are fewer than min_new_tokens tokens."""
        if self.request.eot_id is not None and self.count + ahead < self.request.min_new_tokens:
            logits[:, self.request.eot_id] = -float("inf")

    def draw(self, logits: Array) -> Token | None:
        """Draw from logits (1, V) of the last unread id; None at the end of text."""
        return draw_rows([self], logits)[0]

    def accept(self, token_id: int, probabilities: Array | None = None, share: float | None = None) -> Token | None:
        """Append a drawn token; None at the end of text.

        Args:
            token_id: the drawn token.
            probabilities: (1, V), the distribution that it was drawn from; None if unknown or greedy.
            share: the token's probability; None to take it from ``probabilities``, or 1 without them.
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
    """Draw one token for each of several sequences from the logits (B, V) of their last unread ids.

    Rows with equal sampling options are drawn together. Each text gets the same token as alone; None at its end.

    Raises:
        GptcliError: a row of logits allows no draw.
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
    """Raise GptcliError if an id is -1, the result of a row of logits that allows no draw."""
    for text, row, token_id in zip(texts, logits, ids, strict=True):
        if token_id < 0:
            if text.count < text.request.min_new_tokens and bool((row == -float("inf")).all()):
                raise GptcliError(
                    "Only the end of the text is left to draw, and --min-new-tokens does not let it end yet.",
                    "Lower --min-new-tokens, or leave --contrast-layer out.",
                )
            raise not_finite()


def _likeliest(probabilities: Array, count: int) -> tuple[tuple[int, float], ...]:
    """(id, probability) of at most ``count`` likeliest tokens with probability above 0; probabilities (1, V)."""
    if count == 0:
        return ()
    order = likeliest_first(probabilities)[0, :count]
    pairs = ((int(i), float(probabilities[0, i])) for i in order)
    return tuple((i, p) for i, p in pairs if p > 0)
