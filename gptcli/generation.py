"""Generation with the torch model, on any device."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.decoding import Request, Token, decode
from gptcli.decoding import Window as Window
from gptcli.model import GPTModel, KVCache
from gptcli.sampling import contrast_layers


class TorchDecoder:
    """A `GPTModel` and its cache as a `decoding.Decoder`.

    Args:
        model: in eval mode.
        capacity: tokens the cache has room for; the model's context by default.
        use_cache: False reads everything again for every token: slow, and what the cache is tested against.
        contrast: hold the last layer against this one (from 1; see `sampling.contrast_layers`); None does not.
    """

    def __init__(
        self, model: GPTModel, capacity: int | None = None, use_cache: bool = True, contrast: int | None = None
    ) -> None:
        self.config = model.config
        self.length = 0
        self._model = model
        self._cache = KVCache(model.config, 1, capacity, model.device, model.wte.weight.dtype) if use_cache else None
        self._contrast = contrast
        self._ids: list[int] = []

    @torch.no_grad()
    def read(self, ids: Sequence[int], *, every: bool = False) -> Tensor:
        self._ids = [*self._ids[: self.length], *ids]
        self.length = len(self._ids)
        unread = torch.tensor([self._ids if self._cache is None else ids], device=self._model.device)
        early: list[Tensor] = []
        hook = None
        if self._contrast is not None:
            hook = self._model.h[self._contrast - 1].register_forward_hook(lambda _, __, output: early.append(output))
        hidden = self._model.hidden(unread, self._cache)[0, -(len(ids) if every else 1) :]  # (T or 1, C)
        logits = F.linear(hidden, self._model.head)
        if hook is None:
            return logits
        hook.remove()
        below = self._model.ln_f(early[0][0, -len(hidden) :])
        contrasted: Tensor = contrast_layers(logits, F.linear(below, self._model.head))
        return contrasted

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)
        if self._cache is not None:
            self._cache.crop(length)


def generate(model: GPTModel, prompt: Sequence[int], *, use_cache: bool = True, **options: Any) -> Iterator[Token]:
    """`decoding.decode` with the torch model: ``options`` are a `Request`'s, ``use_cache`` is `TorchDecoder`'s."""
    request = Request(prompt, **options)
    capacity = min(len(prompt) + request.max_new_tokens, model.config.context_length)
    return decode(TorchDecoder(model, capacity, use_cache), request)
