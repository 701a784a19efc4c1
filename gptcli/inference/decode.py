"""Prefill, then decode one token a step, with any engine. Works on token ids; yields tokens and prints nothing."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Protocol

from gptcli.config.model import GPTConfig
from gptcli.inference.sampling import Array, Drawable, contrast_layers, keep_drawable, not_finite
from gptcli.inference.sequence import Continuation, Request, Token, draw_rows

WORTH_SHARING = 16  # tokens in the shortest common prefix that is copied from another slot of the cache


class Engine(Protocol):
    """A model and a cache with a slot for each active sequence. Rollback is a read from an earlier position.

    Attributes:
        config: the model's shape.
        slots: sequences that the cache holds.
        at_once: the most tokens of one sequence that a forward pass reads at little more than the cost of one;
            speculation verifies at most so many.
    """

    config: GPTConfig
    slots: int
    at_once: int

    def read(self, slot: int, ids: Sequence[int], start: int, *, every: bool = False, exit_at: int = 0) -> Array:
        """Read tokens of one sequence from position ``start`` on; the cache holds all earlier positions.

        Returns:
            logits (1, V) of the last token, or (T, V) of each with ``every``. With ``exit_at``, the early-exit layer
            (from 1), as many rows follow: the head's logits of that layer's normed output. Valid until the next call.
        """

    def step(self, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int], *, exit_at: int = 0) -> Array:
        """Read one token of each slot: logits (B, V), or (2 B, V) with ``exit_at``; valid until the next call."""

    def fork(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of slot ``source`` to slot ``target``."""

    def quantized_copy(self, bits: int) -> "Engine":
        """A copy of the model with its matrices packed in ``bits`` bits (8 or 4), on the same cache."""

    def draws(self, requests: Sequence[Request], drawable: Drawable | None = None) -> "Draws | None":
        """The sampler on the model's device for these requests, or None if the caller must draw from logits."""


class Drawn(Protocol):
    """The result of a step for one text: token id, its probability (share), and whether all logits were finite."""

    @property
    def id(self) -> int: ...

    @property
    def share(self) -> float: ...

    @property
    def finite(self) -> bool: ...


class Draws(Protocol):
    """Steps on the device, each reading the tokens that the previous one drew, queued before the host has their ids.

    Attributes:
        under_way: queued steps whose results have not been fetched.
    """

    @property
    def under_way(self) -> int: ...

    def join(self, slot: int, text: Continuation, position: int) -> None:
        """Activate a slot; its next id is read at ``position``. Before another kind of read, the slot must `leave`."""

    def leave(self, slot: int) -> None:
        """Deactivate a slot; its results of queued steps are discarded."""

    def queue(self) -> None:
        """Queue a step of all active slots."""

    def results(self) -> Mapping[int, Drawn]:
        """Wait for the oldest queued step: its results for the slots that have been active since it was queued."""


class Decoder(Protocol):
    """A model with a cache of one sequence.

    Attributes:
        config: the model's shape.
        length: tokens in the cache.
    """

    config: GPTConfig
    length: int

    def read(self, ids: Sequence[int], *, every: bool = False) -> Array:
        """Append tokens; logits (1, V) of the last, or (T, V) of each with ``every``. Valid until the next call."""

    def crop(self, length: int) -> None:
        """Drop every token after the first ``length``."""


class SlotDecoder:
    """One slot of an engine as a `Decoder`.

    The last prompt read from position 0 and its logits are kept while the cache holds the prompt, so several samples of
    one prompt read it once and draw their first tokens from the same logits.

    Args:
        engine: the model and its cache.
        slot: the engine's slot.
        contrast: the early-exit layer (from 1) that `sampling.contrast_layers` subtracts; None for plain logits.
        drawable: the logits of all other ids are set to -inf; None changes no logits.
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
        self._beginning: tuple[list[int], Array] | None = None  # the cached prompt, and the logits of its last token

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
        """A decoder of a copy of the model packed in ``bits`` bits, on the same cache, for drafts."""
        return SlotDecoder(self.engine.quantized_copy(bits), self.slot, self.contrast, self.drawable)

    def draws(self, requests: Sequence[Request]) -> Draws | None:
        """The sampler on the model's device for requests in this slot; None if the caller must draw from logits."""
        return self.engine.draws(requests, self.drawable) if self.contrast is None else None

    def fork(self, slot: int) -> "SlotDecoder":
        """A decoder in another slot with a copy of this one's cached tokens."""
        self.engine.fork(self.slot, slot, self.length)
        other = SlotDecoder(self.engine, slot, self.contrast, self.drawable)
        other.length = self.length
        return other


def _scores(logits: Array, contrast: int | None, drawable: Drawable | None) -> Array:
    """Logits of an engine, -inf for ids that may not be drawn; with ``contrast``, `contrast_layers` of both halves."""
    if contrast is None:
        return keep_drawable(logits, drawable)
    final, early = logits[: len(logits) // 2], logits[len(logits) // 2 :]
    return contrast_layers(keep_drawable(final, drawable), early)


def decode(decoder: Decoder, request: Request) -> Iterator[Token]:
    """Continue a prompt, token by token.

    Args:
        decoder: holds the prompt and the new tokens, or a whole context; its earlier contents are dropped.
        request: prompt and options.

    Yields:
        each token as soon as it is drawn, except ``eot_id``.

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
    """The tokens of ``text``, drawn on the model's device, until it ends or its window moves."""
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
    """Append a token drawn on the device to ``text``; None at the end of text.

    Raises:
        GptcliError: a logit was NaN or infinite.
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
    """Continue many prompts together; the slot of a finished request is given to the next waiting one.

    Each request gets the same tokens as alone. A prefix that another slot holds is copied instead of read.

    Args:
        engine: each slot holds a prompt and its new tokens, or a whole context.
        requests: prompts and options.
        contrast, drawable: as for `SlotDecoder`.

    Yields:
        (index of the request, its next token), and (index, None) at its end. Send True to end a request early.
    """
    waiting = deque(enumerate(requests))
    active: dict[int, tuple[int, Continuation]] = {}
    held: list[list[int]] = [[] for _ in range(engine.slots)]  # the ids in each slot's cache
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
            if text.restart:  # a prompt, or a window that has moved, is read by a call of its own
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
            token = drawn.get(slot)  # None for a slot that joined after the fetched step was queued
            stopped = token is not None and (yield number, token)
            if (stopped or text.done or text.restart) and draws is not None:
                draws.leave(slot)
            if stopped or text.done:
                del active[slot]
                yield number, None


def _share(engine: Engine, held: Sequence[Sequence[int]], slot: int, ids: Sequence[int]) -> int:
    """Copy into ``slot`` the longest prefix of ``ids``, without the last id, that any slot holds; its length.

    A prefix shorter than `WORTH_SHARING` is not copied, and the length is then 0.
    """
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
