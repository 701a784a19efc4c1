"""Speculation: a cheap draft proposes several tokens, the model judges all of them in one reading.

Decoding is bound by reading the weights, and reading them for a few rows costs little more than for one. The rule of
Leviathan et al. (2023) keeps the distribution exactly: a proposed token x, drawn from q, is taken with probability
min(1, p(x) / q(x)); where it is refused, the token is drawn from max(0, p - q), normalised. A greedy text is the same
token by token.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import NamedTuple, Protocol

from gptcli.continuation import Continuation, Request, Token
from gptcli.decoding import Decoder
from gptcli.sampling import Array, draw


class Proposal(NamedTuple):
    """A proposed token and the distribution (1, V) it was drawn from; None if nothing else was possible."""

    id: int
    probabilities: Array | None


class Drafter(Protocol):
    """Something that guesses how a text goes on."""

    def propose(self, text: Continuation, count: int) -> list[Proposal]:
        """At most ``count`` tokens that may follow ``text``."""


@dataclass
class Tally:
    """What speculation brought.

    Attributes:
        proposed, taken: tokens, of both kinds.
        readings: how often the model was read after the prompt, for how many ``tokens``.
        plain: seconds of each reading of a single token, which is what a step without a draft costs.
        seconds: of everything between the prompt and the end: drafting, reading, judging.
    """

    proposed: int = 0
    taken: int = 0
    readings: int = 0
    tokens: int = 0
    plain: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def speed_up(self) -> float | None:
        """How many times faster than one token a step, at this run's own median plain step; None without one."""
        if not self.plain or self.seconds == 0:
            return None
        return self.tokens * median(self.plain) / self.seconds


class NgramDrafter:
    """Looks the last few tokens up in the text so far and proposes what followed them there.

    Args:
        longest, shortest: how many tokens must agree; longer agreements are looked for first.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.longest = longest
        self.shortest = shortest

    def propose(self, text: Continuation, count: int) -> list[Proposal]:
        ids = text.window.ids
        for size in range(min(self.longest, len(ids) - 1), self.shortest - 1, -1):
            ending = ids[-size:]
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start] == ending[0] and ids[start : start + size] == ending:
                    return [Proposal(token_id, None) for token_id in ids[start + size : start + size + count]]
        return []


class ModelDrafter:
    """A smaller model with the same tokenizer, drawing from its own distribution under the same request.

    Args:
        decoder: the smaller model's.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._read: list[int] = []

    def propose(self, text: Continuation, count: int) -> list[Proposal]:
        ids = text.window.ids
        count = min(count, self._decoder.config.context_length - len(ids))
        if count < 1:
            return []
        same = 0
        while same < min(len(self._read), len(ids) - 1) and self._read[same] == ids[same]:
            same += 1
        self._decoder.crop(same)
        self._read = list(ids)
        logits = self._decoder.read(ids[same:])
        proposals: list[Proposal] = []
        while True:
            probabilities = text.distribution(logits, [proposal.id for proposal in proposals])
            token_id = int(draw(probabilities, [text.random.random()])[0])
            proposals.append(Proposal(token_id, probabilities))
            if len(proposals) == count or token_id == text.request.eot_id:
                return proposals
            self._read.append(token_id)
            logits = self._decoder.read([token_id])


def decode(decoder: Decoder, drafter: Drafter, request: Request, tally: Tally, ahead: int = 4) -> Iterator[Token]:
    """`decoding.decode`, with tokens proposed by ``drafter``: the same text if greedy, the same distribution if not.

    Args:
        decoder: the model's; has room for the prompt and the new tokens, or for its context.
        drafter: proposes.
        request: what to continue and how.
        tally: counts what happened.
        ahead: tokens to propose at once.

    Yields:
        each token once it is certain.

    Raises:
        GptcliError: as `decoding.decode` does.
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
        logits = decoder.read([text.unread[-1], *(proposal.id for proposal in proposals)], every=True)
        single = None if proposals else started
        start = decoder.length - len(proposals)
        tally.readings += 1
        tally.proposed += len(proposals)
        for number in range(len(proposals) + 1):
            probabilities = text.distribution(logits[number : number + 1])
            proposal = proposals[number] if number < len(proposals) else None
            token_id, taken = _judge(probabilities, proposal, text)
            token = text.accept(token_id, probabilities)
            tally.taken += taken
            tally.seconds += perf_counter() - started
            if single is not None:
                tally.plain.append(perf_counter() - single)
            if token is not None:
                tally.tokens += 1
                yield token
            started = perf_counter()  # what the reader of the text does counts for nothing
            if not taken or text.done:
                break
        decoder.crop(start + number)


def _judge(probabilities: Array, proposal: Proposal | None, text: Continuation) -> tuple[int, bool]:
    """The next token, and whether it is the proposed one."""
    if proposal is None:
        return int(draw(probabilities, [text.random.random()])[0]), False
    share = float(probabilities[0, proposal.id])
    assumed = 1.0 if proposal.probabilities is None else float(proposal.probabilities[0, proposal.id])
    if text.random.random() * assumed < share:
        return proposal.id, True
    if proposal.probabilities is None:
        rest = probabilities + 0.0
        rest[0, proposal.id] = 0.0
    else:
        rest = (probabilities - proposal.probabilities).clip(0.0)
    total = float(rest.sum())  # 0 only where rounding alone made p and q differ
    return int(draw(rest / total if total > 0 else probabilities, [text.random.random()])[0]), False
