"""torchrun's process group: this process's rank, its share of a step, and the collective operations."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from gptcli.device.placement import Placement
from gptcli.errors import GptcliError, SettingError
from gptcli.model.gpt import GPTModel

T = TypeVar("T")
PATIENCE = timedelta(seconds=60)  # of a collective operation: a process that is silent for longer counts as ended
HEARTBEAT = 5.0  # seconds from one message to the next of a process that works for all


@dataclass(frozen=True)
class World:
    """This process's ``rank`` among ``size`` processes, and ``local_rank`` among ``local_size`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and saves."""
        return self.rank == 0

    def share(self, windows: int) -> slice:
        """The windows of a step's batch that this process computes, of ``windows``: adjacent ones, by rank."""
        own = windows // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def mean(self, value: Tensor) -> float:
        """The mean of ``value``, a scalar, over the processes; ``value`` is overwritten by the sum."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
            value = value / self.size
        return float(value)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is True in any process."""
        if self.size == 1:
            return flag
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        votes = torch.tensor(int(flag), device=device)
        torch.distributed.all_reduce(votes)
        return bool(votes)

    def first_says(self, flag: bool) -> bool:
        """The first process's ``flag``: decisions by time use its clock alone, so that all processes agree."""
        return self.any(flag and self.is_first)

    def while_first(self, work: Callable[[], T]) -> T | None:
        """Do ``work`` in the first process while the others wait for as long as it takes; its result there, else None.

        The processes meet every `HEARTBEAT` seconds meanwhile, so that the death of one is noticed as in a step.
        """
        if self.size == 1:
            return work()
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(work) if self.is_first else None
            while not self.first_says(job is not None and bool(wait([job], timeout=HEARTBEAT).done)):
                pass
        return job.result() if job is not None else None

    def while_all(self, work: Callable[[], T]) -> T:
        """Do ``work`` in every process, for as long as the slowest takes; the result of this one's.

        Raises:
            GptcliError: ``work`` failed in another process.
        """
        if self.size == 1:
            return work()
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(work)
            while self.any(not wait([job], timeout=HEARTBEAT).done):
                pass
        if self.any(job.exception() is not None) and job.exception() is None:
            raise GptcliError(
                "Another process has failed; the lines of that process give the reason.",
                "Remove that cause, then resume the run.",
            )
        return job.result()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def waiting(self, loss: nn.Module, wait: bool) -> AbstractContextManager[None]:
        """A context in which DDP, if ``wait``, only accumulates gradients; a later part of the step reduces them."""
        if isinstance(loss, nn.parallel.DistributedDataParallel) and wait:
            return cast(AbstractContextManager[None], loss.no_sync())
        return nullcontext()


ALONE = World()


def from_environment() -> World:
    """The world that torchrun's environment variables describe; `ALONE` where they are not set."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local_size = (int(os.environ.get(name, "0")) for name in names)
    except ValueError:
        told = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
        raise GptcliError(f"The environment says {told}.", "Start with: torchrun -m gptcli train …") from None
    return World(rank, size, local_rank, local_size or size)


def place(world: World, placement: Placement) -> Placement:
    """``placement``, on the GPU number ``local_rank`` where several processes compute on GPUs.

    Raises:
        GptcliError: there are fewer GPUs than processes on this machine.
    """
    if world.size > 1 and placement.device.type == "cuda":
        count = torch.cuda.device_count()
        if world.local_size > count:
            raise SettingError(
                f"{world.local_size} processes on this machine cannot have a GPU each: torch finds {count}.",
                f"Start {count} processes on it, or set {{device}} to cpu.",
            )
        return replace(placement, device=torch.device("cuda", world.local_rank))
    return placement


def check_share(world: World, batch_size: int) -> None:
    """Refuse a batch that is no multiple of the number of processes."""
    if batch_size % world.size:
        raise SettingError(
            f"{{batch_size}} {batch_size} cannot be shared out evenly among {world.size} processes.",
            f"Give {{batch_size}} {-(-batch_size // world.size) * world.size}, or another number of processes.",
        )


def lost(world: World, error: RuntimeError, run: Path) -> GptcliError:
    """The error to raise for a RuntimeError among several processes; its usual cause is another process's end."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return GptcliError(
        f"Process {world.rank} of {world.size} cannot go on, probably because another process ended: {first}",
        f"The reason is in the lines of the process that ended first. Then: torchrun … -m gptcli train --resume {run}",
    )


def join(world: World, device: torch.device) -> None:
    """Initialize the process group: NCCL between GPUs, else gloo; operations time out after `PATIENCE`."""
    if world.size > 1 and not torch.distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Destroy the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wrap(loss: nn.Module, model: GPTModel, world: World) -> nn.Module:
    """``loss``, which calls ``model``, wrapped so that its backward pass gives every process the mean gradient.

    A model of shards needs no wrapping, and one process needs none.
    """
    return loss if world.size == 1 or is_sharded(model) else nn.parallel.DistributedDataParallel(loss)


def shard(model: GPTModel, world: World, device: torch.device) -> GPTModel:
    """``model``, from the meta device, as FSDP2's shards on ``device``: this process holds its rows of every tensor.

    Weights, gradients and moments are shards; a block's weights are gathered while it computes. The rows have no values
    yet.
    """
    from torch.distributed.device_mesh import init_device_mesh  # these imports take a second
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world.size,))
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")
    return model.to_empty(device=device)


def is_sharded(model: nn.Module) -> bool:
    """Whether ``model`` has been sharded."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def own_rows(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this process writes of ``tensors``, on the CPU: its rows of the shards, and if it is the first, the others.

    A tensor has no rows in the last processes if it has fewer rows than there are processes.
    """
    local = {name: cast(Any, t).to_local() if hasattr(t, "to_local") else t for name, t in tensors.items()}
    own = {name: t for name, t in local.items() if world.is_first or (t is not tensors[name] and t.numel())}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
