"""Weights as the kernels read them: a row of K inputs for each of N outputs.

    float  (N, K) in the model's dtype
    int8   (N, K') int8 with K' the next multiple of 16, scale (N) in the model's dtype
    int4   (N, 16 G) uint8 for G groups of 32 inputs: byte j holds input 2 j in the low and 2 j + 1 in the high four
           bits, each plus 8; scale (N, G) bfloat16
The model's parameters become views of these rows, so memory holds each weight once.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.gpt import GPTModel, Linear
from gptcli.model.quantized import PackedEmbedding, PackedLinear

Kind = Literal["float", "int8", "int4"]


@dataclass(frozen=True)
class Matrix:
    """A projection for the kernels.

    Attributes:
        kind: see the module.
        rows, scale: see the module; scale is None for kind "float".
        bias: (N), or None.
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
        """Bytes of rows, scales and bias, all of which a product reads."""
        return sum(part.nbytes for part in (self.rows, self.scale, self.bias) if part is not None)


def matrix(layer: nn.Module) -> Matrix:
    """The rows of a `Linear` or `PackedLinear`; the layer's own weights become a view of them."""
    if isinstance(layer, PackedLinear):
        if layer.four_bits:
            rows, scale = layer.values.t().contiguous(), layer.scale.t().contiguous()
            layer.values, layer.scale = rows.t(), scale.t()
            return Matrix("int4", rows, scale, layer.bias, len(rows), layer.inputs)
        inputs, outputs = layer.values.shape
        rows = F.pad(layer.values.t(), (0, -inputs % 16)).contiguous()
        layer.values = rows[:, :inputs].t()
        return Matrix("int8", rows, layer.scale, layer.bias, outputs, inputs)
    assert isinstance(layer, Linear)
    rows = layer.weight.data.t().contiguous()
    layer.weight.data = rows.t()
    return Matrix("float", rows, None, layer.bias, *rows.shape)


def embeddings(model: GPTModel) -> tuple[Matrix, Matrix]:
    """The token embedding (V, C) and the output head (V, C); the same object if tied."""
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
