"""New checkpoints made from others: with packed matrices, or with an adapter merged into them."""

import shutil
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gptcli.checkpoints import checkpoint, overwrite
from gptcli.checkpoints.adapter_file import read
from gptcli.checkpoints.adapters import find_base, open_weights
from gptcli.checkpoints.layout import TEXTS, check_parts, packed_bits, read_config, tokenizer_of
from gptcli.errors import GptcliError
from gptcli.model.quantization import Bits, Packed, is_packed_name, packed, scale_name, unpacked


def create_packed(path: Path, source: Path, bits: Bits, force: bool = False) -> None:
    """Write a new checkpoint: the float32 checkpoint ``source`` with its matrices packed (see quantization.py).

    Raises:
        GptcliError: ``source`` is packed already, ``path`` may not be replaced, or it cannot be written.
    """
    config, ours = read_config(source)
    stored = packed_bits(source, ours)
    if stored < 32:
        raise GptcliError(f"{source} is packed in {stored} bits already.", "Give the float32 checkpoint it came from.")
    tokenizer = tokenizer_of(source, ours)
    check_parts(source, config, tokenizer)
    weights = open_weights(source)
    tensors: dict[str, Tensor] = {}
    for name in weights:
        weight = weights[name]
        if is_packed_name(name) and not isinstance(weight, Packed):
            values, scale, _ = packed(name, weight, bits, torch.get_num_threads())
            tensors[name], scales = torch.from_numpy(values), torch.from_numpy(scale)
            tensors[scale_name(name)] = scales if bits == 8 else scales.view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(unpacked(name, weight))
    checkpoint.create_from(
        path, config, tensors, tokenizer, ours.get("training", {}),
        dtype=None, force=force, bits=bits, populate=partial(add_record, source), inputs=[source],
    )  # fmt: skip


def create_merged(path: Path, source: Path, base: Path | None = None, force: bool = False) -> Path:
    """Write a new checkpoint in float32: a base with the changes of an adapter.

    Args:
        path: the new directory.
        source: the adapter.
        base: the checkpoint that it changes; None for the one that it names.
        force: whether a checkpoint at ``path`` may be replaced.

    Returns:
        the base.

    Raises:
        GptcliError: ``source`` is no adapter, its base is missing or another one, ``path`` may not be replaced, or it
            cannot be written.
    """
    read(source)
    found = find_base(source) if base is None else base
    overwrite.check_output(path, force=force, inputs=[source, found])
    loaded = checkpoint.load(found, source)
    tensors = checkpoint.in_file_form(loaded.config, loaded.tensors)
    checkpoint.create_from(
        path, loaded.config, tensors, loaded.tokenizer, loaded.training,
        force=force, populate=partial(add_record, source), inputs=[source, found],
    )  # fmt: skip
    return found


def add_record(source: Path, folder: Path) -> None:
    """Copy what ``source`` says of the texts that it was trained on, if anything, to the new checkpoint."""
    if (source / TEXTS).is_file():
        shutil.copyfile(source / TEXTS, folder / TEXTS)
