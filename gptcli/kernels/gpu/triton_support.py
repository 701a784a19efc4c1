"""Test of whether Triton kernels can run on a device."""

import importlib.util
from functools import cache

import torch

OLDEST = (7, 0)  # lowest compute capability that Triton compiles for


def triton_reason(device: torch.device) -> str | None:
    """The reason why Triton kernels cannot run on ``device``, or None if they can."""
    if device.type != "cuda":
        return f"{device.type} is no CUDA device"
    return _cuda_reason(device.index or 0)


@cache
def _cuda_reason(index: int) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < OLDEST:
        return f"{torch.cuda.get_device_name(index)} is older than Triton supports"
    try:  # run a kernel: Triton also needs a C compiler, Python's headers and a compatible driver
        from gptcli.kernels.gpu.cross_entropy import cross_entropy_

        device = torch.device("cuda", index)
        logits, targets = torch.zeros(1, 128, device=device), torch.zeros(1, dtype=torch.int64, device=device)
        cross_entropy_(logits, targets, torch.zeros(1, device=device), 128, gradient=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"Triton cannot compile here ({' '.join(str(error).split())[:200] or type(error).__name__})"
    return None
