"""The processor's instruction sets and the MIG instances of the GPUs, read from Linux and the NVIDIA driver."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Linux's names in /proc/cpuinfo: avx512_bf16 (Intel, AMD), amx_bf16 (Intel), bf16 (ARM).
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_flags() -> frozenset[str]:
    """The flags of the first processor in /proc/cpuinfo; empty on other systems than Linux."""
    if not sys.platform.startswith("linux"):
        return frozenset()
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 products; False where its flags are unknown."""
    return not BFLOAT16_FLAGS.isdisjoint(cpu_flags())


@dataclass(frozen=True)
class Instance:
    """A MIG instance of a GPU: its profile, such as "3g.40gb", and its UUID, which begins with "MIG-"."""

    profile: str
    uuid: str


@cache
def driver_listing() -> str | None:
    """The output of ``nvidia-smi -L``: a line per GPU and per MIG instance. None if the command is absent or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        found = subprocess.run(
            [program, "-L"], capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout


def instances(listing: str) -> list[Instance]:
    """The MIG instances in ``listing``, the result of `driver_listing`."""
    found = re.findall(r"^\s+MIG (\S+)\s+Device\s+\d+:\s+\(UUID: (MIG-[^)\s]+)\)", listing, flags=re.MULTILINE)
    return [Instance(profile, uuid) for profile, uuid in found]
