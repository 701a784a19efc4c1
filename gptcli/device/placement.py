"""Selects device, dtype and CPU threads, with a reason for the user; reports the memory of a device."""

import os
import sys
from dataclasses import dataclass
from typing import cast

import psutil
import torch

from gptcli.config.compute import ComputeConfig
from gptcli.config.recipe import Precision as PrecisionName
from gptcli.device import machine, resources
from gptcli.errors import SettingError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
USABLE = "Use {device} auto or {device} cpu."


@dataclass(frozen=True)
class Placement:
    """Where and in which precision to compute, and why.

    Attributes:
        device: the torch device.
        dtype: the floating-point type of weights and activations.
        reason: a phrase on why, for the header of a run.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """The device with its index and driver name, such as "cuda:0, NVIDIA H100 80GB HBM3 MIG 3g.40gb"."""
        if self.device.type != "cuda":
            return str(self.device)
        number = torch.cuda.current_device() if self.device.index is None else self.device.index
        return f"cuda:{number}, {torch.cuda.get_device_name(number)}"


def choose(device: str = "auto", dtype: str = "auto") -> Placement:
    """Resolve the names of a device and a dtype; the dtype "auto" is float32.

    Raises:
        GptcliError: an unknown name, a device that this machine does not have, bfloat16 on a GPU without it, or
            CUDA_VISIBLE_DEVICES names a MIG instance that the driver does not list.
    """
    if dtype != "auto":
        _known_dtype(dtype)
    chosen = _best_device() if device == "auto" else _named_device(device)
    if dtype == "bfloat16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingError(
            f"{{dtype}} bfloat16: {torch.cuda.get_device_name(chosen)} has none.",
            "Take another {device} or {dtype} float16.",
        )
    hidden = _unseen_instance() if chosen.type == "cpu" and device == "auto" else ""
    reason = {"cuda": "a GPU is present", "mps": "Apple's GPU is present"}.get(chosen.type, f"no GPU found{hidden}")
    if device != "auto":
        reason = "asked for"
    return Placement(chosen, DTYPES[dtype] if dtype != "auto" else torch.float32, reason)


def place(compute: ComputeConfig) -> Placement:
    """Set torch's number of CPU threads, and choose device and dtype.

    Raises:
        GptcliError: as `choose`.
    """
    set_threads(compute.threads)
    return choose(compute.device, compute.dtype)


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _named_device(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise SettingError(f"There is no {{device}} {name!r}.", nearest(name, ["auto", "cpu", "cuda", "cuda:0", "mps"]))
    if kind == "cuda" and not torch.cuda.is_available():
        _unseen_instance()
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise SettingError(f"{{device}} {name}: torch finds {count} CUDA GPUs here.", USABLE)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SettingError("{device} mps: torch finds no Apple GPU here.", USABLE)
    return torch.device(name)


def _unseen_instance() -> str:
    """If torch finds no GPU: a clause that names a MIG instance to use, or an empty string.

    CUDA finds MIG instances without a setting, but finds no GPU if CUDA_VISIBLE_DEVICES names an absent instance.

    Raises:
        GptcliError: CUDA_VISIBLE_DEVICES names an instance that the driver does not list.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "" or (listing := machine.driver_listing()) is None:
        return ""
    known = machine.instances(listing)
    named = (visible or "").split(",")[0].strip()
    if named.startswith("MIG-") and not any(each.uuid.startswith(named) for each in known):
        there = ", ".join(f"{each.uuid} ({each.profile})" for each in known) or "no instance at all"
        raise SettingError(
            f"CUDA_VISIBLE_DEVICES is {visible}, and the driver has no such instance of a GPU.",
            f"nvidia-smi -L lists {there}. Set it to one of those, or use {{device}} cpu.",
        )
    return f"; CUDA_VISIBLE_DEVICES={known[0].uuid} would name an instance of one" if known else ""


@dataclass(frozen=True)
class Precision:
    """The precision of matrix products in training, and a phrase on why."""

    name: PrecisionName
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of that name."""
        return DTYPES[self.name]


def training_precision(name: str, device: torch.device) -> Precision:
    """The precision of matrix products in training: ``name``, or the choice of "auto" for ``device``.

    "auto" is bfloat16 on a CUDA GPU that supports it, float16 with loss scaling on another CUDA GPU, and float32
    elsewhere, so that the precision of a CPU run does not depend on the CPU. Weights and moments are always float32.
    `inference.open.generation_dtype` takes the same.

    Raises:
        GptcliError: an unknown name.
    """
    if name != "auto":
        return Precision(_known_dtype(name), "asked for")
    if device.type != "cuda":
        return Precision("float32", f"auto on {'a CPU' if device.type == 'cpu' else device.type}")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bfloat16", "this GPU has it")
    return Precision("float16", "this GPU has no bfloat16")


def _known_dtype(name: str) -> PrecisionName:
    if name not in DTYPES:
        raise SettingError(f"There is no {{dtype}} {name!r}.", nearest(name, ["auto", *DTYPES]))
    return cast(PrecisionName, name)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; from CPU to CUDA through pinned memory, so that the copy is asynchronous."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor; a DTensor is gathered from all processes, each of which has to call this function."""
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def placed_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``tensor``, full in every process, on ``parameter``'s device, and sharded like it if it is a DTensor.

    The shard may be a view of ``tensor``.
    """
    tensor = tensor.to(parameter.device)
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor  # the import takes a second

    assert isinstance(parameter, DTensor)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def set_threads(threads: int | None) -> int:
    """Set torch's number of CPU threads and return it.

    None: the physical cores that this process may use, or fewer where OMP_NUM_THREADS or an earlier call says so.

    Raises:
        GptcliError: fewer than 1.
    """
    if threads is not None and threads < 1:
        raise SettingError(f"{{threads}} is {threads}, but at least 1 is needed.", "Leave it out for all cores.")
    torch.set_num_threads(threads or min(torch.get_num_threads(), resources.usable_cores()))
    return torch.get_num_threads()


def available_memory(device: torch.device) -> int:
    """Free bytes of CUDA memory, or bytes of main memory available without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return resources.available_memory()


def resident_memory() -> int:
    """Resident bytes of this process in main memory."""
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: allocated by torch on a CUDA GPU, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has finished all queued work; returns at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
