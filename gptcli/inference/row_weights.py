"""Weights as the kernels read them: a row of K inputs for each of N outputs.

    float  (N, K) in the model's dtype
    int8   (N, K) int8, scale (N) in the model's dtype
    int4   (N, 16 G) uint8 for G groups of 32 inputs: byte j of a group holds input j in the low and j + 16 in the high
           four bits, each plus 8; scale (N, G) bfloat16
The model keeps a view of the repacked rows, so nothing is held twice; int4 alone has another order of its nibbles, and
what the plain step reads stays beside it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gptcli.model.gpt import GPTModel, Linear
from gptcli.model.quantized import PackedEmbedding, PackedLinear

Kind = Literal["float", "int8", "int4"]


@dataclass(frozen=True)
class Matrix:
    """A projection for the kernels.

    Attributes:
        kind: see the module.
        rows, scale, bias: see the module; bias (N). What is absent is None.
        outputs, inputs: N and K.
    """

    kind: Kind
    rows: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    inputs: int

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads of it."""
        return sum(part.nbytes for part in (self.rows, self.scale, self.bias) if part is not None)


def matrix(layer: nn.Module) -> Matrix:
    """A `Linear` or `PackedLinear` for the kernels; its own weights become a view of what they read."""
    if isinstance(layer, PackedLinear):
        if layer.four_bits:
            rows, scale = _int4_rows(layer.values), layer.scale.t().contiguous()
            return Matrix("int4", rows, scale, layer.bias, len(rows), layer.inputs)
        rows = layer.values.t().contiguous()
        layer.values = rows.t()
        return Matrix("int8", rows, layer.scale, layer.bias, *rows.shape)
    assert isinstance(layer, Linear)
    rows = layer.weight.data.t().contiguous()
    layer.weight.data = rows.t()
    return Matrix("float", rows, None, layer.bias, *rows.shape)


def embeddings(model: GPTModel) -> tuple[Matrix, Matrix]:
    """The token embedding (V, C) and the output head, which are one if they are tied."""
    inner: nn.Module = model.wte
    if isinstance(inner, PackedEmbedding):
        tokens = matrix(inner.linear)
    else:
        tokens = Matrix("float", model.wte.weight, None, None, *model.wte.weight.shape)
    if model.config.tie_weights:
        return tokens, tokens
    own: nn.Module = model.lm_head
    if isinstance(own, PackedLinear):
        return tokens, matrix(own)
    return tokens, Matrix("float", model.head, None, None, *model.head.shape)


def _int4_rows(values: Tensor) -> Tensor:
    """(N, 16 G): the bytes of quantization.py, (16 G, N) with inputs 2 j and 2 j + 1, in the module's order."""
    inputs = torch.stack((values & 15, values >> 4), dim=1).flatten(0, 1)  # (32 G, N)
    low, high = inputs.view(-1, 2, 16, values.size(1)).unbind(1)  # (G, 16, N)
    return (low | high << 4).permute(2, 0, 1).flatten(1).contiguous()
