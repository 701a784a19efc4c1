"""Generation with the torch model, on any device."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.decoding import Token, decode
from gptcli.decoding import Window as Window
from gptcli.model import GPTModel, KVCache


class TorchDecoder:
    """A `GPTModel` and its cache as a `decoding.Decoder`.

    Args:
        model: in eval mode.
        capacity: tokens the cache has room for; the model's context by default.
        use_cache: False reads everything again for every token: slow, and what the cache is tested against.
    """

    def __init__(self, model: GPTModel, capacity: int | None = None, use_cache: bool = True) -> None:
        self.config = model.config
        self.length = 0
        self._model = model
        self._cache = KVCache(model.config, 1, capacity, model.device, model.wte.weight.dtype) if use_cache else None
        self._ids: list[int] = []

    @torch.no_grad()
    def read(self, ids: Sequence[int], *, every: bool = False) -> Tensor:
        self._ids = [*self._ids[: self.length], *ids]
        self.length = len(self._ids)
        unread = torch.tensor([self._ids if self._cache is None else ids], device=self._model.device)
        if not every:
            return self._model.next_logits(unread, self._cache)
        return F.linear(self._model.hidden(unread, self._cache)[0, -len(ids) :], self._model.head)

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)
        if self._cache is not None:
            self._cache.crop(length)


def generate(
    model: GPTModel, prompt: Sequence[int], *, max_new_tokens: int, use_cache: bool = True, **options: Any
) -> Iterator[Token]:
    """`decoding.decode` with the torch model; ``use_cache`` as in `TorchDecoder`."""
    capacity = min(len(prompt) + max_new_tokens, model.config.context_length)
    return decode(TorchDecoder(model, capacity, use_cache), prompt, max_new_tokens=max_new_tokens, **options)
