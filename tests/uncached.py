"""The reference for caches: a torch model as an engine that reads all tokens of a slot again for every token."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Scorer
from gptcli.inference.sampling import Drawable
from gptcli.inference.sequence import Request, Token
from gptcli.inference.speculative import Drafter
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model.gpt import GPTModel


class UncachedEngine:
    """A `GPTModel` in eval mode as an `engine.Engine` of one slot without a cache."""

    slots, at_once, prompt_tokens, verifies = 1, 8, 0, True

    def __init__(self, model: GPTModel) -> None:
        self.config = model.config
        self._model = model
        self._ids: list[int] = []

    @torch.no_grad()
    def forward(
        self,
        slots: Sequence[int],
        ids: Sequence[Sequence[int]],
        positions: Sequence[int],
        *,
        every: bool = False,
        exit_at: int = 0,
    ) -> Tensor:
        (row,), (start,) = ids, positions
        self._ids = [*self._ids[:start], *row]
        hidden = self._model.hidden(torch.tensor([self._ids], device=self._model.device))
        return self._model.logits(hidden[0, -(len(row) if every else 1) :])

    def fork(self, source: int, target: int, length: int) -> None:
        raise AssertionError("there is one slot")

    def quantized_copy(self, bits: int) -> "UncachedEngine":
        raise AssertionError("there is no packed model")

    def device_sampler(self, requests: Sequence[Request], drawable: Drawable | None = None) -> None:
        """None: the host draws."""


def continuation(
    model: GPTModel,
    prompt: Sequence[int],
    *,
    use_cache: bool = True,
    drafter: Drafter | None = None,
    drawable: Drawable | None = None,
    **options: Any,
) -> Iterator[Token]:
    """The tokens of one request with the torch engine, or without a cache; ``options`` are the `Request`'s."""
    request = Request(prompt, **options)
    engine = TorchEngine(model) if use_cache else UncachedEngine(model)
    return generate(Scheduler(Scorer(engine, drawable), drafter), request)
