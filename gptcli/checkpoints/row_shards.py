"""Tensors whose rows lie in several files, one of each process that trains; they are read as one, one at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gptcli.checkpoints.safetensors_file import DTYPES, Streamed, TensorInfo, read_header


def merged(files: Sequence[Path]) -> Streamed:
    """The tensors of safetensors files: those of one name are one tensor, whose rows follow in the files' order.

    The caller has written the files: they agree on dtypes and on all dimensions but the first.

    Each value is in the memory of the one before.

    Raises:
        GptcliError: a file cannot be read.
    """
    places: dict[str, list[tuple[Path, TensorInfo]]] = {}
    for file in files:
        for name, info in read_header(file).tensors.items():
            places.setdefault(name, []).append((file, info))
    shapes = {name: _joined([info for _, info in pieces]) for name, pieces in places.items()}

    def values() -> Iterator[tuple[str, Tensor]]:
        memory = torch.empty(max((shape.nbytes for shape in shapes.values()), default=0), dtype=torch.uint8)
        for name, pieces in places.items():
            yield name, _read(memory[: shapes[name].nbytes], pieces).view(shapes[name].dtype).view(shapes[name].shape)

    return Streamed(shapes, values())


def _joined(pieces: Sequence[TensorInfo]) -> Tensor:
    """The tensor on the meta device that has the rows of all pieces."""
    dtype, shape = getattr(torch, DTYPES[pieces[0].dtype][0]), pieces[0].shape
    if shape:
        shape = (sum(piece.shape[0] for piece in pieces), *shape[1:])
    return torch.empty(shape, dtype=dtype, device="meta")


def _read(memory: Tensor, pieces: Sequence[tuple[Path, TensorInfo]]) -> Tensor:
    """``memory``, bytes, with the data of the pieces. They are read, not mapped: mapped pages count as memory."""
    data, position = memory.numpy().data, 0
    for path, info in pieces:
        with path.open("rb") as file:
            file.seek(info.begin)
            position += file.readinto(data[position : position + info.end - info.begin])
    return memory
