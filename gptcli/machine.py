"""What this machine's processor can do, found without torch and without measuring."""

import re
import sys
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
