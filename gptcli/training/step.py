"""The training step: forward, backward and update, for every precision, number of parts and of processes."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from gptcli.checkpoints.checkpoint import in_file_form, to_file
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import DEFAULT_RUNTIME, RuntimeConfig
from gptcli.device import allocator, placement
from gptcli.model.cost import training_flops_rule
from gptcli.model.dropout_mask import step_seeds
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import counted
from gptcli.training import distributed, optimizers
from gptcli.training.block_compiler import CompiledBlocks
from gptcli.training.distributed import ALONE, World
from gptcli.training.losses import MeanLoss
from gptcli.training.step_graph import HOST_BOUND, WARM_UP_STEPS, StepGraph
from gptcli.training.weight_average import TRAINED, WeightAverage

RANDOM = "random"


@dataclass(frozen=True)
class Outcome:
    """The result of a step.

    Attributes:
        loss, grad_norm: in nats a token, and the L2 norm of the gradient before clipping; both before the update.
        updated: False where one of them is not finite: no weight has changed.
        excused: not counted as a bad step: the loss is finite and the float16 loss scale can still be lowered.
    """

    loss: float
    grad_norm: float
    updated: bool
    excused: bool = False


def _line(error: Exception) -> str:
    """The first two lines of the message, as one: torch's compiler names the cause in the second."""
    return " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__


def _raise_if_out_of_memory(error: Exception) -> None:
    """Raise torch.OutOfMemoryError where memory has run out, also inside torch's compiler."""
    told = allocator.out_of_memory(error)
    if told is not None:
        raise torch.OutOfMemoryError(told) from error


class Launched(Protocol):
    """A step that has been launched and may not be finished."""

    def outcome(self) -> Outcome:
        """The result of the step; waits until the step is finished."""


