"""The loop from prompts to tokens, for any engine: prefill, then one step after the other. Prints nothing.

One prompt is a batch of one, and a draft is another way to take a step. A request may join between two steps, and one
may leave.
"""

from collections import deque
from collections.abc import Generator
from time import perf_counter

from gptcli.inference.engine import DeviceSampler, Scorer
from gptcli.inference.sampling import not_finite
from gptcli.inference.sequence import Request, Sequence, Token, draw_rows
from gptcli.inference.slots import Slots, share_prefix
from gptcli.inference.speculative import Drafter, Tally, require_verification

Drawn = list[tuple[Sequence, Token]]


class Scheduler:
    """The sequences that are decoded in an engine's slots. Each gets the same tokens as alone.

    Args:
        scorer: the engine; a slot holds a prompt and its new tokens, or a whole context.
        drafter: proposes tokens that a forward pass verifies; None decodes one token a step.
        tally: counts what the drafter brings.
        ahead: most tokens in a proposal.

    Raises:
        GptcliError: there is a drafter, and the engine's verification would change texts.
    """

    def __init__(
        self, scorer: Scorer, drafter: Drafter | None = None, tally: Tally | None = None, ahead: int = 11
    ) -> None:
        if drafter is not None:
            require_verification(scorer.engine)
        self.scorer, self.drafter, self.tally = scorer, drafter, tally or Tally()
        self.slots = Slots(scorer)
        self._ahead = ahead
        self._waiting: deque[Sequence] = deque()
        self._active: dict[int, Sequence] = {}  # by slot
        self._sampler: DeviceSampler | None = None
        self._has_joined = False  # whether a request has joined since the sampler was chosen

    def add(self, request: Request) -> Sequence:
        """Let a request join: it is decoded from the next step on in which a slot is free.

        Raises:
            GptcliError: the prompt is empty, or ``overflow`` is "error" and it is longer than the context.
        """
        sequence = Sequence(request, self.scorer.engine.config.context_length)
        if not sequence.done:
            self._waiting.append(sequence)
            self._has_joined = True
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Let a sequence leave, wherever it is; nothing if it has ended."""
        sequence.done = True
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif self._active.get(sequence.slot) is sequence:
            self._leave(sequence)

    def step(self) -> Drawn:
        """Read and draw once for every sequence that has a slot.

        Returns:
            the new tokens, those of a sequence in order: none where its text has ended or a result is not yet there,
            several where proposals were accepted. `Sequence.done` says which ones have ended.
        """
        for slot in range(self.scorer.engine.slots):
            if slot not in self._active and self._waiting:
                self._active[slot] = self._waiting.popleft()
                self._active[slot].slot = slot
        if self._has_joined:
            self._choose_sampler()
        ready = [sequence for sequence in self._active.values() if not sequence.restart]
        drawn: Drawn = []
        for group in self._prompts([sequence for sequence in self._active.values() if sequence.restart]):
            drawn += self._prefill(group)
        if ready and self._sampler is not None:
            drawn += self._fetch(self._sampler)
        elif ready and self.drafter is not None:
            drawn += self._verify(ready, self.drafter)
        elif ready:
            drawn += self._decode(ready)
        for sequence in list(self._active.values()):
            if sequence.done:
                self._leave(sequence)
            elif sequence.restart and self._sampler is not None:
                self._sampler.leave(sequence.slot)
        return drawn

    def _choose_sampler(self) -> None:
        """Draw on the device if all requests that are here can be drawn there together."""
        self._has_joined = False
        if self.drafter is not None or self.scorer.contrast is not None:
            return
        if self._sampler is not None:
            for slot in self._active:
                self._sampler.leave(slot)
        requests = [sequence.request for sequence in (*self._active.values(), *self._waiting)]
        self._sampler = self.scorer.engine.device_sampler(requests, self.scorer.drawable)
        for sequence in self._active.values():
            self._join(sequence)

    def _join(self, sequence: Sequence) -> None:
        """Let the device draw a sequence's next tokens, if it draws and the sequence goes on in its window."""
        if self._sampler is not None and not (sequence.done or sequence.restart):
            self._sampler.join(sequence.slot, sequence, len(self.slots.ids[sequence.slot]))

    def _leave(self, sequence: Sequence) -> None:
        del self._active[sequence.slot]
        if self._sampler is not None:
            self._sampler.leave(sequence.slot)

    def _prompts(self, sequences: list[Sequence]) -> list[list[Sequence]]:
        """The prompts that are to be read, in groups for one forward pass each.

        A group has at most `Engine.prompt_tokens` tokens or one prompt, and no two prompts with a prefix to share.
        """
        groups: list[list[Sequence]] = []
        tokens = 0
        for sequence in sequences:
            tokens += len(sequence.unread)
            others = groups[-1] if groups else []
            shares = any(share_prefix(sequence.unread, other.unread) for other in others)
            if not groups or shares or tokens > self.scorer.engine.prompt_tokens:
                groups.append([])
                tokens = len(sequence.unread)
            groups[-1].append(sequence)
        return groups

    def _prefill(self, sequences: list[Sequence]) -> Drawn:
        """Read prompts, or windows that have moved, and draw the token after each."""
        tokens = draw_rows(sequences, self.slots.fill([(each.slot, each.unread) for each in sequences]))
        for sequence, token in zip(sequences, tokens, strict=True):
            self.tally.prefilled += token is not None
            self._join(sequence)
        return _given(sequences, tokens)

    def _decode(self, sequences: list[Sequence]) -> Drawn:
        """Read one token of each sequence and draw the next."""
        slots, ids = [s.slot for s in sequences], [s.unread for s in sequences]
        scores = self.scorer.forward(slots, ids, [len(self.slots.ids[slot]) for slot in slots])
        for slot, read in zip(slots, ids, strict=True):
            self.slots.append(slot, read)
        return _given(sequences, draw_rows(sequences, scores))

    def _fetch(self, sampler: DeviceSampler) -> Drawn:
        """Queue a step on the device, and take the results of the one before."""
        if not sampler.under_way:
            sampler.queue()
        sampler.queue()
        drawn: Drawn = []
        for slot, found in sampler.results().items():
            sequence = self._active[slot]
            self.slots.append(slot, sequence.unread)
            if found.finite:
                drawn += _given([sequence], [sequence.accept(found.id, share=found.share)])
            else:
                sequence.fail(not_finite())
        return drawn

    def _verify(self, sequences: list[Sequence], drafter: Drafter) -> Drawn:
        """Read one token of each sequence and its proposals in one pass; draw as long as proposals are right.

        A token is drawn as without a draft, and a proposal is accepted if it is that token.
        """
        started, tally, drawn = perf_counter(), self.tally, Drawn()
        proposals = [self._propose(sequence, drafter) for sequence in sequences]
        slots, rows = [s.slot for s in sequences], [[*s.unread, *p] for s, p in zip(sequences, proposals, strict=True)]
        scores = self.scorer.forward(slots, rows, [len(self.slots.ids[slot]) for slot in slots], every=True)
        first = 0
        for sequence, proposed in zip(sequences, proposals, strict=True):
            for number in range(len(proposed) + 1):
                self.slots.append(sequence.slot, sequence.unread)
                (token,) = draw_rows([sequence], scores[first + number : first + number + 1])
                drawn += _given([sequence], [token])
                found = token.id if token is not None else None if sequence.error else sequence.request.eot_id
                accepted = number < len(proposed) and proposed[number] == found
                tally.accepted += accepted
                if not accepted or sequence.done:
                    break
            first += len(proposed) + 1
        tally.count(sum(map(len, proposals)), len(drawn), perf_counter() - started)
        return drawn

    def _propose(self, sequence: Sequence, drafter: Drafter) -> list[int]:
        """At most as many tokens as are wanted and fit into the window, less the one that is drawn anyway."""
        context = self.scorer.engine.config.context_length
        left = sequence.request.max_new_tokens - sequence.count - 1
        room = min(self._ahead, left, context - len(sequence.window.ids))
        return drafter.propose(sequence, room) if room > 0 else []


def generate(scheduler: Scheduler, request: Request) -> Generator[Token]:
    """Continue one prompt. Other requests of the scheduler go on meanwhile, and may be iterated in turns.

    Yields:
        each token as soon as it is drawn, except ``eot_id``. An iterator that is closed leaves its slot.

    Raises:
        GptcliError: the prompt is empty, ``overflow`` is "error" and the context is full, or logits allow no draw.
    """
    sequence = scheduler.add(request)
    given = 0
    try:
        while given < len(sequence.tokens) or not sequence.done:
            if given == len(sequence.tokens):
                scheduler.step()
            for token in sequence.tokens[given:]:
                given += 1
                yield token
    finally:
        scheduler.cancel(sequence)
    if sequence.error is not None:
        raise sequence.error


def _given(sequences: list[Sequence], tokens: list[Token | None]) -> Drawn:
    return [(s, token) for s, token in zip(sequences, tokens, strict=True) if token is not None]
