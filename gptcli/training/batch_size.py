"""How many windows of a step fit into memory at once: measured with real steps on a GPU, forecast elsewhere."""

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from gptcli.config.lora import LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.device.placement import available_memory
from gptcli.model.cost import parameter_count, training_memory
from gptcli.model.gpt import GPTModel
from gptcli.model.lora import add_adapters
from gptcli.model.parameters import adapter_size
from gptcli.training.distributed import World
from gptcli.training.step import Stepper

ROOM = 0.9  # share of the free memory that a step may need by the forecast
SPARE = 0.03  # share of a GPU's memory kept out of a trial's reach: fragmentation in later steps may need it


def fewest_parts(
    model: GPTConfig,
    recipe: RecipeConfig,
    runtime: RuntimeConfig,
    windows: int,
    context: int,
    device: torch.device,
    world: World,
    adapter: LoRAConfig | None = None,
) -> int | None:
    """The fewest parts, as equal in size as possible, into which a step must be split to fit into memory.

    On CUDA the function trains a model of that shape for two steps per candidate. A step on shards (``runtime.shard``)
    needs every process, so for shards, for a CPU and for Apple's GPU `forecast_fits` answers instead.

    Args:
        model: the model's shape.
        recipe: how to train.
        runtime: how to compute; its ``accumulate`` is ignored.
        windows: that this process computes in one step, each of ``context`` tokens.
        context: T.
        device: the device of this process.
        world: the processes; all of them get the same result, the largest that any process needs.
        adapter: the adapters that are trained, if not the model's own weights.

    Returns:
        from 1 to ``windows``; None where not even one window fits.
    """
    if device.type == "cuda" and not runtime.shard:

        def fits(rows: int) -> bool:
            return step_fits(model, recipe, runtime, rows, context, device, world.size, adapter)
    else:

        def fits(rows: int) -> bool:
            return forecast_fits(model, recipe, runtime, rows, context, device, world, adapter)

    found = world.gather(smallest(lambda parts: fits(-(-windows // parts)), windows))
    return None if None in found else max(parts for parts in found if parts is not None)


def smallest(fits: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 1 to ``most`` that fits, if all larger ones fit too: doubling, then bisection."""
    too_few, enough = 0, 1
    while not fits(enough):
        if enough == most:
            return None
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if fits(middle) else (middle, enough)
    return enough


def step_fits(
    model: GPTConfig,
    recipe: RecipeConfig,
    runtime: RuntimeConfig,
    rows: int,
    context: int,
    device: torch.device,
    size: int,
    adapter: LoRAConfig | None = None,
) -> bool:
    """Whether two steps on ``rows`` windows fit, beside DDP's float32 gradient buckets where ``size`` is over 1.

    The only side effect: torch's random number generators advance.
    """
    try:
        _take_steps(model, recipe, runtime, rows, context, device, size, adapter)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _take_steps(
    model: GPTConfig,
    recipe: RecipeConfig,
    runtime: RuntimeConfig,
    rows: int,
    context: int,
    device: torch.device,
    size: int,
    adapter: LoRAConfig | None,
) -> None:
    """Train a new model for two steps: the first allocates the optimizer's moments, the second runs beside them."""
    spare = int(SPARE * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0
    trained = parameter_count(model) if adapter is None else adapter_size(model, adapter)
    spare += 4 * trained if size > 1 else 0
    ballast = torch.empty(spare, dtype=torch.uint8, device=device)
    with device:
        tried = GPTModel(model, "gpt2").train()
    if adapter is not None:
        add_adapters(tried, adapter, recipe.seed)
    stepper = Stepper(tried, replace(recipe, batch_size=rows), replace(runtime, accumulate=1, compile=False))
    tokens = torch.randint(min(model.vocab_size, model.n_outputs), (rows, context + 1))
    for _ in range(2):
        stepper.step(tokens[:, :-1], tokens[:, 1:], recipe.learning_rate)
    del ballast


def forecast_fits(
    model: GPTConfig,
    recipe: RecipeConfig,
    runtime: RuntimeConfig,
    rows: int,
    context: int,
    device: torch.device,
    world: World,
    adapter: LoRAConfig | None = None,
) -> bool:
    """Whether a step on ``rows`` windows needs, by the forecast, at most `ROOM` of this process's free memory."""
    on_cpu = device.type == "cpu"
    itemsize = 4 if on_cpu or recipe.dtype in ("auto", "float32") else 2
    need = training_memory(model, rows, context, runtime.recompute, on_cpu=on_cpu, itemsize=itemsize, adapter=adapter)
    bytes_needed = need.resident if on_cpu else need.peak
    bytes_needed += need.gradients if recipe.average_share else 0  # as many bytes as the average has
    if runtime.shard:
        bytes_needed -= int((need.weights + need.optimizer) * (1 - 1 / world.size))
    sharing = 1 if device.type == "cuda" else world.local_size
    return bytes_needed <= ROOM * available_memory(device) / sharing
