"""Processors and memory by affinity and cgroups, read from files that a test writes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.device import resources

V2_MOUNT = "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"""
NO_LIMIT_V1 = str(2**63 - 4096)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the files of a system; 4 processors on 2 cores, 8 GB free."""
    monkeypatch.setattr(resources, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 8 * 10**9}))
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4 if logical else 2)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n", encoding="utf-8")

    return write


def v2(group: str = "/", mount: str = V2_MOUNT) -> dict[str, str]:
    return {"proc/self/cgroup": f"0::{group}", "proc/self/mountinfo": mount}


def found() -> tuple[int, int, int]:
    return resources.usable_cpus(), resources.usable_cores(), resources.available_memory()


def test_without_cgroups_the_machine_is_whole(system: Any) -> None:
    assert found() == (4, 2, 8 * 10**9)
    system(v2() | {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"})
    assert found() == (4, 2, 8 * 10**9)
    system({"proc/self/cgroup": "1:cpu:/\n4:memory:/", "proc/self/mountinfo": V1_MOUNTS.format(root="/")})
    system({"sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1})
    system({"sys/fs/cgroup/memory/memory.usage_in_bytes": "4096", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1"})
    assert found() == (4, 2, 8 * 10**9)


@pytest.mark.parametrize(
    ("quota", "cpus", "cores"),
    [("50000 100000", 1, 1), ("150000 100000", 2, 2), ("300000 100000", 3, 2), ("900000 100000", 4, 2), ("0 0", 4, 2)],
)
def test_a_quota_of_version_2(system: Any, quota: str, cpus: int, cores: int) -> None:
    system(v2() | {"sys/fs/cgroup/cpu.max": quota})
    assert found()[:2] == (cpus, cores)


def test_the_tightest_of_nested_groups_counts_and_pages_of_files_can_be_freed(system: Any) -> None:
    system(v2("/pod/box"))
    for group, limit in (("pod", "1000000000"), ("pod/box", "max")):
        system({f"sys/fs/cgroup/{group}/memory.max": limit, f"sys/fs/cgroup/{group}/memory.current": "600000000"})
        system({f"sys/fs/cgroup/{group}/memory.stat": "anon 1\ninactive_file 100000000\nslab 3"})
    system({"sys/fs/cgroup/pod/box/cpu.max": "200000 100000", "sys/fs/cgroup/pod/cpu.max": "100000 100000"})
    assert found() == (1, 1, 500_000_000)
    system({"sys/fs/cgroup/pod/box/memory.max": "700000000"})
    assert resources.available_memory() == 200_000_000
    system({"sys/fs/cgroup/pod/box/memory.max": "100"})
    assert resources.available_memory() == 0


@pytest.mark.parametrize("root", ["/", "/docker/4f2a"])
def test_version_1_under_its_own_path_or_as_the_root_of_the_mount(system: Any, root: str) -> None:
    inside = "docker/4f2a/" if root == "/" else ""
    system({"proc/self/cgroup": "3:cpu,cpuacct:/docker/4f2a\n5:memory:/docker/4f2a"})
    system({"proc/self/mountinfo": V1_MOUNTS.format(root=root)})
    system({f"sys/fs/cgroup/cpu,cpuacct/docker/4f2a/cpu.cfs_{name}_us": "100000" for name in ("quota", "period")})
    memory = f"sys/fs/cgroup/memory/{inside}memory"
    system({f"{memory}.limit_in_bytes": "2000000000", f"{memory}.usage_in_bytes": "500000000"})
    system({f"{memory}.stat": "inactive_file 7\ntotal_inactive_file 100000000"})
    assert found() == (1, 1, 1_600_000_000)


def test_a_path_outside_of_the_container_is_the_mounted_group(system: Any) -> None:
    for group in ("/../other", "/gone"):
        system(v2(group) | {"sys/fs/cgroup/cpu.max": "100000 100000"})
        assert resources.usable_cpus() == 1


def test_two_processors_of_one_core_are_one_core(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    system({f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}" for n in range(4)})
    assert found()[:2] == (4, 2)
    for own, cpus, cores in (({0, 2}, 2, 1), ({0, 1}, 2, 2), ({3}, 1, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, own=own: own)
        assert found()[:2] == (cpus, cores)


def test_other_systems_have_no_such_files(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert found() == (4, 2, 8 * 10**9)
    monkeypatch.setattr(sys, "platform", "win32")
    process = type("Process", (), {"cpu_affinity": lambda self: [1, 3, 5]})
    monkeypatch.setattr("psutil.Process", process)
    assert found()[:2] == (3, 2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_one_processor_is_one_thread_in_every_engine_and_torch_is_not_needed_to_know() -> None:
    program = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from gptcli.device import resources
from gptcli.inference.open import count_threads
print(resources.usable_cpus(), resources.usable_cores(), count_threads(None), "torch" in sys.modules)
from gptcli.device import placement
print(placement.set_threads(None))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        env=environment,
    )  # fmt: skip
    assert run.stdout.split() == ["1", "1", "1", "False", "1"]


@pytest.mark.parametrize(
    ("given", "found"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_of_the_command_wait_as_the_environment_says_or_sleep_soon(
    given: dict[str, str], found: str | None
) -> None:
    code = "import sys; sys.argv[1:] = ['--version']; from gptcli.__main__ import run; run(); import os; "
    code += "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment | given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{found} False"
