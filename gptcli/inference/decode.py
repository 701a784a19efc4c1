"""Prefill, then one token at a time, whatever computes the logits. Knows token ids only; yields, prints nothing."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Protocol

from gptcli.config.model import GPTConfig
from gptcli.inference.sampling import Array, Drawable, contrast_layers, keep_drawable, not_finite
from gptcli.inference.sequence import Continuation, Request, Token, draw_rows

WORTH_SHARING = 16  # tokens that two prompts begin with before one is read from the other's place in the cache


class Engine(Protocol):
    """A model and a cache with a slot for each sequence under way. Going back is reading from an earlier place.

    Attributes:
        config: the model's shape.
        slots: sequences that can be under way at once.
        at_once: tokens of one sequence that are read together for little more than one costs: as many as speculation
            may verify.
    """

    config: GPTConfig
    slots: int
    at_once: int

    def read(self, slot: int, ids: Sequence[int], start: int, *, every: bool = False, exit_at: int = 0) -> Array:
        """Read tokens of one sequence from position ``start`` on; what came before has been read.

        Returns:
            logits (1, V) after the last of them, or (T, V) after each; below them, with ``exit_at``, as many again that
            the final norm and the head make of that layer (from 1). Valid until the next call.
        """

    def step(self, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int], *, exit_at: int = 0) -> Array:
        """Read one token each of several sequences: logits (B, V), as valid as `read`'s; (2 B, V) with ``exit_at``."""

    def fork(self, source: int, target: int, length: int) -> None:
        """Let slot ``target`` know the first ``length`` tokens of ``source``."""

    def quantized_copy(self, bits: int) -> "Engine":
        """The same model with its matrices packed in ``bits`` bits (8 or 4), on the same cache."""

    def draws(self, requests: Sequence[Request], drawable: Drawable | None = None) -> "Draws | None":
        """What draws for these requests where the model is, or None where the caller draws from logits."""


class Drawn(Protocol):
    """What a step drew for a text: the id, its probability, and whether no logit was NaN or infinite."""

    @property
    def id(self) -> int: ...

    @property
    def share(self) -> float: ...

    @property
    def finite(self) -> bool: ...


class Draws(Protocol):
    """Steps that read what the one before has drawn, queued ahead of the one who looks at the ids.

    Attributes:
        under_way: steps that are queued and not looked at.
    """

    @property
    def under_way(self) -> int: ...

    def join(self, slot: int, text: Continuation, position: int) -> None:
        """Let a slot take part, whose next id is read at ``position``. Reading another way needs `leave` first."""

    def leave(self, slot: int) -> None:
        """Let a slot take no part any more; what is under way for it is dropped."""

    def queue(self) -> None:
        """Queue a step of all slots that take part."""

    def results(self) -> Mapping[int, Drawn]:
        """Wait for the oldest step under way: what it drew for each slot that has taken part ever since."""


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


class SlotDecoder:
    """One slot of an engine as a `Decoder`.

    What it reads from the start is remembered for as long as the cache holds it: several samples of one prompt read it
    once, and each begins with the very logits of that reading.

    Args:
        engine: the model.
        slot: which of its sequences.
        contrast: hold the last layer against this one (from 1; see `sampling.contrast_layers`); None does not.
        drawable: the logits of all other ids are -inf; None leaves every id as it is.
    """

    def __init__(
        self, engine: Engine, slot: int = 0, contrast: int | None = None, drawable: Drawable | None = None
    ) -> None:
        self.config = engine.config
        self.length = 0
        self.engine = engine
        self.contrast = contrast
        self.drawable = drawable
        self.slot = slot
        self._beginning: tuple[list[int], Array] | None = None  # what the cache begins with, and the logits after it

    def read(self, ids: Sequence[int], *, every: bool = False) -> Array:
        from_start = self.length == 0 and not every
        if from_start and self._beginning is not None and self._beginning[0] == list(ids):
            logits = self._beginning[1] + 0.0
        else:
            if self._beginning is not None and self.length < len(self._beginning[0]):
                self._beginning = None
            logits = self.engine.read(self.slot, ids, self.length, every=every, exit_at=self.contrast or 0)
            if from_start:
                self._beginning = list(ids), logits + 0.0
        self.length += len(ids)
        return _scores(logits, self.contrast, self.drawable)

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)

    def quantized_copy(self, bits: int) -> "SlotDecoder":
        """A decoder of the same model packed in ``bits`` bits, whose cache is this one's: for drafts."""
        return SlotDecoder(self.engine.quantized_copy(bits), self.slot, self.contrast, self.drawable)

    def draws(self, requests: Sequence[Request]) -> Draws | None:
        """What draws for requests in this slot where the model is; None where `read`'s caller draws."""
        return self.engine.draws(requests, self.drawable) if self.contrast is None else None

    def fork(self, slot: int) -> "SlotDecoder":
        """A decoder in another slot that has read the same."""
        self.engine.fork(self.slot, slot, self.length)
        other = SlotDecoder(self.engine, slot, self.contrast, self.drawable)
        other.length = self.length
        return other


