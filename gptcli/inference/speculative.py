"""Speculation: a cheap draft proposes several tokens, the model judges all of them in one reading.

Decoding is bound by reading the weights, and reading them for a few rows costs little more than for one (Leviathan et
al., 2023). Here a text is the same with a draft and without, token by token, greedy or sampled: every token is drawn
from the model's own distribution by the text's own key (see `sampling.draw`), and a proposal is accepted if it is that
token. A draft that draws by the same key from a distribution near the model's is nearly always right.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import exp, expm1, prod
from statistics import median
from time import perf_counter
from typing import Protocol

from gptcli.inference.decode import Decoder, SlotDecoder
from gptcli.inference.sampling import Array, draw
from gptcli.inference.sequence import Continuation, Request, Token


class Drafter(Protocol):
    """Something that guesses how a text goes on."""

    def propose(self, text: Continuation, count: int) -> list[int]:
        """At most ``count`` tokens that may follow ``text``."""


@dataclass
class Tally:
    """What speculation brought.

    Attributes:
        proposed, accepted: tokens, of both kinds.
        forward_passes: how often the model was read after the prompt, for how many ``tokens``.
        plain: seconds of each reading of a single token, which is what a step without a draft costs.
        seconds: of everything between the prompt and the end: drafting, reading, judging.
    """

    proposed: int = 0
    accepted: int = 0
    forward_passes: int = 0
    tokens: int = 0
    plain: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def speed_up(self) -> float | None:
        """How many times faster than one token a step, at this run's own median plain step; None without one."""
        if not self.plain or self.seconds == 0:
            return None
        return self.tokens * median(self.plain) / self.seconds


class NgramDrafter:
    """Looks the last few tokens up in the whole text so far and proposes what followed them the last time.

    It trusts itself as far as it was right: twice as many tokens after a proposal that was accepted whole, at most
    ``most``, and none at all for a while after several that were of no use.

    Args:
        longest, shortest: how many tokens must agree; longer agreements count before shorter ones.
        most: tokens to propose at once.
    """

    def __init__(self, longest: int = 4, shortest: int = 2, most: int = 7) -> None:
        self.sizes = range(longest, shortest - 1, -1)
        self.most = most
        self._forget()

    def _forget(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}  # a few tokens -> where what followed them stands
        self._indexed = 0
        self._text: Continuation | None = None
        self._last: tuple[int, list[int]] = (0, [])
        self._reach, self._useless, self._pause = self.most, 0, 0

    def propose(self, text: Continuation, count: int) -> list[int]:
        if text is not self._text:
            self._forget()
            self._text = text
        self._learn(text.seen)
        if self._pause:
            self._pause -= 1
            return []
        start = self._find(text.seen)
        ids = [] if start is None else text.seen[start : start + min(count, self._reach)]
        self._last = len(text.seen), ids
        return ids

    def _learn(self, seen: list[int]) -> None:
        """Judge the last proposal by what came, and index what is new."""
        at, proposed = self._last
        if proposed:
            came = seen[at : at + len(proposed)]
            accepted = next((n for n, (a, b) in enumerate(zip(proposed, came, strict=False)) if a != b), len(came))
            self._reach = min(2 * self._reach, self.most) if accepted == len(proposed) else max(1, accepted)
            self._useless = 0 if accepted else self._useless + 1
            self._pause = 0 if self._useless < 2 else min(2**self._useless, 32)
        self._last = 0, []
        for place in range(max(self._indexed, 1), len(seen)):
            for size in self.sizes:
                if place >= size:
                    self._followed[tuple(seen[place - size : place])] = place
        self._indexed = len(seen)

    def _find(self, seen: list[int]) -> int | None:
        """Where the text went on the last time that it ended as it ends now."""
        for size in self.sizes:
            if size < len(seen) and (place := self._followed.get(tuple(seen[-size:]))) is not None:
                return place
        return None


