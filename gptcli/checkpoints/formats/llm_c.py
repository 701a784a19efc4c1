"""The .bin file of weights of llm.c (github.com/karpathy/llm.c).

A header of 256 little-endian int32: magic, version (3: float32, 5: bfloat16), context length, vocabulary, layers,
heads, width, padded vocabulary. Then the tensors, each for all layers at once, matrices as (out, in).
"""

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from gptcli.checkpoints.checkpoint import check_tensors
from gptcli.checkpoints.formats import names
from gptcli.checkpoints.formats.source import Source, find_tokenizer
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError

MAGIC = 20240326
_HEADER_BYTES = 1024
_VERSIONS = {3: torch.float32, 5: torch.bfloat16}
_AGAIN = "Copy the file again; llm.c's train_gpt2.py and its checkpoints write versions 3 and 5."


def is_file(path: Path) -> bool:
    """Whether the file begins with llm.c's magic number."""
    try:
        with path.open("rb") as file:
            return file.read(4) == struct.pack("<i", MAGIC)
    except OSError:
        return False


def read(file: Path) -> Source:
    """The model of a file of llm.c's, memory-mapped; the rows that pad the vocabulary are dropped.

    Raises:
        GptcliError: the version is unknown, a size is out of range, or the file's size is not that of its tensors.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = opened.read(32)
    if len(header) < 32:
        raise GptcliError(f"{file} is a file of llm.c's that ends at byte {size}, in its header.", _AGAIN)
    _, version, positions, vocab, layers, heads, width, padded = struct.unpack("<8i", header)
    if version not in _VERSIONS:
        raise GptcliError(
            f"{file} is a file of llm.c's of version {version}; versions 3 (float32) and 5 (bfloat16) are read.", _AGAIN
        )
    try:
        config = GPTConfig(vocab_size=vocab, context_length=positions, emb_dim=width, n_heads=heads, n_layers=layers)
    except GptcliError as error:
        raise GptcliError(f"{file}, llm.c's: {error.message}", error.hint) from error
    dtype, shapes = _VERSIONS[version], _shapes(config, padded)
    needed = _HEADER_BYTES + dtype.itemsize * sum(math.prod(shape) for shape in shapes.values())
    if padded < vocab or size != needed:
        raise GptcliError(
            f"{file} has {size:,} bytes, but llm.c's header makes them {needed:,}: {layers} layers, width {width}, "
            f"vocabulary {vocab} padded to {padded}.",
            _AGAIN,
        )
    every = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)[_HEADER_BYTES:].view(dtype)
    tensors: dict[str, Tensor] = {}
    for (name, shape), part in zip(shapes.items(), every.split([math.prod(s) for s in shapes.values()]), strict=True):
        whole = part.view(shape)
        if name.startswith("h."):
            tensors |= {name.format(layer): whole[layer] for layer in range(layers)}
        else:
            tensors[name] = whole[:vocab] if name == "wte.weight" else whole
    tensors = names.transpose_projections(tensors)
    check_tensors(tensors, config, str(file))
    notes = [f"The {padded - vocab} rows that pad the vocabulary are dropped."] if padded > vocab else []
    return Source("llm.c", config, tensors, find_tokenizer(file.parent, vocab, notes), notes)


def _shapes(config: GPTConfig, padded: int) -> dict[str, tuple[int, ...]]:
    """The tensors in the file's order, by our names with {} for the layer; those of blocks with the layers first."""
    L, C, F = config.n_layers, config.emb_dim, config.hidden_dim
    return {
        "wte.weight": (padded, C),
        "wpe.weight": (config.context_length, C),
        "h.{}.ln_1.weight": (L, C),
        "h.{}.ln_1.bias": (L, C),
        "h.{}.attn.c_attn.weight": (L, 3 * C, C),
        "h.{}.attn.c_attn.bias": (L, 3 * C),
        "h.{}.attn.c_proj.weight": (L, C, C),
        "h.{}.attn.c_proj.bias": (L, C),
        "h.{}.ln_2.weight": (L, C),
        "h.{}.ln_2.bias": (L, C),
        "h.{}.mlp.c_fc.weight": (L, F, C),
        "h.{}.mlp.c_fc.bias": (L, F),
        "h.{}.mlp.c_proj.weight": (L, C, F),
        "h.{}.mlp.c_proj.bias": (L, C),
        "ln_f.weight": (C,),
        "ln_f.bias": (C,),
    }
