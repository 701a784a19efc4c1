"""torchrun's world: which process this is, how the processes share a step, and how they agree."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from gptcli.device.placement import Placement
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPTModel

T = TypeVar("T")
PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True)
class World:
    """``size`` processes, of which this is number ``rank``; number ``local_rank`` of ``local_size`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and saves."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which rows of a step's batch are this process's."""
        return slice(self.rank, None, self.size)

    def mean(self, value: Tensor) -> float:
        """The mean of every process's scalar."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
            value = value / self.size
        return float(value)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        votes = torch.tensor(int(flag), device=device)
        torch.distributed.all_reduce(votes)
        return bool(votes)

    def first_says(self, flag: bool) -> bool:
        """What the first process says: its clock decides for all."""
        return self.any(flag and self.is_first)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def waiting(self, loss: nn.Module, wait: bool) -> AbstractContextManager[None]:
        """Where gradients are only added up, to be shared with the other processes by a later part of the step."""
        if isinstance(loss, nn.parallel.DistributedDataParallel) and wait:
            return cast(AbstractContextManager[None], loss.no_sync())
        return nullcontext()


ALONE = World()


def from_environment() -> World:
    """The world that torchrun's environment variables describe; alone without them."""
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
    """Every process of a machine computes on a GPU of its own."""
    if world.size > 1 and placement.device.type == "cuda":
        return replace(placement, device=torch.device("cuda", world.local_rank))
    return placement


def check_share(world: World, batch_size: int) -> None:
    """Refuse a batch that cannot be shared out evenly."""
    if batch_size % world.size:
        raise GptcliError(
            f"--batch-size {batch_size} cannot be shared out evenly among {world.size} processes.",
            f"Give --batch-size {-(-batch_size // world.size) * world.size}, or another --nproc-per-node.",
        )


def lost(world: World, error: RuntimeError, run: Path) -> GptcliError:
    """What a failure among several processes most likely is: another one has gone."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return GptcliError(
        f"Process {world.rank} of {world.size} cannot go on, probably because another one died: {first}",
        f"The reason is in the lines of the process that died first. Then go on with --resume {run}",
    )


def join(world: World, device: torch.device) -> None:
    """Meet the other processes: NCCL between GPUs, else gloo. A silent one is given up on after a minute."""
    if world.size > 1 and not torch.distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wrap(loss: nn.Module, model: GPTModel, world: World, *, shard: bool) -> nn.Module:
    """``loss`` so that its backward pass leaves every process with the mean gradient.

    Args:
        loss: calls ``model``.
        model: whose blocks become shards of their own.
        world: the processes; alone, nothing is wrapped.
        shard: FSDP2, every process holding a part of weights, gradients and moments; else DDP, each holding all.
    """
    if world.size == 1:
        return loss
    if not shard:
        return nn.parallel.DistributedDataParallel(loss)
    from torch.distributed.fsdp import fully_shard

    for block in model.h:
        fully_shard(block)
    fully_shard(loss)
    return loss
