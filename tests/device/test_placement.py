"""What the system is asked for on behalf of a run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptcli.device import machine, placement
from gptcli.errors import GptcliError

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.40gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.10gb     Device  1: (UUID: MIG-c6d4aaaa-42e4-5de3-91c7-45d71c87eb3f)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5)
  MIG 1g.5gb      Device  0: (UUID: MIG-GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5/7/0)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa3855-276c-c9cb-b366-c6fa655957c5)
"""
H100, OLD_FORM = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-GPU-b8ea3855-276c-c9cb-b366-c6fa655957c5/7/0"


def test_memory_that_is_expected_lies_on_huge_pages() -> None:
    """In a process of its own: what the C library is told holds for good."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text(encoding="utf-8"):
        pytest.skip("the system gives no huge pages for asking")
    program = """
import torch
from pathlib import Path
from gptcli.device.allocator import reuse_freed_memory
from gptcli.device.placement import resident_memory
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
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    if run.stdout.strip() == "no":
        pytest.skip("another C library than glibc")
    assert int(run.stdout) * 1024 >= 2**26  # half of the tensor at least


# Split GPUs


def driver(monkeypatch: pytest.MonkeyPatch, listing: str | None, visible: str | None) -> None:
    """A machine whose driver lists so much, and whose user set CUDA_VISIBLE_DEVICES to that; torch finds no GPU."""
    monkeypatch.setattr(machine, "driver_listing", lambda: listing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_the_drivers_listing_names_every_instance() -> None:
    found = machine.instances(LISTING)
    assert [each.profile for each in found] == ["3g.40gb", "1g.10gb", "1g.5gb"]
    assert (found[0].uuid, found[2].uuid) == (H100, OLD_FORM)
    assert machine.instances("GPU 0: NVIDIA L4 (UUID: GPU-1)\n") == []


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for the driver's program")
def test_the_drivers_program_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver_listing.__wrapped__() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '%s' \"$1 listed\"\n", encoding="utf-8")
    program.chmod(0o755)
    assert machine.driver_listing.__wrapped__() == "-L listed"
    program.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert machine.driver_listing.__wrapped__() is None


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("visible", ["MIG-00000000-42e4-5de3-91c7-45d71c87eb3f", "MIG-GPU-b8ea3855/9/0"])
def test_an_instance_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, name: str, visible: str) -> None:
    driver(monkeypatch, LISTING, visible)
    with pytest.raises(GptcliError) as error:
        placement.choose(name)
    assert visible in error.value.message
    assert f"{H100} (3g.40gb), MIG-" in error.value.hint
    assert placement.choose("cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("listing", "visible", "hint"),
    [
        (LISTING, None, True),
        (LISTING, "0", True),
        (LISTING, "", False),  # hidden on purpose
        ("GPU 0: NVIDIA L4 (UUID: GPU-1)\n", None, False),
        (None, None, False),
        (None, H100, False),  # no driver: a CPU, whatever the shell says
        (LISTING, H100[:12], True),  # CUDA takes the beginning of a name
    ],
)
def test_without_a_gpu_auto_takes_the_cpu_and_names_an_instance(
    monkeypatch: pytest.MonkeyPatch, listing: str | None, visible: str | None, hint: bool
) -> None:
    driver(monkeypatch, listing, visible)
    found = placement.choose("auto")
    assert found.device.type == "cpu"
    assert found.name == "cpu"
    assert found.reason == "no GPU found" + hint * f"; CUDA_VISIBLE_DEVICES={H100} would name an instance of one"


@pytest.mark.parametrize("visible", [None, "0", H100, OLD_FORM])
def test_auto_takes_the_instance_that_torch_finds(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    driver(monkeypatch, LISTING, visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100 80GB HBM3 MIG 3g.40gb")
    found = placement.choose("auto")
    assert found.name == "cuda:0, NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert found.reason == "a GPU is present"


def test_an_instances_memory_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA says of an instance what is its; the driver's listing and the whole card's size play no part."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (39 * 10**9, 40 * 10**9))
    assert placement.available_memory(torch.device("cuda")) == 39 * 10**9
