"""How many floating-point operations a second a device could do: known for GPUs by name, else measured."""

import time
from dataclasses import dataclass
from functools import cache

import torch

# TFLOP/s of dense products in float16 (bfloat16, where there is any) with float32 sums, and in float32 without TF32:
# NVIDIA's data sheets and whitepapers, at boost clock and without sparsity. A name counts if it has all the words; the
# first row that fits is taken.
GPUS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250, 75),
    ("GH200", 989, 67),
    ("H200", 989, 67),
    ("H100 PCIe", 756, 51.2),
    ("H100 NVL", 835, 60),
    ("H100", 989, 67),
    ("A100", 312, 19.5),
    ("L40S", 362, 91.6),
    ("L40", 181, 90.5),
    ("L4", 121, 30.3),
    ("A40", 149.7, 37.4),
    ("A10G", 70, 35),
    ("A10", 125, 31.2),
    ("A6000", 154.8, 38.7),
    ("V100", 125, 15.7),
    ("T4", 65, 8.1),
    ("5090", 209.5, 104.8),
    ("4090", 165.2, 82.6),
    ("3090", 71, 35.6),
)
SECONDS = 0.1


@dataclass(frozen=True)
class Peak:
    """FLOP/s that could be reached, and where the figure is from, in a word or two."""

    flops: float
    source: str


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """What ``device`` could do in matrix products of ``dtype``."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = known_peak(name, dtype)
        if known is not None:
            return Peak(known, f"of the {name}")
    return Peak(measured_rate(device, dtype, torch.get_num_threads()), "measured")


def known_peak(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of the GPU that calls itself ``name``; None where we know none of that name."""
    words = set(name.replace("-", " ").split())
    if words & {"Laptop", "MIG", "Ti"}:  # another chip, or a part of one
        return None
    for row, half, single in GPUS:
        if words.issuperset(row.split()):
            return 1e12 * (single if dtype == torch.float32 else half)
    return None


@cache
def measured_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of the fastest of the large matrix products that a tenth of a second has room for; at least three.

    Args:
        device: where to multiply.
        dtype: of what.
        threads: how many work now: a measurement holds for as many.
    """
    size, fastest = (4096 if device.type != "cpu" else 2048 if threads > 8 else 1024), 0.0
    square = torch.ones(size, size, dtype=dtype, device=device)
    _seconds(square)
    spent, times = 0.0, 0
    while times < 3 or spent < SECONDS:
        took = _seconds(square)
        spent, times = spent + took, times + 1
        fastest = max(fastest, 2 * size**3 / took)
    return fastest


def _seconds(square: torch.Tensor) -> float:
    started = time.perf_counter()
    float((square @ square)[0, 0])  # waits for a GPU, too
    return time.perf_counter() - started
