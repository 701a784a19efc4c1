"""A model on packed weights in torch, on any device: memory holds the packed weights and one product's widened weights.

Weights have the layouts of quantization.py. int8 values are multiplied as integers, and the product by the scales (one
an output); int4 values are multiplied by their scales (one a group of inputs) before the product. The widened copy
exists during one product, in the dtype of the activations; at most `SLICE` weights are widened at a time.
"""

import torch
from torch import Tensor, nn

from gptcli.config.model import GPTConfig
from gptcli.model.gpt import GPTModel
from gptcli.model.quantization import GROUP, Packed, Tensors, check_bits, is_packed_name, packed, unpacked

SLICE = 2**22  # widened weights that exist at once, at most


class PackedLinear(nn.Module):
    """y = x W + b with W (in, out) packed.

    Args:
        weight: W; see quantization.py.
        bias: (out) or None.
        dtype: of the activations; also of the bias and of int8's scales (int4's are bfloat16).
        device: of all tensors.
    """

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Packed, bias: Tensor | None, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        self.inputs = weight.inputs
        self.four_bits = weight.values.dtype != "int8"
        scale = torch.tensor(weight.scale)
        if self.four_bits:  # numpy has no bfloat16, so scales are stored as uint16 bits
            scale = scale.view(torch.bfloat16)
        self.register_buffer("values", torch.tensor(weight.values).to(device))
        self.register_buffer("scale", scale.to(device, torch.bfloat16 if self.four_bits else dtype))
        self.register_buffer("bias", None if bias is None else bias.to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        rows = x.reshape(-1, self.inputs)
        width = max(1, SLICE // self.inputs)
        parts = zip(self.values.split(width, dim=1), self.scale.split(width, dim=-1), strict=True)
        products = [self._product(rows, values, scale) for values, scale in parts]
        y = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        return (y if self.bias is None else y + self.bias.to(y.dtype)).view(*x.shape[:-1], -1)

    def _product(self, rows: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        if self.four_bits:
            return rows @ widened(values, scale, rows.dtype)[: self.inputs]
        return (rows @ values.to(rows.dtype)) * scale.to(rows.dtype)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """grad Wᵀ: (rows, in) of the gradient (rows, out) of the products of rows."""
        width = max(1, SLICE // self.inputs)
        found = grad.new_zeros(len(grad), self.inputs)
        for part, values, scale in zip(
            grad.split(width, dim=1), self.values.split(width, dim=1), self.scale.split(width, dim=-1), strict=True
        ):
            if self.four_bits:
                found.addmm_(part, widened(values, scale, grad.dtype)[: self.inputs].T)
            else:
                found.addmm_(part * scale.to(part.dtype), values.to(grad.dtype).T)
        return found

    def columns(self, numbers: Tensor) -> Tensor:
        """The weights (..., in) of outputs ``numbers`` (...), in float32 for int4 and in the scales' dtype for int8."""
        chosen, scale = self.values[:, numbers.flatten()], self.scale[..., numbers.flatten()]
        found = widened(chosen, scale, torch.float32)[: self.inputs] if self.four_bits else chosen * scale
        return found.T.reshape(*numbers.shape, -1)


def widened(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights (in', n) in ``dtype`` of int4 ``values`` (in' / 2, n) and ``scale`` (in' / 32, n)."""
    halves = torch.stack((values & 15, values >> 4), dim=1).to(dtype) - 8  # (in' / 2, 2, n)
    groups = halves.view(scale.size(0), GROUP, -1) * scale[:, None].to(dtype)
    return groups.view(-1, values.size(1))


class PackedEmbedding(nn.Module):
    """A token embedding packed as (C, V), the layout of the head."""

    def __init__(self, linear: PackedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear, self.dtype = linear, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., C)"""
        return self.linear.columns(ids).to(self.dtype)


class PackedModel(GPTModel):
    """A `GPTModel` for inference whose matrices stay packed.

    Args:
        config: its shape.
        weights: by the model's parameter names, packed or float32; matrices are read one at a time.
        bits: 8 or 4: the format that float32 matrices are packed in.
        device, dtype: of the model and its activations.
    """

    def __init__(
        self, config: GPTConfig, weights: Tensors, bits: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        with torch.device("meta"):
            super().__init__(config, init=None)
        plain = {name: weights[name] for name in weights if not is_packed_name(name)}
        tensors = {name: torch.tensor(weight).to(device, dtype) for name, weight in plain.items()}
        for name in filter(is_packed_name, weights):
            place = name.removesuffix(".weight")
            bias = tensors.pop(f"{place}.bias", None)
            linear = PackedLinear(_packed(name, weights, bits), bias, device, dtype)
            self.set_submodule(place, PackedEmbedding(linear, dtype) if place == "wte" else linear)
        self.load_state_dict(tensors, strict=False, assign=True)
        self.eval().requires_grad_(False)

    def logits(self, hidden: Tensor) -> Tensor:
        if self.config.labels:  # so small that it is not packed
            return super().logits(hidden)
        head: PackedLinear = self.wte.linear if self.config.tie_weights else self.lm_head  # type: ignore[assignment]
        logits: Tensor = head(hidden)
        return logits


def packed_base(config: GPTConfig, weights: Tensors, bits: int, device: torch.device | str) -> GPTModel:
    """A model to train adapters on: the matrices of its blocks stay packed, all else is float32, the head as well.

    Args:
        config, weights, bits, device: as `PackedModel` takes them.
    """
    with torch.device("meta"):
        model = GPTModel(config, init=None)
    inside = [name for name in weights if is_packed_name(name) and name.startswith("h.")]
    outside = [name for name in weights if name not in set(inside)]
    tensors = {name: torch.from_numpy(unpacked(name, weights[name])).to(device) for name in outside}
    for name in inside:
        place = name.removesuffix(".weight")
        bias = tensors.pop(f"{place}.bias", None)
        model.set_submodule(place, PackedLinear(_packed(name, weights, bits), bias, device, torch.float32))
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.requires_grad_(False)


def _packed(name: str, weights: Tensors, bits: int) -> Packed:
    weight = weights[name]
    return weight if isinstance(weight, Packed) else packed(name, weight, check_bits(bits), torch.get_num_threads())
