"""How many windows of a step fit into memory at once: by trying on a GPU, by the forecast elsewhere."""

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from gptcli.config.model import GPTConfig
from gptcli.config.training import TrainConfig
from gptcli.device.placement import available_memory
from gptcli.model.cost import parameter_count, training_memory
from gptcli.model.gpt import GPTModel
from gptcli.training.distributed import World
from gptcli.training.step import Stepper

ROOM = 0.9  # of what is free may be taken where a forecast decides
SPARE = 0.03  # of a GPU's memory stays free in a trial: later steps may find it in other pieces


def fewest_parts(
    model: GPTConfig, recipe: TrainConfig, windows: int, context: int, device: torch.device, world: World
) -> int | None:
    """The fewest parts, of as equal size as can be, that a step has to be computed in to fit into memory.

    A GPU is asked by taking real steps with a model of that shape, except for shards (``recipe.shard``), whose steps
    need every process: they, a CPU and Apple's GPU are asked by the forecast, with a tenth of the free memory to spare.

    Args:
        model: the shape.
        recipe: how to train; its ``accumulate`` does not count.
        windows: of ``context`` tokens, this process's in one step.
        context: T.
        device: this process's.
        world: the processes; the answer is the same in each.

    Returns:
        from 1 to ``windows``; None where not even one window fits.
    """
    if device.type == "cuda" and not recipe.shard:

        def fits(rows: int) -> bool:
            return step_fits(model, recipe, rows, context, device, world.size)
    else:

        def fits(rows: int) -> bool:
            return forecast_fits(model, recipe, rows, context, device, world)

    found = world.gather(smallest(lambda parts: fits(-(-windows // parts)), windows))
    return None if None in found else max(parts for parts in found if parts is not None)


def smallest(fits: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 1 to ``most`` that fits, if all larger ones do too: by doubling, then by halving."""
    too_few, enough = 0, 1
    while not fits(enough):
        if enough == most:
            return None
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if fits(middle) else (middle, enough)
    return enough


def step_fits(model: GPTConfig, recipe: TrainConfig, rows: int, context: int, device: torch.device, size: int) -> bool:
    """Whether two steps on ``rows`` windows work beside what ``size`` processes need to share gradients.

    Changes torch's random numbers, and nothing else.
    """
    try:
        _take_steps(model, recipe, rows, context, device, size)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _take_steps(
    model: GPTConfig, recipe: TrainConfig, rows: int, context: int, device: torch.device, size: int
) -> None:
    """Two: the second has the optimizer's memory from its beginning."""
    spare = int(SPARE * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0
    spare += 4 * parameter_count(model) if size > 1 else 0
    ballast = torch.empty(spare, dtype=torch.uint8, device=device)
    with device:
        tried = GPTModel(model, "gpt2").train()
    stepper = Stepper(tried, replace(recipe, batch_size=rows, accumulate=1, compile=False))
    tokens = torch.randint(model.vocab_size, (rows, context + 1))
    for _ in range(2):
        stepper.step(tokens[:, :-1], tokens[:, 1:], recipe.learning_rate)
    del ballast


def forecast_fits(
    model: GPTConfig, recipe: TrainConfig, rows: int, context: int, device: torch.device, world: World
) -> bool:
    """Whether the forecast of a step on ``rows`` windows leaves a tenth of this process's share of free memory."""
    on_cpu = device.type == "cpu"
    itemsize = 4 if on_cpu or recipe.dtype in ("auto", "float32") else 2
    need = training_memory(model, rows, context, recipe.recompute, on_cpu=on_cpu, itemsize=itemsize)
    bytes_needed = need.resident if on_cpu else need.peak
    if recipe.shard:
        bytes_needed -= int((need.weights + need.optimizer) * (1 - 1 / world.size))
    sharing = 1 if device.type == "cuda" else world.local_size
    return bytes_needed <= ROOM * available_memory(device) / sharing
