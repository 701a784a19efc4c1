"""State of one text while it is generated, independent of the engine: its window, its ids and its draws."""

from collections import abc
from dataclasses import dataclass
from typing import Any

from gptcli.config.sampling import Overflow, SamplingConfig
from gptcli.errors import GptcliError, SettingError
from gptcli.inference import sampling
from gptcli.inference.arrays import Array, like, likeliest_first
from gptcli.inference.sampling import distribution, draw, draw_key, greedy, not_finite
from gptcli.inference.stages import History, State, penalised, text_stages


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

    def __init__(self, prompt: abc.Sequence[int], context_length: int, overflow: Overflow) -> None:
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
            raise SettingError(
                f"The text has grown to {length} tokens, but the model's context holds {self.context_length}.",
                "Shorten the prompt, lower {max_new_tokens}, or let {overflow} slide (or crop) drop the oldest tokens.",
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
        stops: texts to end before; they are found in the decoded text, by `streaming.TextStream`.
    """

    prompt: abc.Sequence[int]
    max_new_tokens: int
    sampling: SamplingConfig
    seed: int
    min_new_tokens: int = 0
    eot_id: int | None = None
    overflow: Overflow = "slide"
    n_candidates: int = 0
    stops: tuple[str, ...] = ()


class Sequence:
    """State of one request while it is generated, independent of the engine.

    Attributes:
        request: prompt and options.
        window: the ids of the model's context; all but `unread` are in the cache, unless `restart` is set.
        unread: the ids to read next; the next draw takes the logits of the last of them.
        restart: whether the positions have changed, so that the whole window must be read.
        tokens: the tokens drawn so far.
        seen: all ids of the prompt and the new tokens, including those that the window has dropped.
        done: whether the sequence has ended.
        error: why it ended early; None if it did not.
        slot: its slot in the engine's cache while it is decoded.

    Raises:
        GptcliError: the prompt is empty, or ``overflow`` is "error" and it is longer than the context.
    """

    def __init__(self, request: Request, context_length: int) -> None:
        if not request.prompt:
            raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
        self.request = request
        self.window = Window(request.prompt, context_length, request.overflow)
        self.unread: abc.Sequence[int] = list(self.window.ids)
        self.restart = True
        self.tokens: list[Token] = []
        self.seen = list(request.prompt)
        self.done = request.max_new_tokens == 0
        self.error: GptcliError | None = None
        self.slot = 0

    @property
    def count(self) -> int:
        """The number of new tokens."""
        return len(self.tokens)

    def distribution(self, logits: Array, ahead: abc.Sequence[int] = ()) -> Array:
        """The probabilities (1, V) of the next token.

        Args:
            logits: (1, V), of the model or a draft; may be changed.
            ahead: proposed tokens, treated as already drawn.
        """
        self.hold_back(logits, len(ahead))
        return distribution(logits, self.request.sampling, self.history(logits, ahead))

    def history(self, logits: Array, ahead: abc.Sequence[int] = ()) -> History | None:
        """The text, on the device of ``logits``; None if no sampling stage that is on reads it."""
        if not text_stages(self.request.sampling):
            return None
        return History(like(logits, [[*self.seen, *ahead]]), len(self.request.prompt))

    def likeliest(self, logits: Array, ahead: abc.Sequence[int] = ()) -> tuple[int, float]:
        """The greedy token and the margin of its score over the second; arguments as for `distribution`."""
        self.hold_back(logits, len(ahead))
        return sampling.likeliest(penalised(logits, State(self.request.sampling, self.history(logits, ahead))))

    def key(self, ahead: int = 0) -> int:
        """The key (see `sampling.draw`) of the next draw, or of the draw after ``ahead`` more tokens."""
        return draw_key(self.request.seed, self.count + ahead)

    def hold_back(self, logits: Array, ahead: int = 0) -> None:
        """Set the logit of ``eot_id`` in logits (1, V) to -inf if there are fewer than min_new_tokens tokens."""
        if self.request.eot_id is not None and self.count + ahead < self.request.min_new_tokens:
            logits[:, self.request.eot_id] = -float("inf")

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
        if probabilities is None:
            certain = ((token_id, 1.0),) if self.request.n_candidates else ()
            token = Token(token_id, 1.0 if share is None else share, certain)
        else:
            share = float(probabilities[0, token_id]) if share is None else share
            token = Token(token_id, share, _likeliest(probabilities, self.request.n_candidates))
        self.tokens.append(token)
        self.seen.append(token_id)
        self.done = self.count >= self.request.max_new_tokens
        self.unread, self.restart = [token_id], False
        if not self.done:
            try:
                moved = self.window.append(token_id)
            except GptcliError as error:
                self.fail(error)
            else:
                self.unread, self.restart = (list(self.window.ids), True) if moved else ([token_id], False)
        return token

    def fail(self, error: GptcliError) -> None:
        """End the sequence with an error; others that are decoded with it go on."""
        self.error, self.done = error, True


def draw_rows(sequences: abc.Sequence[Sequence], logits: Array) -> list[Token | None]:
    """Draw one token for each of several sequences from the logits (B, V) of their last unread ids.

    Rows with equal sampling options are drawn together. Each sequence gets the same token as alone; None at its end,
    and None and an `error` if its row of logits allows no draw.
    """
    alike: dict[Any, list[int]] = {}
    for row, sequence in enumerate(sequences):
        options = sequence.request.sampling
        alike.setdefault(row if text_stages(options) else options, []).append(row)
    tokens: list[Token | None] = [None] * len(sequences)
    for rows in alike.values():
        group = [sequences[row] for row in rows]
        part = logits if len(rows) == len(logits) else logits[rows]
        for place, sequence in enumerate(group):
            sequence.hold_back(part[place : place + 1])
        options, history = group[0].request.sampling, group[0].history(part)
        if options.temperature == 0:
            ids = greedy(part, options, history).tolist()
            drawn: list[tuple[Any, ...]] = [(token_id,) for token_id in ids]
        else:
            probabilities = distribution(part, options, history)
            ids = draw(probabilities, [sequence.key() for sequence in group]).tolist()
            shares = probabilities[list(range(len(ids))), ids].tolist()
            drawn = [(token_id, probabilities[at : at + 1], shares[at]) for at, token_id in enumerate(ids)]
        for place, sequence in enumerate(group):
            if ids[place] < 0:
                sequence.fail(_no_draw(sequence, part[place], options))
            else:
                tokens[rows[place]] = sequence.accept(*drawn[place])
    return tokens


def _no_draw(sequence: Sequence, row: Array, options: SamplingConfig) -> GptcliError:
    """The error for a row of logits (V) that allows no draw."""
    if bool((row == -float("inf")).all()) and sequence.count < sequence.request.min_new_tokens:
        return SettingError(
            "Only the end-of-text token can be drawn, and {min_new_tokens} forbids that token here.",
            "Lower {min_new_tokens}, or leave {contrast_layer} out.",
        )
    if options.no_repeat_ngram_size is not None and not bool((row != row).any() or (row == float("inf")).any()):
        return SettingError(
            f"Every token would repeat {options.no_repeat_ngram_size} tokens of the text, so none is left to draw.",
            "Raise {no_repeat_ngram_size}, or ask for fewer tokens.",
        )
    return not_finite()


def _likeliest(probabilities: Array, count: int) -> tuple[tuple[int, float], ...]:
    """(id, probability) of at most ``count`` likeliest tokens with probability above 0; probabilities (1, V)."""
    if count == 0:
        return ()
    order = likeliest_first(probabilities)[0, :count]
    pairs = ((int(i), float(probabilities[0, i])) for i in order)
    return tuple((i, p) for i, p in pairs if p > 0)