def _scores(logits: Array, contrast: int | None, drawable: Drawable | None) -> Array:
    """What an engine returned, ids that may not be drawn left out, the first half held against the second if asked."""
    if contrast is None:
        return keep_drawable(logits, drawable)
    final, early = logits[: len(logits) // 2], logits[len(logits) // 2 :]
    return contrast_layers(keep_drawable(final, drawable), early)


def decode(decoder: Decoder, request: Request) -> Iterator[Token]:
    """Continue a prompt, token by token.

    Args:
        decoder: has room for the prompt and the new tokens, or for its context; what it has read is forgotten.
        request: what to continue and how.

    Yields:
        each token as soon as it is drawn; never ``eot_id``.

    Raises:
        GptcliError: the prompt is empty, ``overflow`` is "error" and the context is full, or logits are not finite.
    """
    text = Continuation(request, decoder.config.context_length)
    draws = decoder.draws([request]) if isinstance(decoder, SlotDecoder) else None
    while not text.done:
        if text.restart:
            decoder.crop(0)
        token = text.draw(decoder.read(text.unread))
        if token is not None:
            yield token
        if draws is not None and isinstance(decoder, SlotDecoder) and not (text.done or text.restart):
            yield from _drawn_there(decoder, draws, text)


def _drawn_there(decoder: SlotDecoder, draws: Draws, text: Continuation) -> Iterator[Token]:
    """The tokens of ``text`` until it ends or its window moves, drawn where the model is."""
    draws.join(decoder.slot, text, decoder.length)
    try:
        draws.queue()
        while not (text.done or text.restart):
            draws.queue()
            drawn = draws.results()[decoder.slot]
            decoder.length += 1
            token = accept(text, drawn)
            if token is not None:
                yield token
    finally:
        draws.leave(decoder.slot)
        while draws.under_way:
            draws.results()


def accept(text: Continuation, drawn: Drawn) -> Token | None:
    """Go on with what was drawn where the model is; None at the end of text.

    Raises:
        GptcliError: the logits were no finite numbers.
    """
    if not drawn.finite:
        raise not_finite()
    return text.accept(drawn.id, share=drawn.share)


def decode_together(
    engine: Engine,
    requests: Sequence[Request],
    contrast: int | None = None,
    drawable: Drawable | None = None,
) -> Generator[tuple[int, Token | None], bool | None, None]:
    """Continue many prompts at once; a finished one gives its place to the next that waits.

    Each gets the tokens it would get alone. A beginning that another slot of the cache holds is forked, not read.

    Args:
        engine: has room for each prompt and its new tokens, or for its context.
        requests: what to continue and how.
        contrast, drawable: as `SlotDecoder` has them.

    Yields:
        (number of the request, its next token), and (number, None) when it has ended. Send True to end it early.
    """
    waiting = deque(enumerate(requests))
    active: dict[int, tuple[int, Continuation]] = {}
    held: list[list[int]] = [[] for _ in range(engine.slots)]  # what each slot's cache knows
    exit_at = contrast or 0
    draws = engine.draws(requests, drawable) if contrast is None else None
    while waiting or active:
        for slot in range(engine.slots):
            if slot not in active and waiting:
                number, request = waiting.popleft()
                active[slot] = number, Continuation(request, engine.config.context_length)
        drawn: dict[int, Token | None] = {}
        together = [slot for slot, (_, text) in active.items() if not text.restart]
        for slot, (_, text) in active.items():
            if text.restart:  # a prompt, or a window that has moved, is read on its own
                known = _share(engine, held, slot, text.unread)
                logits = engine.read(slot, text.unread[known:], known, exit_at=exit_at)
                held[slot] = list(text.unread)
                drawn[slot] = text.draw(_scores(logits, contrast, drawable))
                if draws is not None:
                    draws.leave(slot)
                    if not (text.done or text.restart):
                        draws.join(slot, text, len(held[slot]))
        if together and draws is not None:
            if not draws.under_way:
                draws.queue()
            draws.queue()
            for slot, found in draws.results().items():
                held[slot].append(active[slot][1].unread[0])
                drawn[slot] = accept(active[slot][1], found)
        elif together:
            texts = [active[slot][1] for slot in together]
            ids, positions = [text.unread[0] for text in texts], [len(held[slot]) for slot in together]
            logits = engine.step(ids, positions, together, exit_at=exit_at)
            for slot, token_id in zip(together, ids, strict=True):
                held[slot].append(token_id)
            drawn |= zip(together, draw_rows(texts, _scores(logits, contrast, drawable)), strict=True)
        for slot, (number, text) in list(active.items()):
            token = drawn.get(slot)  # a text that has just joined gets its next one a step later
            stopped = token is not None and (yield number, token)
            if (stopped or text.done or text.restart) and draws is not None:
                draws.leave(slot)
            if stopped or text.done:
                del active[slot]
                yield number, None


def _share(engine: Engine, held: Sequence[Sequence[int]], slot: int, ids: Sequence[int]) -> int:
    """Put into ``slot`` the longest beginning of ``ids`` that any slot holds, but for the last id; its length."""
    lengths = [
        next((n for n, (a, b) in enumerate(zip(ids[:-1], known, strict=False)) if a != b), None) for known in held
    ]
    known = [min(len(ids) - 1, len(held[n])) if length is None else length for n, length in enumerate(lengths)]
    source = max(range(len(held)), key=lambda n: (known[n], n == slot))
    if known[source] < WORTH_SHARING:
        return 0
    if source != slot:
        engine.fork(source, slot, known[source])
    return known[source]