class ModelDrafter:
    """Another model with the same tokenizer, drawing from its own distribution under the same request by the same keys.

    It stops where the next token is not worth its step: a text with a draft comes about twice as fast, so a step of
    the draft has to bring ``2 cost`` tokens, and what it brings is the chance that all tokens before are accepted. When
    drawing is greedy, that chance is told from how far ahead the likeliest token is, 1 - exp(-margin / noise), the
    scale of the noise between the models being learned from what was refused. Else it is the share accepted lately.

    Args:
        decoder: the draft's.
        cost: of a step of it; a reading of the model is 1.
        most: tokens to propose at once.
        shared: the draft reads on in the model's own cache (see `decode.SlotDecoder.quantized_copy`).
    """

    def __init__(self, decoder: Decoder, cost: float = 0.2, most: int = 7, shared: bool = False) -> None:
        self._decoder = decoder
        self.cost, self.most = cost, most
        self._shared = shared
        self._read: list[int] = []
        self._noise, self._taken = 0.1, 1.0
        self._text: Continuation | None = None
        self._last: tuple[int, list[tuple[int, float]]] = (0, [])

    def propose(self, text: Continuation, count: int) -> list[int]:
        if text is self._text:
            self._learn(text.seen)
        self._text = text
        ids = text.window.ids
        count = min(count, self.most, self._decoder.config.context_length - len(ids))
        if count < 1:
            self._last = 0, []
            return []
        known = len(ids) - 1 if self._shared else self._known(ids)
        self._decoder.length = known
        self._read = list(ids)
        logits = self._decoder.read(ids[known:])
        proposals: list[int] = []
        chances: list[float] = []
        while True:
            token_id, chance = self._guess(text, logits, proposals)
            if token_id < 0:  # the draft's logits are not finite: it knows nothing
                break
            proposals.append(token_id)
            chances.append(chance)
            if len(proposals) == count or token_id == text.request.eot_id or prod(chances) < 2 * self.cost:
                break
            self._read.append(token_id)
            logits = self._decoder.read([token_id])
        self._last = len(text.seen), list(zip(proposals, chances, strict=True))
        return proposals

    def _guess(self, text: Continuation, logits: Array, ahead: list[int]) -> tuple[int, float]:
        """The next token, and the chance that it is accepted if those before are."""
        if text.request.sampling.temperature == 0:
            token_id, margin = text.likeliest(logits, ahead)
            return token_id, -expm1(-margin / self._noise)
        return int(draw(text.distribution(logits, ahead), [text.key(len(ahead))])[0]), self._taken

    def _learn(self, seen: list[int]) -> None:
        """Judge the last proposals by what came; nothing is known of those behind the first that was refused."""
        at, proposed = self._last
        for (token_id, chance), came in zip(proposed, seen[at:], strict=False):
            accepted = token_id == came
            self._taken += 0.05 * (accepted - self._taken)
            self._noise *= exp(chance - accepted)
            if not accepted:
                break

    def _known(self, ids: list[int]) -> int:
        """How many of these tokens the draft has read already; the last one it reads again."""
        most = min(len(self._read), len(ids) - 1)
        return next((n for n in range(most) if self._read[n] != ids[n]), most)


class OnTrial:
    """A draft that is asked for as long as the text comes faster with it.

    The first ``plain`` tokens come without it and tell what one costs. Whenever ``tried`` tokens with it have cost
    more, the next ``rest`` come without, and twice as many the next time.

    Args:
        draft: which one.
        tally: of the run that it drafts for.
        plain, tried, rest: see above.
    """

    def __init__(self, draft: Drafter, tally: Tally, plain: int = 2, tried: int = 16, rest: int = 64) -> None:
        self._draft, self._tally = draft, tally
        self.plain, self.tried, self.rest = plain, tried, rest
        self._resting_until = 0  # tokens of the tally
        self._began: tuple[int, float] | None = None  # tokens and seconds of the tally at the start of an attempt

    def propose(self, text: Continuation, count: int) -> list[int]:
        tally = self._tally
        if len(tally.plain) < self.plain or tally.tokens < self._resting_until:
            return []
        tokens, seconds = self._began or (tally.tokens, tally.seconds)
        if tally.tokens - tokens >= self.tried:
            if (tally.seconds - seconds) / (tally.tokens - tokens) > median(tally.plain[-self.tried :]):
                self._resting_until, self.rest, self._began = tally.tokens + self.rest, 2 * self.rest, None
                return []
            tokens, seconds = tally.tokens, tally.seconds
        self._began = tokens, seconds
        return self._draft.propose(text, count)


def quantized_drafter(decoder: SlotDecoder, bits: int) -> ModelDrafter:
    """The model of ``decoder`` as its own draft, packed in ``bits`` bits (8 or 4)."""
    most = decoder.engine.at_once - 1
    return ModelDrafter(decoder.quantized_copy(bits), cost={8: 0.3, 4: 0.22}[bits], most=most, shared=True)


def decode(decoder: Decoder, drafter: Drafter, request: Request, tally: Tally, ahead: int = 11) -> Iterator[Token]:
    """`decode.decode`, with tokens proposed by ``drafter``: the same text.

    Args:
        decoder: the model's; has room for the prompt and the new tokens, or for its context.
        drafter: proposes.
        request: what to continue and how.
        tally: counts what happened.
        ahead: tokens to propose at once, at most.

    Yields:
        each token once it is certain.

    Raises:
        GptcliError: as `decode.decode` does.
    """
    context = decoder.config.context_length
    text = Continuation(request, context)
    while not text.done:
        if text.restart:
            decoder.crop(0)
        if len(text.unread) > 1:
            decoder.read(text.unread[:-1])
        started = perf_counter()
        room = min(ahead, request.max_new_tokens - text.count - 1, context - len(text.window.ids))
        proposals = drafter.propose(text, room) if room > 0 else []
        logits = decoder.read([text.unread[-1], *proposals], every=True)
        single = None if proposals else started
        start = decoder.length - len(proposals)
        tally.forward_passes += 1
        tally.proposed += len(proposals)
        for number in range(len(proposals) + 1):
            token = text.draw(logits[number : number + 1])
            drawn = request.eot_id if token is None else token.id
            accepted = number < len(proposals) and proposals[number] == drawn
            tally.accepted += accepted
            tally.seconds += perf_counter() - started
            if single is not None:
                tally.plain.append(perf_counter() - single)
            if token is not None:
                tally.tokens += 1
                yield token
            started = perf_counter()  # what the reader of the text does counts for nothing
            if not accepted or text.done:
                break
        decoder.crop(start + number)
