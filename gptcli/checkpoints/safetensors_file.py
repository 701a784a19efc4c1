"""safetensors files: memory-mapped for reading, written atomically."""

import contextlib
import errno
import json
import mmap
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gptcli.checkpoints.checksum import Sum
from gptcli.checkpoints.safetensors_header import AGAIN, DTYPES, METADATA, header_of, open_file
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    import torch

_NAME_IN_FILE = {in_torch: in_file for in_file, (in_torch, _) in DTYPES.items()}
_LAYOUT = {dtype: place for place, dtype in enumerate(DTYPES)}


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """Every tensor of the file by name, memory-mapped.

    The mapping is copy-on-write: writing to a tensor does not change the file. A tensor whose offset is not a multiple
    of its element size is copied.

    Raises:
        GptcliError: the file cannot be read or is not a valid safetensors file.
    """
    import torch

    with open_file(path) as file:
        header = header_of(path, file)
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise GptcliError(f"{path} cannot be mapped into memory: {error.strerror}.", AGAIN) from error
    if len(mapped) != header.size:
        raise GptcliError(f"{path} changed from {header.size} to {len(mapped)} bytes while it was read.", AGAIN)
    tensors = {}
    for name, info in header.tensors.items():
        in_torch, item_bytes = DTYPES[info.dtype]
        dtype: torch.dtype = getattr(torch, in_torch)
        if info.begin == info.end:
            tensors[name] = torch.empty(info.shape, dtype=dtype)
        elif info.begin % item_bytes == 0:
            tensors[name] = torch.frombuffer(mapped, dtype=dtype, count=info.count, offset=info.begin).view(info.shape)
        else:
            raw = bytearray(mapped[info.begin : info.end])
            tensors[name] = torch.frombuffer(raw, dtype=dtype).view(info.shape)
    return tensors


def write_tensors(
    path: Path,
    tensors: "Mapping[str, torch.Tensor]",
    metadata: Mapping[str, str] | None = None,
    dtype: "torch.dtype | None" = None,
) -> list[int]:
    """Write a safetensors file atomically, one tensor at a time; returns the result of its `Sum`.

    The bytes are those that the safetensors library writes. Non-contiguous tensors are made contiguous and, if
    ``dtype`` is given, floating-point tensors are cast to it, one at a time: at most one tensor is in memory twice.
    ``metadata`` is added to the library's {"format": "pt"}.

    Raises:
        GptcliError: the disk is full or not writable, or the format has no name for a tensor's dtype. The old file is
            then unchanged.
    """
    plan: dict[str, tuple[str, torch.Tensor, torch.dtype]] = {}
    for name, tensor in tensors.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        in_file = _NAME_IN_FILE.get(str(target).removeprefix("torch."))
        if in_file is None or name == METADATA:
            raise GptcliError(
                f"{path}: tensor {name!r} of {target} has no place in a safetensors file.",
                f"The format takes {', '.join(torch_name for torch_name, _ in DTYPES.values())}.",
            )
        plan[name] = (in_file, tensor, target)
    names = sorted(plan, key=lambda name: (_LAYOUT[plan[name][0]], name.encode()))

    header: dict[str, Any] = {METADATA: dict(sorted({"format": "pt", **(metadata or {})}.items()))}
    end = 0
    for name in names:
        in_file, tensor, _ = plan[name]
        begin, end = end, end + tensor.numel() * DTYPES[in_file][1]
        header[name] = {"dtype": in_file, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    partial = partial_path(path)
    try:
        free = shutil.disk_usage(path.parent).free
        if free < 8 + len(text) + end:
            raise _disk_full(path, 8 + len(text) + end, free)
        written = Sum()
        with partial.open("wb") as file:
            for data in (len(text).to_bytes(8, "little"), text):
                file.write(data)
                written.add(data)
            for name in names:
                _, tensor, target = plan[name]
                _write_tensor(file, tensor.detach().to("cpu", target), written)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path, 8 + len(text) + end, shutil.disk_usage(path.parent).free) from error
        raise GptcliError(
            f"{path} cannot be written: {error.strerror or error}.", "Choose a folder that you may write to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return written.result()


def _write_tensor(file: BinaryIO, tensor: "torch.Tensor", written: Sum) -> None:
    import torch

    if tensor.numel():
        # As uint8, because numpy has no bfloat16. contiguous() copies only a non-contiguous tensor.
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        file.write(data)
        written.add(data)


def _disk_full(path: Path, needed: int, free: int) -> GptcliError:
    return GptcliError(
        f"{path} needs {needed:,} bytes, but the disk has {free:,} left; nothing was changed.",
        "Free some space, or write to another disk.",
    )


def partial_path(path: Path) -> Path:
    """The temporary path for ``path``: in the same folder, hidden, with the process's id in its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def clear_partials(path: Path) -> None:
    """Remove temporary files for ``path`` of this process and of ended ones; those of other live processes stay."""
    import psutil

    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})\.partial")
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        found = pattern.fullmatch(file.name)
        if found and (int(found[1]) == os.getpid() or not psutil.pid_exists(int(found[1]))):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """fsync a directory, so that a rename in it survives a power cut; Windows cannot open directories."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
