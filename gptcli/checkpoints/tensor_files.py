"""Writes several safetensors files at once, with their checksums."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from gptcli.checkpoints import safetensors_file
from gptcli.checkpoints.checksum import file_sum
from gptcli.checkpoints.safetensors_file import Streamed

Tensors = Mapping[str, Tensor] | Streamed


def write_together(files: Mapping[Path, Tensors]) -> dict[str, dict[str, Any]]:
    """Write the files that have tensors, in parallel: one copies in memory while another writes. Checksums by name.

    Where tensors are made while they are written, one file after the other: one tensor is in memory.
    """
    at_once = 1 if any(isinstance(tensors, Streamed) for tensors in files.values()) else len(files)

    def write(path: Path, tensors: Tensors) -> dict[str, Any]:
        safetensors_file.write_tensors(path, tensors)
        return file_sum(path)

    with ThreadPoolExecutor(at_once) as pool:
        jobs = {path.name: pool.submit(write, path, tensors) for path, tensors in files.items() if tensors}
    return {name: job.result() for name, job in jobs.items()}
