"""What the system is asked for on behalf of a run."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_memory_that_is_expected_lies_on_huge_pages() -> None:
    """In a process of its own: what the C library is told holds for good."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text(encoding="utf-8"):
        pytest.skip("the system gives no huge pages for asking")
    program = """
import torch
from pathlib import Path
from gptcli.device import reuse_freed_memory, resident_memory
before = resident_memory()
if reuse_freed_memory(expected=2**28):
    assert resident_memory() - before < 2**24  # asked for, not taken
    tensor = torch.ones(2**25)
    rows = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    print(next(row for row in rows if row.startswith("AnonHugePages")).split()[1])
else:
    print("no")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    if run.stdout.strip() == "no":
        pytest.skip("another C library than glibc")
    assert int(run.stdout) * 1024 >= 2**26  # half of the tensor at least
