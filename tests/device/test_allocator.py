"""Memory that has run out is told apart from every other error, however deep it is wrapped."""

from typing import Any

import pytest
import torch

from gptcli.device.allocator import out_of_memory


def wrapped(inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise RuntimeError("backend='inductor' raised:\nsomething") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        MemoryError(),
        RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        wrapped(torch.OutOfMemoryError("CUDA out of memory.")),
        wrapped(MemoryError("no room")),
    ],
)
def test_memory_that_has_run_out(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("no C++ compiler"), ValueError(), wrapped(KeyError("memory"))])
def test_another_error(error: Exception) -> None:
    assert out_of_memory(error) is None


def test_a_command_says_it_in_two_lines(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.cli import count_params

    def fail(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(count_params, "_figures", fail)
    gptcli("count-params").assert_user_error("There is no memory left: DefaultCPUAllocator: can't allocate")
