"""Decoding on the device: each step reads the tokens that the previous step drew; the host fetches ids a step later.

A step is one CUDA graph from the embedding to the draw. Token ids, positions and draw counts are device tensors that
the step advances. The host queues the next step before it waits for the ids of the previous one, so the device does not
wait for the host. When a text has ended, the result of the one step queued since is discarded.
"""

from collections import abc, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gptcli.config.sampling import SamplingConfig
from gptcli.inference.sampling import Drawable, distribution
from gptcli.inference.sequence import Request, Sequence
from gptcli.inference.stages import text_stages
from gptcli.inference.step_launches import DecodeStep
from gptcli.kernels.gpu.draw import race_kernel, settle_kernel
from gptcli.kernels.gpu.launches import Launch, run_all

BLOCK = 1024  # logits of one program of race_kernel
UNDER_WAY = 4  # most steps that may be queued and not fetched


@dataclass(frozen=True)
class Drawn:
    """The result of a step for one text.

    Attributes:
        id: of the drawn token.
        share: its probability.
        finite: whether no logit was NaN or infinite.
    """

    id: int
    share: float
    finite: bool


def filters_of(requests: abc.Sequence[Request]) -> tuple[bool, SamplingConfig | None]:
    """Whether one graph can draw for all of these requests, and the graph's filters, None for none.

    Requests without filters may differ in temperature, which the kernels read from a tensor; filters are fixed in the
    graph, so with filters all sampling options must be equal. Of the stages that read the text, the device knows the
    repetition penalty alone.
    """
    samplings = {request.sampling for request in requests}
    bare = {replace(sampling, temperature=1.0) for sampling in samplings} == {SamplingConfig()}
    known = all(stage.field == "repetition_penalty" for sampling in samplings for stage in text_stages(sampling))
    if any(request.n_candidates for request in requests) or not known or not (bare or len(samplings) == 1):
        return False, None
    return True, None if bare else next(iter(samplings))


