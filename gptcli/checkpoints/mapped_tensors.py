"""The tensors of a safetensors file, each mapped into memory while it is used."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptcli.checkpoints.safetensors_file import DTYPES, TensorInfo, read_header


class MappedTensors(Mapping[str, Tensor]):
    """Tensors by name; each is a mapping of its own, whose memory is released with the tensor.

    Only the pages that are read take memory: a process that takes its rows of a tensor reads those alone.

    Args:
        path: the file.
        places: the entries of its header by other names; None for all of them by the file's.

    Raises:
        GptcliError: the file cannot be read or is not a valid safetensors file.
    """

    def __init__(self, path: Path, places: Mapping[str, TensorInfo] | None = None) -> None:
        self.path, self._places = path, read_header(path).tensors if places is None else places

    def __getitem__(self, name: str) -> Tensor:
        info = self._places[name]
        dtype = getattr(torch, DTYPES[info.dtype][0])
        if not math.prod(info.shape):
            return torch.empty(info.shape, dtype=dtype)
        data = np.memmap(self.path, np.uint8, mode="c", offset=info.begin, shape=(info.end - info.begin,))
        return torch.from_numpy(data).view(dtype).view(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
