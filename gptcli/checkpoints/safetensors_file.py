"""safetensors files: a check of every field of the header; reading and writing with the safetensors library.

The format (https://github.com/huggingface/safetensors#format): the header's length as 8 little-endian bytes, a JSON
object {name: {"dtype", "shape", "data_offsets": [begin, end]}} with an optional "__metadata__" of strings, then the
data, every byte of which belongs to exactly one tensor. Offsets are relative to the end of the header.

Reading a header imports neither torch nor safetensors. Every error is a GptcliError with the file, the field and the
values.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gptcli.checkpoints.atomic import atomic_write
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64
METADATA = "__metadata__"
AGAIN = "Download or copy the file again; if it was just written, write it again."

# Name in the file -> (name in torch, bytes per element).
DTYPES: dict[str, tuple[str, int]] = {
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_ITEM_BYTES = dict(DTYPES.values())


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: the file's name of its dtype, its shape, the offsets of its first byte and past its last byte."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of a file. ``begin`` and ``end`` of its tensors are relative to the start of the file."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    size: int


class Streamed(NamedTuple):
    """Tensors that are made one at a time, while a file of them is written.

    Attributes:
        shapes: every tensor by name, on the meta device.
        values: the same names with their values, in any order.
    """

    shapes: "dict[str, torch.Tensor]"
    values: "Iterable[tuple[str, torch.Tensor]]"


def read_header(path: Path) -> Header:
    """The checked header of the safetensors file ``path``; no tensor data is read.

    Raises:
        GptcliError: the file cannot be read or is not a valid safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            fits = len(start) == 8 and length <= min(size - 8, MAX_HEADER_BYTES)
            raw = file.read(length) if fits else b""
    except OSError as error:
        raise GptcliError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the path and that you may read it."
        ) from error
    if len(start) < 8:
        raise GptcliError(f"{path} holds {size} bytes, but a safetensors file begins with a length of 8 bytes.", AGAIN)
    if not fits:
        raise _wrong_length(path, start, length, size)
    if len(raw) < length:
        raise GptcliError(f"{path} changed while it was read: its header ends early.", AGAIN)
    entries = _parse_json(path, raw)
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise GptcliError(f"{path}: {METADATA} is {_short(metadata)}, not an object of strings.", AGAIN)
    data_start = 8 + length
    tensors = {name: _tensor_info(path, name, entry, data_start, size) for name, entry in entries.items()}
    _check_cover(path, tensors, data_start, size)
    return Header(path, tensors, metadata, size)


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """Every tensor of the file by name, memory-mapped; writing to a tensor does not change the file.

    Raises:
        GptcliError: the file cannot be read or is not a valid safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    try:
        found = load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise GptcliError(f"{path} cannot be mapped into memory: {reason}.", AGAIN) from error
    return {name: found[name] for name in header.tensors}


def write_tensors(
    path: Path, tensors: "Mapping[str, torch.Tensor] | Streamed", dtype: "torch.dtype | None" = None
) -> None:
    """Write a safetensors file atomically; the same tensors give the same bytes.

    Floating-point tensors are cast to ``dtype`` if it is given. Tensors that must be cast, moved to the CPU or made
    contiguous are converted one at a time, so that at most one of them is in memory twice; of `Streamed` tensors one
    is in memory at a time.

    Raises:
        GptcliError: the disk is full or not writable, or the format has no name for a tensor's dtype. The old file is
            then unchanged.
    """
    plan: dict[str, tuple[torch.Tensor, torch.dtype]] = {}
    values = tensors.values if isinstance(tensors, Streamed) else ()
    for name, tensor in (tensors.shapes if isinstance(tensors, Streamed) else tensors).items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if str(target).removeprefix("torch.") not in _ITEM_BYTES or name == METADATA:
            raise GptcliError(
                f"{path}: tensor {name!r} of {target} has no place in a safetensors file.",
                f"The format takes {', '.join(_ITEM_BYTES)}.",
            )
        plan[name] = tensor.detach(), target
    needed = sum(tensor.numel() * target.itemsize for tensor, target in plan.values())
    try:
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with atomic_write(path) as partial:
            _serialize(partial, plan, values)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise GptcliError(
                f"{path} needs {needed:,} bytes, but the disk has {free:,} left; nothing was changed.",
                "Free some space, or write to another disk.",
            ) from error
        raise GptcliError(
            f"{path} cannot be written: {error.strerror or error}.", "Choose a folder that you may write to."
        ) from error


def _serialize(
    path: Path,
    plan: "Mapping[str, tuple[torch.Tensor, torch.dtype]]",
    values: "Iterable[tuple[str, torch.Tensor]]",
) -> None:
    """Write the tensors, each cast to its dtype, with the safetensors library; ``values`` are of those on the meta
    device. Raises OSError.

    The library takes a pointer to each tensor's final bytes. One that has to be converted is written as any bytes and
    then replaced in the file: all converted tensors in memory at once would be a second copy of the model.
    """
    import torch
    from safetensors import SafetensorError, TensorSpec, serialize_file

    def is_ready(tensor: torch.Tensor, target: torch.dtype) -> bool:
        return tensor.device.type == "cpu" and tensor.dtype == target and tensor.is_contiguous()

    later = {name: (tensor, target) for name, (tensor, target) in plan.items() if not is_ready(tensor, target)}
    largest = max((tensor.numel() * target.itemsize for tensor, target in later.values()), default=0)
    blank = torch.empty(largest, dtype=torch.uint8)  # any bytes; fresh pages that are only read take no memory
    specs = {
        name: TensorSpec(
            dtype=str(target).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=(blank if name in later else tensor).data_ptr(),
            data_len=tensor.numel() * target.itemsize,
        )
        for name, (tensor, target) in plan.items()
    }
    try:
        # One metadata key: the library writes several in an order that changes from save to save.
        serialize_file(specs, path, {"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error)) from error
    del specs, blank
    if not later:
        return
    places = read_header(path).tensors
    made = [(name, tensor) for name, (tensor, _) in later.items() if tensor.device.type != "meta"]
    with path.open("r+b") as file:
        for name, tensor in chain(made, values):
            later.pop(name)
            if tensor.numel():
                file.seek(places[name].begin)
                # As uint8, because numpy has no bfloat16.
                raw = tensor.detach().to("cpu", plan[name][1]).contiguous().view(-1).view(torch.uint8)
                file.write(raw.numpy().data)
                del raw
            del tensor  # before the next one is made
    assert not later, f"no values for {', '.join(later)}"


def _wrong_length(path: Path, start: bytes, length: int, size: int) -> GptcliError:
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return GptcliError(
            f"{path} is a pickle as torch.save writes it, not a safetensors file, whatever its name says.",
            "Name it pytorch_model.bin, in a directory with its config.json: gptcli load-gpt2 --from DIRECTORY",
        )
    if start.startswith(b"version "):
        return GptcliError(
            f"{path} is a Git LFS pointer of {size} bytes, not the file itself.",
            "Run `git lfs pull` in that repository, or download the file from its page.",
        )
    if length > size - 8:
        return GptcliError(
            f"{path}: byte 0 says that the header has {length} bytes, but only {size - 8} follow.",
            "The file is cut short or is no safetensors file. " + AGAIN,
        )
    return GptcliError(
        f"{path}: byte 0 says that the header has {length} bytes; at most {MAX_HEADER_BYTES} are allowed.",
        "That is no header of a real model: get the file again from where it came.",
    )


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GptcliError(f"{path}: byte {8 + error.start} of the header is not UTF-8.", AGAIN) from error

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise GptcliError(f"{path}: the header names {_short(name)} twice.", AGAIN)
            found[name] = value
        return found

    try:
        header = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise GptcliError(f"{path}: the header of {len(raw)} bytes is not JSON: {reason}.", AGAIN) from error
    if not isinstance(header, dict) or not text.startswith("{"):
        raise GptcliError(f"{path}: the header is {_short(text)}, not a JSON object.", AGAIN)
    return header


def _tensor_info(path: Path, name: str, entry: Any, data_start: int, size: int) -> TensorInfo:
    where = f"{path}: tensor {_short(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise GptcliError(f"{where} is {_short(entry)}; it needs dtype, shape and data_offsets.", AGAIN)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise GptcliError(
            f"{where} has dtype {_short(dtype)}, which is not supported.", f"Known are {', '.join(DTYPES)}."
        )
    if not _is_counts(shape):
        raise GptcliError(f"{where} has shape {_short(shape)}, not a list of whole numbers of at least 0.", AGAIN)
    if not _is_counts(offsets) or len(offsets) != 2:
        raise GptcliError(f"{where} has data_offsets {_short(offsets)}, not [begin, end].", AGAIN)
    begin, end = offsets
    if begin > end or end > size - data_start:
        raise GptcliError(
            f"{where} has data_offsets {_short(offsets)}, but the data runs from 0 to {size - data_start}.",
            "The file is cut short or damaged. " + AGAIN,
        )
    # torch computes the element count in 64 bits, and multiplies the other sides even if one is 0.
    fits = len(shape) <= MAX_DIMENSIONS and math.prod(max(side, 1) for side in shape) < 2**63
    if not fits or math.prod(shape) * DTYPES[dtype][1] != end - begin:
        raise GptcliError(
            f"{where} has shape {_short(shape)} of {dtype}, which does not fill its {end - begin} bytes.", AGAIN
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _check_cover(path: Path, tensors: dict[str, TensorInfo], data_start: int, size: int) -> None:
    """Raise GptcliError unless the tensors cover the data without gaps or overlaps."""
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            kind = "overlaps the tensor before it" if info.begin < position else "leaves a gap before it"
            raise GptcliError(
                f"{path}: tensor {_short(name)} begins at data byte {info.begin - data_start} and {kind}, "
                f"which ends at {position - data_start}.",
                AGAIN,
            )
        position = info.end
    if position != size:
        raise GptcliError(
            f"{path}: {size - position} bytes at the end belong to no tensor (the data ends at byte {position}, "
            f"the file at {size}).",
            AGAIN,
        )


def _is_counts(value: Any) -> bool:
    # bool is a subclass of int, so isinstance would accept true and false.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _short(value: Any) -> str:
    """``value`` as ASCII, cut to 60 characters, because a hostile header can hold a value of any length."""
    try:
        text = ascii(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number too long to print"
    return text if len(text) <= 60 else text[:57] + "..."
