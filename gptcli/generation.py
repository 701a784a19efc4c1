"""Prefill, then one token at a time. Knows token ids only; yields, prints nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from gptcli.config import Overflow, SamplingConfig
from gptcli.errors import GptcliError
from gptcli.model import GPTModel, KVCache
from gptcli.sampling import distribution, draw


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: what was drawn.
        probability: its share of the distribution it was drawn from.
        candidates: the likeliest (id, probability) pairs, likeliest first; empty unless asked for.
    """

    id: int
    probability: float
    candidates: tuple[tuple[int, float], ...] = ()


class Window:
    """The tokens that the model sees, kept within its context by one of three rules.

    "slide" drops the older half when the context is full, so the cost of a token stays flat; "crop" drops one token a
    step, the course's way: exact, and everything is read again each time; "error" refuses.

    Raises:
        GptcliError: with "error", when a token no longer fits.
    """

    def __init__(self, prompt: Sequence[int], context_length: int, overflow: Overflow) -> None:
        self.context_length = context_length
        self.overflow = overflow
        self.ids = list(prompt)
        if len(prompt) > context_length:
            self._refuse_if_asked(len(prompt))
            self.ids = self.ids[-context_length:]

    def append(self, token_id: int) -> bool:
        """Add a token; True if older ones were dropped, so that every position has moved."""
        self.ids.append(token_id)
        if len(self.ids) <= self.context_length:
            return False
        self._refuse_if_asked(len(self.ids))
        kept = self.context_length if self.overflow == "crop" else self.context_length - self.context_length // 2
        self.ids = self.ids[-kept:]
        return True

    def _refuse_if_asked(self, length: int) -> None:
        if self.overflow == "error":
            raise GptcliError(
                f"The text has grown to {length} tokens, but the model's context holds {self.context_length}.",
                "Shorten the prompt, lower --max-new-tokens, or let --overflow slide (or crop) drop the oldest tokens.",
            )


@torch.inference_mode()
def generate(
    model: GPTModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig,
    seed: int,
    min_new_tokens: int = 0,
    eot_id: int | None = None,
    overflow: Overflow = "slide",
    n_candidates: int = 0,
    use_cache: bool = True,
) -> Iterator[Token]:
    """Continue ``prompt``, token by token.

    Args:
        model: in eval mode.
        prompt: at least one token id.
        max_new_tokens: when to stop at the latest.
        sampling: the distribution to draw from.
        seed: of this sequence alone: the same seed gives the same tokens in any company.
        min_new_tokens: ``eot_id`` cannot be drawn before there are so many.
        eot_id: generation stops before this token; None if nothing stops it.
        overflow: what happens past the context (see `Window`).
        n_candidates: how many of the likeliest tokens to report with each one drawn.
        use_cache: False reads the whole window for every token: slow, and what the cache is tested against.

    Yields:
        each token as soon as it is drawn; never ``eot_id``.

    Raises:
        GptcliError: the prompt is empty, or ``overflow`` is "error" and the context is full.
    """
    if not prompt:
        raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
    random = Random(seed)
    window = Window(prompt, model.config.context_length, overflow)
    capacity = min(len(window.ids) + max_new_tokens, model.config.context_length)
    cache = KVCache(model.config, 1, capacity, model.device, model.wte.weight.dtype) if use_cache else None
    seen = list(prompt)
    unread: Sequence[int] = window.ids
    for count in range(max_new_tokens):
        ids = torch.tensor([unread], device=model.device)
        logits = model.next_logits(ids, cache)  # (1, V)
        if eot_id is not None and count < min_new_tokens:
            logits[:, eot_id] = -torch.inf
        seen_ids = torch.tensor([seen], device=model.device) if sampling.repetition_penalty != 1.0 else None
        probabilities = distribution(logits, sampling, seen_ids)
        uniform = torch.tensor([random.random()], dtype=torch.float64)
        token_id = int(draw(probabilities, uniform))
        if token_id == eot_id:
            return
        yield Token(token_id, float(probabilities[0, token_id]), _likeliest(probabilities[0], n_candidates))
        seen.append(token_id)
        moved = window.append(token_id) if count + 1 < max_new_tokens else False
        if cache is not None and not moved:
            unread = [token_id]
        else:
            unread = window.ids
            if cache is not None:
                cache.crop(0)


def _likeliest(probabilities: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest of (V) probabilities that are possible at all."""
    if count == 0:
        return ()
    values, ids = probabilities.topk(min(count, probabilities.numel()))
    return tuple((int(i), float(p)) for p, i in zip(values, ids, strict=True) if p > 0)
