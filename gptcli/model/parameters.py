"""Names and shapes of all parameters of a model, grouped by component, from a GPTConfig without torch.

Letters: C emb_dim, F hidden_dim, L n_layers.
"""

from dataclasses import dataclass
from math import prod

from gptcli.config.lora import LoRAConfig
from gptcli.config.model import GPTConfig


@dataclass(frozen=True)
class Component:
    """One component of the model, such as all feed-forward up projections.

    ``tensors`` maps a parameter's name to its shape; in the names of a block's parameters, ``{layer}`` stands for the
    number of the block. ``layers`` is the number of copies: n_layers, or 1 outside the blocks.
    """

    name: str
    tensors: dict[str, tuple[int, ...]]
    layers: int = 1

    @property
    def parameters_per_layer(self) -> int:
        """Parameters of one copy."""
        return sum(prod(shape) for shape in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Parameters of all copies."""
        return self.parameters_per_layer * self.layers


def components(config: GPTConfig) -> list[Component]:
    """Every component that has parameters; a tied head is not listed, since it is the token embedding."""
    C, F, L = config.emb_dim, config.hidden_dim, config.n_layers
    block = "h.{layer}."
    qkv: dict[str, tuple[int, ...]] = {f"{block}attn.c_attn.weight": (C, 3 * C)}
    if config.qkv_bias:
        qkv[f"{block}attn.c_attn.bias"] = (3 * C,)
    norms = {f"{block}{norm}.{part}": (C,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    parts = [
        Component("token embedding", {"wte.weight": (config.vocab_size, C)}),
        Component("position embedding", {"wpe.weight": (config.context_length, C)}),
        Component("layer norms", dict(norms), L),
        Component("attention qkv", qkv, L),
        Component("attention output", {f"{block}attn.c_proj.weight": (C, C), f"{block}attn.c_proj.bias": (C,)}, L),
        Component("feed-forward up", {f"{block}mlp.c_fc.weight": (C, F), f"{block}mlp.c_fc.bias": (F,)}, L),
        Component("feed-forward down", {f"{block}mlp.c_proj.weight": (F, C), f"{block}mlp.c_proj.bias": (C,)}, L),
        Component("final norm", {"ln_f.weight": (C,), "ln_f.bias": (C,)}),
    ]
    if config.labels:
        parts.append(Component("output head", {"score.weight": (len(config.labels), C)}))
    elif not config.tie_weights:
        parts.append(Component("output head", {"lm_head.weight": (config.vocab_size, C)}))
    return parts


def adapter_size(config: GPTConfig, adapter: LoRAConfig) -> int:
    """Numbers in low-rank adapters for a model of this shape."""
    changed = [
        shape
        for name, shape in parameter_shapes(config).items()
        if name.endswith(tuple(f"{target}.weight" for target in adapter.targets))
    ]
    return sum(adapter.rank * sum(shape) for shape in changed)


def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its name in GPTModel's state_dict."""
    return {
        name.format(layer=layer): shape
        for component in components(config)
        for layer in range(component.layers)
        for name, shape in component.tensors.items()
    }
