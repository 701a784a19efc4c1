"""What is installed on this machine, and where: versions, processor, devices, sizes of folders."""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gptcli.device import machine

REQUIRED = (
    *("torch", "numpy", "safetensors", "tiktoken", "regex", "typer", "rich", "tqdm", "huggingface_hub", "pooch"),
    *("matplotlib", "psutil", "filelock", "jinja2"),
)
# Package -> what gptcli does with it.
OPTIONAL = {
    "numba": "the fast CPU kernels",
    "triton": "the fast GPU kernels",
    "tokenizers": "gptcli train-tokenizer",
    "gguf": "gptcli export --format gguf",
    "tensorboard": "gptcli train --log tensorboard",
    "transformers": "gptcli bench --against transformers",
    "ctranslate2": "gptcli bench --against ctranslate2",
} | ({"zstandard": "texts in .zst files"} if sys.version_info < (3, 14) else {})
# Instruction sets that the kernels or torch's matrix products use, by their names in /proc/cpuinfo.
FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def version_of(package: str) -> str | None:
    """The installed version of ``package``, without importing it; None if it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def install_command(package: str) -> str:
    """The command that installs ``package`` where this gptcli is: by pipx, uv or pip."""
    parts = Path(sys.prefix).parts
    if "pipx" in parts:
        return f"pipx inject gptcli {package}"
    if "uv" in parts and "tools" in parts:
        return f"uv tool install gptcli --with {package}"
    return f"python -m pip install {package}"


def processor() -> dict[str, Any]:
    """Name, cores, instruction sets and memory (bytes) of this machine."""
    import psutil

    memory = psutil.virtual_memory()
    flags = machine.cpu_flags()
    return {
        "name": _processor_name(),
        "architecture": platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "features": [name for name in FEATURES if name in flags],
        "memory_bytes": int(memory.total),
        "memory_free_bytes": int(memory.available),
    }


def _processor_name() -> str:
    try:
        lines = machine.CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system than Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def devices() -> list[dict[str, Any]]:
    """The devices that torch computes on: its name for each, the model, and bytes of memory (None: main memory)."""
    import torch

    found: list[dict[str, Any]] = [{"device": "cpu", "name": _processor_name(), "memory_bytes": None}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        found.append({"device": f"cuda:{index}", "name": about.name, "memory_bytes": int(about.total_memory)})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "memory_bytes": None})
    return found


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``; links count as links. 0 for a folder that is absent or cannot be read."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(where) / name).lstat().st_size
            except OSError:  # removed meanwhile
                continue
    return total


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of ``folder``."""
    return shutil.disk_usage(folder).free


def shown(path: Path) -> str:
    """``path`` with ~ for the home directory, so that a report does not hold the user's name."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # elsewhere; or there is no home directory
        return str(path)
