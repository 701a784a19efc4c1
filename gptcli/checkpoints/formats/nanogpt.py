"""A nanoGPT checkpoint: the ckpt.pt of github.com/karpathy/nanoGPT's train.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.checkpoints.checkpoint import check_tensors
from gptcli.checkpoints.formats import names
from gptcli.checkpoints.formats.source import Source, find_tokenizer, only_tensors, read_pickle
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError
from gptcli.tokenizers.gpt2 import GPT2Tokenizer

_FIELDS = {
    "vocab_size": "vocab_size",
    "block_size": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "dropout": "drop_rate",
}
_PADDED_VOCABULARY = 50_304


def is_checkpoint(values: Mapping[Any, Any]) -> bool:
    """Whether a pickled dict is a nanoGPT checkpoint."""
    return "model_args" in values and "model" in values


def read(file: Path, values: dict[str, Any] | None = None) -> Source:
    """The model of a ckpt.pt; ``values`` is its content if it has been read already.

    nanoGPT uses the exact GELU, stores projections as (out, in), may have no biases (replaced by zeros, which give the
    same result), and pads GPT-2's vocabulary to 50,304 rows, a multiple of 64, for speed; the last 47 are dropped.

    Raises:
        GptcliError: something is missing, damaged, contradictory or hostile.
    """
    where = str(file)
    values = read_pickle(file) if values is None else values
    arguments, state = values.get("model_args"), values.get("model")
    if not isinstance(arguments, dict) or not isinstance(state, dict):
        raise GptcliError(f"{where} has no model_args and model: it is not nanoGPT's.", "Give the ckpt.pt of a run.")
    absent = [name for name in _FIELDS if name not in arguments and name != "dropout"]
    if absent:
        raise GptcliError(f"{where}: model_args lacks {', '.join(absent)}.", "Give the ckpt.pt of a run.")
    for name in _FIELDS:
        if type(arguments.get(name, 0)) not in ((int, float) if name == "dropout" else (int,)):
            raise GptcliError(
                f"{where}: model_args has {name} {arguments[name]!r:.60}, not a number.", "Is it damaged?"
            )
    try:
        config = GPTConfig(
            **{ours: arguments[theirs] for theirs, ours in _FIELDS.items() if theirs in arguments}, activation="gelu"
        )
    except GptcliError as error:
        raise GptcliError(f"{where}: {error.message}", error.hint) from error
    notes = ["nanoGPT computes exact GELU: the config says so."]
    tensors = names.from_hugging_face(only_tensors(state, where), where)
    tensors = names.settle_head(tensors, tied=True, where=where)
    tensors = names.transpose_projections(tensors)
    if config.vocab_size == _PADDED_VOCABULARY and len(tensors.get("wte.weight", ())) == _PADDED_VOCABULARY:
        tensors["wte.weight"] = tensors["wte.weight"][: GPT2Tokenizer.vocab_size]
        config = config.with_changes(vocab_size=GPT2Tokenizer.vocab_size)
        notes.append("The 47 padding rows of the vocabulary, which no token names, are dropped.")
    if not arguments.get("bias", True):
        _add_zero_biases(tensors)
    check_tensors(tensors, config, where)
    return Source("nanoGPT", config, tensors, find_tokenizer(file.parent, config.vocab_size, notes), notes)


def _add_zero_biases(tensors: dict[str, Tensor]) -> None:
    for name, tensor in list(tensors.items()):
        if name.startswith(("h.", "ln_f.")) and name.endswith(".weight") and tensor.dim():
            width = tensor.shape[-1]  # a norm's weight is (emb_dim), a projection's (in, out)
            tensors.setdefault(name.removesuffix("weight") + "bias", torch.zeros(width, dtype=tensor.dtype))
