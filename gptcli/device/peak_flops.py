"""Peak FLOP/s of a device in matrix products: from the data sheet for known GPUs, else measured."""

import time
from dataclasses import dataclass
from functools import cache

import torch

# Name; TFLOP/s of dense products in float16 (and bfloat16, if the GPU has it) with float32 sums; TFLOP/s in float32
# without TF32; multiprocessors of the whole GPU, 0 for GPUs without MIG. Source: NVIDIA's data sheets and whitepapers,
# at boost clock, without sparsity. A row matches if the GPU's name has all its words; the first match counts.
GPUS: tuple[tuple[str, float, float, int], ...] = (
    ("B200", 2250, 75, 148),
    ("GH200", 989, 67, 132),
    ("H200", 989, 67, 132),
    ("H100 PCIe", 756, 51.2, 114),
    ("H100 NVL", 835, 60, 132),
    ("H100", 989, 67, 132),
    ("A100", 312, 19.5, 108),
    ("A30", 165, 10.3, 56),
    ("L40S", 362, 91.6, 0),
    ("L40", 181, 90.5, 0),
    ("L4", 121, 30.3, 0),
    ("A40", 149.7, 37.4, 0),
    ("A10G", 70, 35, 0),
    ("A10", 125, 31.2, 0),
    ("A6000", 154.8, 38.7, 0),
    ("V100", 125, 15.7, 0),
    ("T4", 65, 8.1, 0),
    ("5090", 209.5, 104.8, 0),
    ("4090", 165.2, 82.6, 0),
    ("3090", 71, 35.6, 0),
)
SECONDS = 0.1  # least duration of a measurement


@dataclass(frozen=True)
class Peak:
    """Peak FLOP/s, and a short phrase on the source of the figure."""

    flops: float
    source: str


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Peak of ``device`` in matrix products of ``dtype``: from `GPUS`, or measured if the device is not listed."""
    return data_sheet(device, dtype) or Peak(measured_rate(device, dtype, torch.get_num_threads()), "measured")


def data_sheet(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """Peak of ``device`` in matrix products of ``dtype`` from `GPUS`; None for a CPU and an unlisted GPU."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    return known_peak(found.name, dtype, found.multi_processor_count)


def known_peak(name: str, dtype: torch.dtype, multiprocessors: int = 0) -> Peak | None:
    """Peak of the GPU whose driver name is ``name``; None if `GPUS` has no match.

    A MIG instance has the whole GPU's peak times its share of the ``multiprocessors``.
    """
    words = set(name.replace("-", " ").split())
    if words & {"Laptop", "Ti"}:  # a different chip from the desktop GPU of that number
        return None
    for row, half, single, whole in GPUS:
        if words.issuperset(row.split()):
            flops = 1e12 * (single if dtype == torch.float32 else half)
            if "MIG" not in words:
                return Peak(flops, f"of the {name}")
            if not 0 < multiprocessors <= whole:
                return None
            share = f"{multiprocessors} of {whole} multiprocessors"
            return Peak(flops * multiprocessors / whole, f"of the {name}, {share}")
    return None


@cache
def measured_rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """The highest FLOP/s over large square matrix products, timed for `SECONDS` and at least three times.

    Args:
        device: where to multiply.
        dtype: of the matrices.
        threads: the current number of CPU threads; results are cached per number.
    """
    on_cpu = device.type == "cpu"
    size, at_once = (4096, 4) if not on_cpu else (2048 if threads > 8 else 1024, 1)  # 4: spreads the cost of a GPU wait
    # Random numbers: a GPU multiplies constant matrices faster, since fewer bit changes take less power.
    numbers = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    square, fastest = numbers.to(device, dtype), 0.0
    _seconds(square, at_once)
    spent, times = 0.0, 0
    while times < 3 or spent < SECONDS:
        took = _seconds(square, at_once)
        spent, times = spent + took, times + 1
        fastest = max(fastest, at_once * 2 * size**3 / took)
    return fastest


def _seconds(square: torch.Tensor, at_once: int) -> float:
    """Duration of ``at_once`` products in sequence."""
    started = time.perf_counter()
    for _ in range(at_once):
        product = square @ square
    float(product[0, 0])  # waits for a GPU
    return time.perf_counter() - started
