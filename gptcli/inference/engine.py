"""What the loop of decode.py needs of an engine: a model and its cache, on whatever device."""

from collections import abc
from dataclasses import dataclass, replace
from typing import Protocol

from gptcli.config.model import GPTConfig
from gptcli.inference.arrays import Array
from gptcli.inference.sampling import Drawable, contrast_layers, keep_drawable
from gptcli.inference.sequence import Request, Sequence


class Engine(Protocol):
    """A model and a cache with slots, each for one sequence. Rollback is a forward pass from an earlier position.

    Attributes:
        config: the model's shape.
        slots: sequences that the cache holds.
        at_once: the most tokens of one sequence that a forward pass reads at little more than the cost of one;
            speculation verifies at most so many.
        prompt_tokens: the most tokens of several prompts that are read in one forward pass; 0: each prompt alone.
        verifies: whether a token has the same logits, to the rounding of float32, read alone or among others.
    """

    config: GPTConfig
    slots: int
    at_once: int
    prompt_tokens: int
    verifies: bool

    def forward(
        self,
        slots: abc.Sequence[int],
        ids: abc.Sequence[abc.Sequence[int]],
        positions: abc.Sequence[int],
        *,
        every: bool = False,
        exit_at: int = 0,
    ) -> Array:
        """Read tokens of some slots.

        Args:
            slots: B different slots.
            ids: the tokens of each, at least one.
            positions: of the first of them; the cache holds all earlier positions of the slot.
            every: whether to return the logits of all tokens and not only of each slot's last.
            exit_at: the early-exit layer (from 1); 0 for none.

        Returns:
            logits (B, V), or (sum of the tokens, V) with ``every``, in the order of the slots. With ``exit_at``, as
            many rows follow: the head's logits of that layer's normed output. Valid until the next call.
        """

    def fork(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of slot ``source`` to slot ``target``."""

    def with_slots(self, slots: int) -> "Engine":
        """The same weights with a cache of their own, for ``slots`` sequences."""

    def quantized_copy(self, bits: int) -> "Engine":
        """A copy of the model with its matrices packed in ``bits`` bits (8 or 4), on the same cache."""

    def device_sampler(
        self, requests: abc.Sequence[Request], drawable: Drawable | None = None
    ) -> "DeviceSampler | None":
        """The sampler on the model's device for these requests, or None if the caller must draw from logits."""


class Drawn(Protocol):
    """The result of a step for one sequence: token id, its probability (share), and whether all logits were finite."""

    @property
    def id(self) -> int: ...

    @property
    def share(self) -> float: ...

    @property
    def finite(self) -> bool: ...


class DeviceSampler(Protocol):
    """Steps on the device, each reading the tokens that the previous one drew, queued before the host has their ids.

    Attributes:
        under_way: queued steps whose results have not been fetched.
    """

    @property
    def under_way(self) -> int: ...

    def join(self, slot: int, sequence: Sequence, position: int) -> None:
        """Activate a slot; its next id is read at ``position``. Before another kind of read, the slot must `leave`."""

    def leave(self, slot: int) -> None:
        """Deactivate a slot; its results of queued steps are discarded."""

    def queue(self) -> None:
        """Queue a step of all active slots."""

    def results(self) -> abc.Mapping[int, Drawn]:
        """Wait for the oldest queued step: its results for the slots that have been active since it was queued."""


@dataclass(frozen=True)
class Scorer:
    """An engine, and what is made of its logits before a token is drawn.

    Attributes:
        engine: model and cache.
        drawable: the logits of all other ids are set to -inf; None changes no logits.
        contrast: the early-exit layer (from 1) that `sampling.contrast_layers` subtracts; None for plain logits.
    """

    engine: Engine
    drawable: Drawable | None = None
    contrast: int | None = None

    def forward(
        self,
        slots: abc.Sequence[int],
        ids: abc.Sequence[abc.Sequence[int]],
        positions: abc.Sequence[int],
        *,
        every: bool = False,
    ) -> Array:
        """`Engine.forward`, -inf for ids that may not be drawn, contrasted if there is a layer for it."""
        logits = self.engine.forward(slots, ids, positions, every=every, exit_at=self.contrast or 0)
        if self.contrast is None:
            return keep_drawable(logits, self.drawable)
        final, early = logits[: len(logits) // 2], logits[len(logits) // 2 :]
        return contrast_layers(keep_drawable(final, self.drawable), early)

    def quantized_copy(self, bits: int) -> "Scorer":
        """The same of a copy of the model packed in ``bits`` bits, on the same cache, for drafts."""
        return replace(self, engine=self.engine.quantized_copy(bits))
