"""The state dict of the course "Build a Large Language Model (From Scratch)" by Sebastian Raschka: its model.pth."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.checkpoints.checkpoint import check_tensors
from gptcli.checkpoints.formats import names
from gptcli.checkpoints.formats.source import Source, find_tokenizer, only_tensors
from gptcli.checkpoints.verify import plain_names
from gptcli.errors import GptcliError

# The course's name -> ours, in a block and outside of it; its Linear layers store (out, in).
_IN_BLOCK = {
    "norm1.scale": "ln_1.weight",
    "norm1.shift": "ln_1.bias",
    "att.out_proj.weight": "attn.c_proj.weight",
    "att.out_proj.bias": "attn.c_proj.bias",
    "norm2.scale": "ln_2.weight",
    "norm2.shift": "ln_2.bias",
    "ff.layers.0.weight": "mlp.c_fc.weight",
    "ff.layers.0.bias": "mlp.c_fc.bias",
    "ff.layers.2.weight": "mlp.c_proj.weight",
    "ff.layers.2.bias": "mlp.c_proj.bias",
}
_OUTSIDE = {
    "tok_emb.weight": "wte.weight",
    "pos_emb.weight": "wpe.weight",
    "final_norm.scale": "ln_f.weight",
    "final_norm.shift": "ln_f.bias",
    "out_head.weight": names.HEAD,
}
_BLOCK = re.compile(r"trf_blocks\.(\d{1,6})\.(.+)")
_QKV = re.compile(r"att\.W_(query|key|value)\.(weight|bias)")
_STATE = "model_state_dict"  # in a file that holds the optimizer's state too


def is_state(values: Mapping[Any, Any]) -> bool:
    """Whether a pickled dict is the course's state dict, or holds it."""
    held = values.get(_STATE, values)
    return isinstance(held, Mapping) and any(isinstance(name, str) and name.endswith("tok_emb.weight") for name in held)


def read(file: Path, values: dict[Any, Any]) -> Source:
    """The model of the state dict ``values``; the number of heads is inferred: they are 64 wide, as in the course.

    Raises:
        GptcliError: something is missing, damaged, contradictory or hostile.
    """
    where = str(file)
    theirs = plain_names(only_tensors(values.get(_STATE, values), where), where)
    tensors = names.transpose_projections(_renamed(theirs, where))
    config = names.infer_config(tensors, where)
    has_bias = any(name.endswith("attn.c_attn.bias") for name in tensors)
    config = config.with_changes(qkv_bias=has_bias)
    tensors = names.settle_head(tensors, config.tie_weights, where)
    check_tensors(tensors, config, where)
    notes = [f"The course's state dict: {config.n_layers} layers and {config.n_heads} heads of 64 are inferred."]
    return Source("the course's model", config, tensors, find_tokenizer(file.parent, config.vocab_size, notes), notes)


def _renamed(theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors by our names, in the course's layouts; queries, keys and values joined."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in theirs.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            found[_OUTSIDE.get(name, name)] = tensor
            continue
        layer, inner = str(int(block[1])), block[2]
        qkv = _QKV.fullmatch(inner)
        if qkv is not None:
            parts.setdefault(f"h.{layer}.attn.c_attn.{qkv[2]}", {})[qkv[1]] = tensor
        elif inner != "att.mask":
            found[f"h.{layer}.{_IN_BLOCK[inner]}" if inner in _IN_BLOCK else name] = tensor
    for name, three in parts.items():
        if len(three) < 3 or len({(part.shape, part.dtype) for part in three.values()}) > 1 or not three["key"].dim():
            raise GptcliError(
                f"{where}: W_query, W_key and W_value of {name.split('.attn')[0]} are not three tensors of one shape.",
                "Save model.state_dict() of the course's GPTModel again.",
            )
        found[name] = torch.cat([three["query"], three["key"], three["value"]])
    return found
