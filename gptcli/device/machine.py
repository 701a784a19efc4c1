"""What this machine's processor can do and how its GPUs are split, found without torch and without measuring."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# As Linux names them: Intel's and AMD's vector and tile instructions, and ARM's.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_flags() -> frozenset[str]:
    """The instruction sets of the first processor, as Linux names them; empty elsewhere."""
    if not sys.platform.startswith("linux"):
        return frozenset()
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16 numbers; False where that is not known."""
    return not BFLOAT16_FLAGS.isdisjoint(cpu_flags())


@dataclass(frozen=True)
class Instance:
    """A part of a split GPU (MIG): its profile as in "3g.40gb", and its UUID, MIG-… in either of the driver's forms."""

    profile: str
    uuid: str


@cache
def driver_listing() -> str | None:
    """What ``nvidia-smi -L`` prints: a line for each GPU, and one for each instance of it. None where there is none."""
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
    """The instances that `driver_listing` names."""
    found = re.findall(r"^\s+MIG (\S+)\s+Device\s+\d+:\s+\(UUID: (MIG-[^)\s]+)\)", listing, flags=re.MULTILINE)
    return [Instance(profile, uuid) for profile, uuid in found]
