"""The cache of the torch engine in a step: rows of any lengths under fixed shapes and addresses."""

import torch
from torch import Tensor
from torch.nn import functional as F


class RaggedCache:
    """Keys and values of B sequences of different lengths, for steps with fixed shapes and addresses.

    A step reads the positions from a tensor when it runs, and every row attends to the first ``span`` positions under a
    mask. So a step can be captured once and replayed for rows of any lengths.

    Args:
        store: (L, 2, B, H, S, D), finite everywhere.
        places: (B) int64, the index in S of each row's first token of the step.
        span: number of positions of S that are attended to; larger than every position of a text.
        context_length: number of the model's positions.
    """

    def __init__(self, store: Tensor, places: Tensor, span: int, context_length: int) -> None:
        self.store, self.places, self.span = store, places, span
        self._last = context_length - 1

    def _rows(self, count: int) -> Tensor:
        """(B, T) int64: the indices in S of ``count`` tokens of each row."""
        return self.places[:, None] + torch.arange(count, device=self.places.device)

    def positions(self, count: int) -> Tensor:
        """Positions of the next tokens, (B, T) int64, clamped to the context for padding rows."""
        return self._rows(count).clamp(max=self._last)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values (B, H, T, D) of one layer; return the attention output of queries, (B, H, T, D)."""
        rows = self._rows(keys.size(2))
        where = rows[:, None, :, None].expand_as(keys)
        for part, new in enumerate((keys, values)):
            self.store[layer, part].scatter_(2, where, new)
        seen = torch.arange(self.span, device=rows.device) <= rows[:, None, :, None]  # (B, 1, T, S)
        held = self.store[layer, :, :, :, : self.span]
        return F.scaled_dot_product_attention(queries, held[0], held[1], attn_mask=seen)

    def advance(self, count: int) -> None:
        """Nothing: the caller advances ``places``."""
