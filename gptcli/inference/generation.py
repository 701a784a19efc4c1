"""Generation with the torch model, on any device."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gptcli.inference.decode import SlotDecoder, decode
from gptcli.inference.sampling import Drawable, keep_drawable
from gptcli.inference.sequence import Request, Token
from gptcli.inference.speculative import Drafter, Tally
from gptcli.inference.speculative import decode as decode_drafted
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model.gpt import GPTModel


class UncachedDecoder:
    """A `GPTModel` as a `decode.Decoder` without a cache: every call reads all tokens again. The reference for caches.

    Args:
        model: in eval mode.
        drawable: as for `decode.SlotDecoder`.
    """

    def __init__(self, model: GPTModel, drawable: Drawable | None = None) -> None:
        self.config = model.config
        self.drawable = drawable
        self.length = 0
        self._model = model
        self._ids: list[int] = []

    @torch.no_grad()
    def read(self, ids: Sequence[int], *, every: bool = False) -> Tensor:
        self._ids = [*self._ids[: self.length], *ids]
        self.length = len(self._ids)
        hidden = self._model.hidden(torch.tensor([self._ids], device=self._model.device))
        logits = self._model.logits(hidden[0, -(len(ids) if every else 1) :])
        keep_drawable(logits, self.drawable)
        return logits

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)


def generate(
    model: GPTModel,
    prompt: Sequence[int],
    *,
    use_cache: bool = True,
    drafter: Drafter | None = None,
    drawable: Drawable | None = None,
    **options: Any,
) -> Iterator[Token]:
    """`decode.decode` with the torch model.

    Args:
        model: in eval mode.
        prompt: at least one token id.
        use_cache: False reads all tokens again for every token.
        drafter: proposes tokens, so that there are fewer forward passes than tokens; only with a cache.
        drawable: the ids that may be drawn; None for all.
        options: the other fields of the `Request`.
    """
    request = Request(prompt, **options)
    if not use_cache:
        return decode(UncachedDecoder(model, drawable), request)
    capacity = min(len(prompt) + request.max_new_tokens, model.config.context_length)
    decoder = SlotDecoder(TorchEngine(model, capacity, capture=False), drawable=drawable)
    return decode(decoder, request) if drafter is None else decode_drafted(decoder, drafter, request, Tally())