class DeviceDraws:
    """Sampling state of every slot on the device, and the queue of steps: `engine.DeviceSampler`.

    Args:
        step: the launches that compute the logits.
        drawable: the ids that may be drawn; None for all.
    """

    def __init__(self, step: DecodeStep, drawable: Drawable | None = None) -> None:
        self._step, self.drawable = step, drawable
        slots, vocab = step.store.size(2), step.config.vocab_size
        device = step.store.device
        self._mask: Tensor | None = None  # (V) float32 that is added to all logits, 0 or -inf
        allowed = None if drawable is None else torch.from_numpy(drawable.mask(vocab))
        if allowed is not None and not bool(allowed.all()):
            self._mask = torch.zeros(vocab).masked_fill(~allowed, -torch.inf).to(device)
        self._parts_of_row = -(-vocab // BLOCK)
        self.temperatures = torch.zeros(slots, device=device)
        self.seeds, self.counts, self.eots, self.least = torch.zeros(4, slots, dtype=torch.int64, device=device)
        self._seen = torch.zeros(1, 1, dtype=torch.uint8, device=device)
        self._parts = torch.zeros(slots, 4, self._parts_of_row, device=device)
        self._winners = torch.zeros(slots, self._parts_of_row, dtype=torch.int32, device=device)
        self._probabilities = torch.zeros(1, 1, device=device)
        self.out = torch.zeros(slots, 3, dtype=torch.int32, device=device)
        on_gpu = device.type == "cuda"
        self._held = [torch.zeros(slots, 3, dtype=torch.int32, pin_memory=on_gpu) for _ in range(UNDER_WAY)]
        self._events = [torch.cuda.Event() for _ in self._held] if on_gpu else []
        self._queued: deque[tuple[int, dict[int, object]]] = deque()  # (index in `_held`, tickets by slot)
        self._tickets: dict[int, object] = {}
        self._number = 0
        self._run: Callable[[], None] = lambda: None

    def use(self, run: Callable[[], None]) -> None:
        """Set the function that queues a step: the replay of a graph of `launches`, or the launches themselves."""
        self._run = run

    def prepare(self, filters: SamplingConfig | None) -> None:
        """Allocate the buffers that these filters need."""
        shape, device = (len(self.out), self._step.config.vocab_size), self.out.device
        if filters is not None and self._probabilities.shape != shape:
            self._probabilities = torch.zeros(shape, device=device)
        if filters is not None and filters.repetition_penalty != 1.0 and self._seen.shape != shape:
            self._seen = torch.zeros(shape, dtype=torch.uint8, device=device)

    def launches(self, filters: SamplingConfig | None) -> list[Launch]:
        """The launches of a step of all slots, from the embedding to the draw."""
        step, slots, vocab = self._step, len(self.out), self._step.config.vocab_size
        some = self.temperatures
        mask = some if self._mask is None else self._mask
        extra = {"launch_pdl": True} if step.dependent else {}
        shared: dict[str, Any] = {
            "MASKED": self._mask is not None,
            "PROBABILITIES": filters is not None,
            "DEPENDENT": step.dependent,
            **extra,
        }
        filtered = [] if filters is None else [Launch("filter", self._filter, (), (filters,))]
        logits = step.logits if filters is None else self._probabilities
        remember = filters is not None and filters.repetition_penalty != 1.0
        race = (
            logits, mask, self.temperatures, self.seeds, self.counts, self.eots, self.least, self._parts, self._winners,
            vocab,
        )  # fmt: skip
        settle = (
            logits, mask, self.temperatures, self._parts, self._winners, step.ids, step.places, self.counts, self._seen,
            self.out, step.ids.stride(0), vocab, step.padding, self._parts_of_row,
        )  # fmt: skip
        width = 1 << (self._parts_of_row - 1).bit_length()
        return [
            *step.launches(1),
            *filtered,
            Launch("race", race_kernel, (slots, self._parts_of_row), race, {**shared, "BLOCK": BLOCK}),
            Launch("settle", settle_kernel, (slots,), settle, {**shared, "REMEMBER": remember, "WIDTH": width}),
        ]

    def _filter(self, filters: SamplingConfig) -> None:
        """Write `sampling.distribution` of the logits to `_probabilities`.

        Before that, as in `Sequence`, the end of text is excluded up to min_new_tokens and repeats are penalised.
        """
        logits = self._step.logits[: len(self.out)]
        if self._mask is not None:
            logits = logits + self._mask
        eots = self.eots.clamp(min=0)[:, None]
        early = ((self.counts < self.least) & (self.eots >= 0))[:, None]
        at_eot = logits.gather(1, eots)
        logits = logits.scatter(1, eots, torch.where(early, -torch.inf, at_eot))
        if filters.repetition_penalty != 1.0:
            penalty = filters.repetition_penalty
            changed = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._seen.bool(), changed, logits)
        self._probabilities.copy_(distribution(logits, replace(filters, repetition_penalty=1.0)))

    def join(self, slot: int, sequence: Sequence, position: int) -> None:
        """Activate ``slot``: its last drawn token is read next, at ``position``."""
        step, request = self._step, sequence.request
        step.ids[slot, 0] = sequence.unread[0]
        self.temperatures[slot] = request.sampling.temperature
        numbers = (_signed(request.seed), sequence.count, -1 if request.eot_id is None else request.eot_id)
        for tensor, number in zip((self.seeds, self.counts, self.eots), numbers, strict=True):
            tensor[slot] = number
        self.least[slot] = request.min_new_tokens
        if request.sampling.repetition_penalty != 1.0:
            self._seen[slot] = 0
            self._seen[slot, torch.tensor(sequence.seen, device=self._seen.device)] = 1
        step.places[slot] = position
        self._tickets[slot] = object()

    def leave(self, slot: int) -> None:
        """Deactivate ``slot``; its results of queued steps are discarded."""
        self._tickets.pop(slot, None)
        self._step.places[slot] = self._step.padding

    def queue(self) -> None:
        """Queue a step of all active slots, and the copy of its results to the host."""
        self._run()
        number = self._number = (self._number + 1) % UNDER_WAY
        self._held[number].copy_(self.out, non_blocking=True)
        if self._events:
            self._events[number].record()
        self._queued.append((number, dict(self._tickets)))

    @property
    def under_way(self) -> int:
        """Queued steps whose results have not been fetched."""
        return len(self._queued)

    def results(self) -> dict[int, Drawn]:
        """Wait for the oldest queued step: its results for the slots that have been active since it was queued."""
        number, tickets = self._queued.popleft()
        if self._events:
            self._events[number].synchronize()
        values = self._held[number]
        shares = values[:, 1].view(torch.float32).tolist()
        rows = values.tolist()
        return {
            slot: Drawn(rows[slot][0], shares[slot], not rows[slot][2])
            for slot, ticket in tickets.items()
            if self._tickets.get(slot) is ticket
        }

    def restart(self) -> None:
        """Deactivate all slots and discard all queued steps."""
        self._tickets.clear()
        self._queued.clear()
        self._step.places.fill_(self._step.padding)


def plainly(launches: abc.Sequence[Launch]) -> Callable[[], None]:
    """A function that queues the launches one by one, without a graph."""
    return lambda: run_all(launches)


def _signed(number: int) -> int:
    """The number modulo 2^64 as a signed 64-bit integer."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number
