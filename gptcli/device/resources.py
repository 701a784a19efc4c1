"""The processors and the memory that this process may use: the machine's, less what affinity and cgroups withhold.

A container limits its processes by cgroups, version 1 or 2. A limit holds for all groups below, so every group from the
process's own up to the mounted one is read. No torch.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")  # of the file system; tests have one of their own
SPINS = 3_000  # looks at a lock before a thread sleeps; 1,000 made steps a fifth slower, 20,000 helped half as much


class Files(NamedTuple):
    """A cgroup's files for memory: its limit, its use, and the name of the use that the kernel can free at once."""

    limit: str
    usage: str
    freeable: str


MEMORY_FILES = {
    1: Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: Files("memory.max", "memory.current", "inactive_file"),
}


def usable_cpus() -> int:
    """The number of logical processors that this process may use: by its affinity and the quotas of its cgroups."""
    return max(1, math.ceil(min(len(_affinity()), _quota())))


def usable_cores() -> int:
    """The number of physical cores that this process may use, which is the default number of threads."""
    affinity = _affinity()
    siblings = [_text(ROOT / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in affinity]
    if all(siblings):
        cores = len(set(siblings))
    else:
        import psutil

        cores = min(len(affinity), psutil.cpu_count(logical=False) or len(affinity))
    return max(1, math.ceil(min(cores, _quota())))


def available_memory() -> int:
    """Bytes of main memory that this process can still take without swapping."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for version, folder in _groups("memory"):
        files = MEMORY_FILES[version]
        limit, usage = _text(folder / files.limit), _text(folder / files.usage)
        if limit.isdigit() and usage.isdigit():  # "max": no limit; version 1 has a number beyond every memory
            statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            free = min(free, int(limit) - int(usage) + int(statistics.get(files.freeable, 0)))
    return max(free, 0)


def _affinity() -> set[int]:
    """The numbers of the logical processors on which this process may run."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return os.sched_getaffinity(0)
    if sys.platform == "win32":
        import psutil

        return set(psutil.Process().cpu_affinity())
    return set(range(os.cpu_count() or 1))  # macOS has no affinity


def _quota() -> float:
    """The processor time per time that the cgroups grant, such as 1.5; infinity where none limits it."""
    least = math.inf
    for version, folder in _groups("cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1: no quota
            least = min(least, int(quota) / int(period))
    return least


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """The version and the directory of every cgroup of this process with that controller, the innermost first."""
    own: dict[str, str] = {}  # controller, "" for version 2 -> path
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _text(ROOT / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mounted = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        version, name = (2, "") if kind == "cgroup2" else (1, controller)
        if kind not in ("cgroup", "cgroup2") or name not in own or (version == 1 and name not in options.split(",")):
            continue
        top = ROOT / mounted.lstrip("/")
        # A container may see its own group as the root, and a path that lies outside.
        inside = own[name].removeprefix(root if root != "/" else "").strip("/")
        folder = top / inside if ".." not in inside.split("/") and (top / inside).is_dir() else top
        while True:
            yield version, folder
            if folder == top:
                break
            folder = folder.parent


def _text(path: Path) -> str:
    """The stripped text of a file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def let_waiting_threads_sleep() -> None:
    """Let threads of GCC's OpenMP library, which torch brings along on Linux, sleep soon after they begin to wait.

    By default they spin for milliseconds. Where another program needs one of two cores, a thread that spins holds up
    the one it waits for: steps of a small model took five times as long, and now take twice as long. To be called
    before torch is imported; what the environment says already stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
