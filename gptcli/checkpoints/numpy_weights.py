"""A checkpoint's weights as numpy arrays, mapped one tensor at a time, without importing torch."""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.checkpoints.safetensors_file import TensorInfo, read_header
from gptcli.checkpoints.verify import file_shapes, nonzero_bias, not_finite, plain_names, verify
from gptcli.config.model import GPTConfig
from gptcli.model.parameters import parameter_shapes
from gptcli.model.quantization import Packed, from_bfloat16, is_packed_name, is_transposed, scale_name

_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "U8": np.uint8}


class WeightFile(Mapping[str, NDArray[Any] | Packed]):
    """The parameters in a safetensors file; each is mapped on access and unmapped when the array is deleted.

    Args:
        path: the file.
        config: the model's shape, from config.json.
        bits: bits per weight of the matrices, from config.json: 32, 8 or 4.

    Raises:
        GptcliError: a tensor is missing, unknown or of another shape or dtype; on access: its values are not finite.
    """

    def __init__(self, path: Path, config: GPTConfig, bits: int = 32) -> None:
        self.path = path
        self.bits = bits
        self._shapes = parameter_shapes(config)
        self._found = plain_names(read_header(path).tensors, str(path))
        shapes, dtypes = file_shapes(config, self._found, str(path), bits)
        verify(shapes, self._found, str(path), dtypes)
        if not config.qkv_bias:
            for name in self._found:
                if name.endswith("attn.c_attn.bias") and self._read(name).any():
                    raise nonzero_bias(str(path), name)

    def __getitem__(self, name: str) -> NDArray[Any] | Packed:
        if name not in self._shapes:
            raise KeyError(name)
        if self.bits < 32 and is_packed_name(name):
            shape = self._shapes[name]
            inputs = shape[1] if is_transposed(name) else shape[0]
            return Packed(self._read(name), self._read(scale_name(name)), inputs)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _read(self, name: str) -> NDArray[Any]:
        return read_array(self.path, name, self._found[name])


def read_array(path: Path, name: str, info: TensorInfo) -> NDArray[Any]:
    """One tensor in a mapping of its own, so that deleting the array releases its memory.

    Floats become float32, but for the scales of a packed matrix. Raises GptcliError if they are not finite.
    """
    start = info.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), info.end - start, access=mmap.ACCESS_READ, offset=start)
    raw = np.frombuffer(mapped, dtype=np.uint8, offset=info.begin - start)
    array: NDArray[Any] = raw.view(_DTYPES[info.dtype]).reshape(info.shape)
    if info.dtype == "F16":
        array = array.astype(np.float32)
    if info.dtype == "BF16" and not name.endswith("scale"):
        array = from_bfloat16(array)
    floats = from_bfloat16(array) if array.dtype == np.uint16 else array
    if floats.dtype == np.float32 and not _all_finite(floats):
        raise not_finite(str(path), name)
    return array


def _all_finite(array: NDArray[np.float32]) -> bool:
    """No NaN, no infinity. A finite sum proves it in one pass; if the sum is not finite, each element is tested."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())