class OnDevice:
    """A step that the device may still be computing; loss and norm are copied to the host without blocking it."""

    def __init__(self, loss: Tensor, norm: Tensor) -> None:
        self._values = torch.stack([loss, norm]).to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if loss.device.type == "cuda" else None
        if self._copied is not None:
            self._copied.record()

    def outcome(self) -> Outcome:
        """As `Launched.outcome`."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, norm = self._values.tolist()
        return Outcome(loss, norm, math.isfinite(loss) and math.isfinite(norm))


@dataclass(frozen=True)
class Done:
    """A step that is finished."""

    result: Outcome

    def outcome(self) -> Outcome:
        """As `Launched.outcome`."""
        return self.result


class Stepper:
    """A model with its optimizers, gradient scaler, compiled or captured step, and the average of its weights.

    Args:
        model: on its device; its parameters may be shards (`distributed.shard`).
        recipe: how to train.
        runtime: how to compute; blocks are compiled where its ``compile`` is True.
        world: the processes that share every step.
        loss: a module over ``model`` that maps inputs, targets and dropout's seeds to a mean loss; None for that of
            windows, in which every token has a target.

    Attributes:
        is_late: whether to read a step's outcome only after the launch of the next one, so that the GPU never waits
            for the host. Clipping and skipping then run on the device.
        average: the average of the weights, of every launched step; nothing where the recipe has none.
        notes: lines to report to the user; the caller reads and clears them.
    """

    def __init__(
        self,
        model: GPTModel,
        recipe: RecipeConfig,
        runtime: RuntimeConfig = DEFAULT_RUNTIME,
        world: World = ALONE,
        loss: nn.Module | None = None,
    ) -> None:
        self.model, self.recipe, self.runtime, self.world = model, recipe, runtime, world
        self._of_windows = loss is None
        self.notes: list[str] = []
        model.recompute = runtime.recompute
        self.dtype = dtype = placement.training_precision(recipe.dtype, model.device).dtype
        self.loss: nn.Module = distributed.wrap(loss or MeanLoss(model), model, world)
        self.is_sharded = distributed.is_sharded(model)
        self.optimizers = optimizers.make_optimizers(model, recipe)
        self.average = WeightAverage(model, recipe.average_share)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=dtype == torch.float16)
        self.is_late = (
            model.device.type == "cuda"
            and recipe.optimizer in optimizers.SKIP_ON_DEVICE
            and world.size == 1  # not tested with several
            and not self.scaler.is_enabled()
        )
        self._steps, self._graph = 0, cast(StepGraph | None, None)
        self._compiled = CompiledBlocks() if runtime.compile else None
        if self._compiled is not None:
            model.run_block = self._compiled

    def step(self, inputs: Tensor, targets: Tensor, rate: float, number: int = 0) -> Outcome:
        """Call `launch` and wait for the outcome."""
        return self.launch(inputs, targets, rate, number).outcome()

    def launch(
        self, inputs: Tensor, targets: Tensor, rate: float, number: int = 0, total: float | None = None
    ) -> Launched:
        """One update on this process's part of a step. A loss or a gradient that is not finite changes no weight.

        Args:
            inputs, targets: (B, T).
            rate: the learning rate.
            number: the step's in the run; on a CPU it and the seed decide what dropout drops. The average needs it too.
            total: how many targets have a loss in all processes' parts together; None where every window has as many.
        """
        inputs, targets = (placement.sent(tensor, self.model.device) for tensor in (inputs, targets))
        optimizers.set_rates(self.optimizers, self.recipe, rate, number)
        launched: Launched
        if self.is_late:
            launched = self._launch_on_device(inputs, targets, total)
        else:
            loss = self._gradients(inputs, targets, number, total)
            launched = Done(self._update(loss))
            self._forget_gradients()
        self.average.update(number)
        return launched

    def _launch_on_device(self, inputs: Tensor, targets: Tensor, total: float | None) -> OnDevice:
        self._capture_if_due(inputs, targets)
        self._steps += 1
        if self._graph is not None and self._graph.fits(inputs):
            return OnDevice(*self._graph.replay(inputs, targets))
        return OnDevice(*self._compute(inputs, targets, total))

    def _compute(self, inputs: Tensor, targets: Tensor, total: float | None = None) -> tuple[Tensor, Tensor]:
        """A step without a wait of the host: loss and gradient norm, scalars on the device."""
        found = self._update_on_device(self._gradients(inputs, targets, total=total))
        self._forget_gradients()
        return found

    def _gradients(self, inputs: Tensor, targets: Tensor, number: int = 0, total: float | None = None) -> Tensor:
        """Forward and backward pass, part by part; returns a scalar whose mean over the processes is the loss."""
        parts, count = min(self.runtime.accumulate or 1, len(inputs)), len(inputs)
        loss, done = torch.zeros((), device=self.model.device), 0
        for x, y in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
            seeds = self._seeds(number, self.world.rank * count + done, len(x))
            done += len(x)
            share = len(x) / count if total is None else counted(y) * self.world.size / total
            with self.world.waiting(self.loss, done < count):
                loss += self._backward(x, y, share, seeds)
        return loss

    def _seeds(self, step: int, first_window: int, windows: int) -> Tensor | None:
        """Dropout's seeds for some of a step's windows; None on a GPU, whose kernels have their own generator."""
        if self.model.device.type != "cpu" or self.model.config.drop_rate == 0:
            return None
        return step_seeds(self.recipe.seed, step, first_window, windows, self.model.config.n_layers)

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)  # frees their memory for the next forward pass

    def _capture_if_due(self, inputs: Tensor, targets: Tensor) -> None:
        if self._steps != WARM_UP_STEPS or not self._captures(inputs):
            return
        try:
            self._graph = StepGraph(self._compute, inputs, targets)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            self.notes.append(
                f"No CUDA graph of a step could be captured, training continues without it: {_line(error)}"
            )
            self._forget_gradients()

    def _captures(self, inputs: Tensor) -> bool:
        """Whether launching a step takes longer than computing it (`HOST_BOUND`), and the step can be captured."""
        flops = training_flops_rule(self.model.config) * inputs.numel()
        may = self.model.device.type == "cuda" and self._of_windows and not self.runtime.recompute
        return may and flops < HOST_BOUND

    def _backward(self, inputs: Tensor, targets: Tensor, share: float, seeds: Tensor | None) -> Tensor:
        """Add the gradients of a part that counts ``share`` of the step's loss; returns its loss times ``share``."""
        unproven = self._compiled is not None and not self._compiled.proven
        try:
            part = self.forward(inputs, targets, seeds) * share
            self.scaler.scale(part).backward()
        except Exception as error:  # from torch.compile, its C compiler, or an untraceable block
            _raise_if_out_of_memory(error)
            if not unproven or self.world.size > 1:
                raise
            self.notes.append(f"The blocks could not be compiled, training continues without it: {_line(error)}")
            self._compiled, self.model.run_block = None, nn.Module.__call__
            self.model.zero_grad(set_to_none=True)
            return self._backward(inputs, targets, share, seeds)
        if self._compiled is not None:
            self._compiled.proven = True
        return part.detach()

    def _update(self, loss: Tensor) -> Outcome:
        """The optimizers' step, if loss and gradient norm, read by the host, are finite."""
        value = self.world.mean(loss)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = placement.whole(optimizers.total_norm(self._all_gradients()))
        grad_norm = float(norm)
        updated = math.isfinite(value) and math.isfinite(grad_norm)
        if updated:
            if 0 < self.recipe.grad_clip < grad_norm:  # spares a pass over all gradients
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.grad_clip, norm)
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        excused = math.isfinite(value) and self.scaler.is_enabled() and self.scaler.get_scale() > 1
        self.scaler.update()
        return Outcome(value, grad_norm, updated, excused)

    def _update_on_device(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The optimizers' step without reading loss or norm on the host: the kernels clip, and skip if not finite."""
        norm = optimizers.total_norm(self._all_gradients())
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        clip = self.recipe.grad_clip
        divisor = ((norm + 1e-6) / clip).clamp(min=1.0) if clip > 0 else None  # as in clip_grad_norm_
        for optimizer in self.optimizers:
            optimizers.step_on_device(optimizer, divisor, (~finite).float())
        return loss, norm

    def _all_gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def forward(self, inputs: Tensor, targets: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The mean loss of inputs and targets (B, T), in the precision of training; ``seeds`` as in `MeanLoss`."""
        inputs, targets = (placement.sent(tensor, self.model.device) for tensor in (inputs, targets))
        with self._autocast():
            loss: Tensor = self.loss(inputs, targets, seeds)
            return loss

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors in a checkpoint's format, with the average where there is one.

        Of shards it is what this process writes (`distributed.own_rows`).
        """
        if not self.is_sharded:
            return to_file(self.model, self.model.state_dict() | self.average.mean)
        return distributed.own_rows(in_file_form(self.model.config, self.model.state_dict()), self.world)

    def state(self) -> dict[str, Tensor]:
        """The state of the optimizers and of every GPU's random number generator, and the trained weights where
        `weights` has an average in their place; every process must call it.

        Of shards it is what this process writes (`distributed.own_rows`).
        """
        tensors = optimizers.state_tensors(self.model, self.optimizers) | self.average.state()
        if self.model.device.type == "cuda":
            for rank, state in enumerate(self.world.gather(torch.cuda.get_rng_state(self.model.device))):
                tensors[f"{RANDOM}/cuda/{rank}"] = state
        if self.is_sharded:
            return distributed.own_rows(tensors, self.world)
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], scaler: Mapping[str, float]) -> None:
        """Restore the results of `weights` and `state`, whole; an empty state gives new optimizers and seeds."""
        self._steps, self._graph = 0, None  # the graph holds addresses of the old optimizer state
        for name, parameter in self.model.named_parameters():
            trained = f"{TRAINED}/{name}"
            if trained in state:
                parameter.copy_(state[trained])
            elif parameter.requires_grad or name in weights:
                parameter.copy_(placement.placed_like(weights[name], parameter))
        self.average.take(weights)
        optimizers.load_state_tensors(self.model, self.optimizers, state)
        if scaler:
            self.scaler.load_state_dict(dict(scaler))
        torch.manual_seed(self.recipe.seed + self.world.rank)
        generator = state.get(f"{RANDOM}/cuda/{self.world.rank}")
        if generator is not None and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(generator.clone(), self.model.device)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.model.device.type, self.dtype)
