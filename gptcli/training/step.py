"""The one training step: forward, backward and update, whatever the precision, the parts and the processes."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from gptcli.checkpoints.checkpoint import to_file
from gptcli.config.training import TrainConfig
from gptcli.device import placement
from gptcli.model.cost import training_flops_rule
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import chunked_cross_entropy
from gptcli.training import distributed, optimizers
from gptcli.training.block_compiler import CompiledBlocks
from gptcli.training.distributed import ALONE, World
from gptcli.training.step_graph import HOST_BOUND, WARM_UP_STEPS, StepGraph

RANDOM = "random"


@dataclass(frozen=True)
class Outcome:
    """What a step did.

    Attributes:
        loss, grad_norm: in nats, and the gradient's norm; both before the update.
        updated: False where one of them was not finite: no weight has changed.
        excused: the loss was fine, and float16's gradients overflowed under a scale that is now lower.
    """

    loss: float
    grad_norm: float
    updated: bool
    excused: bool = False


class MeanLoss(nn.Module):
    """inputs and targets (B, T) -> the mean loss in nats a token; what is compiled, wrapped and shared out."""

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(self.model.hidden(inputs), self.model.head, targets)


def _line(error: Exception) -> str:
    """What went wrong; torch's compiler says so in its second line."""
    return " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__


class Launched(Protocol):
    """A step on its way."""

    def outcome(self) -> Outcome:
        """What it did; waits until that is known."""


class OnDevice:
    """A step that the device may still be at work on: the host reads loss and norm when it needs them."""

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
    """A step that the host has waited for."""

    result: Outcome

    def outcome(self) -> Outcome:
        """As `Launched.outcome`."""
        return self.result


class Stepper:
    """A model with all it takes to train it.

    Args:
        model: on its device; with ``config.shard`` its parameters become shards.
        config: how to train; blocks are compiled where ``config.compile`` is True.
        world: the processes that share every step.

    Attributes:
        is_late: whether a step's outcome is better read after the next step was launched: on a GPU, which then never
            waits for the host. Clipping and skipping happen on the device.
        notes: what a user should know, a line each; the reader empties it.
    """

    def __init__(self, model: GPTModel, config: TrainConfig, world: World = ALONE) -> None:
        self.model, self.config, self.world = model, config, world
        self.notes: list[str] = []
        model.recompute = config.recompute
        self.dtype = dtype = placement.DTYPES[config.dtype]
        self.loss: nn.Module = distributed.wrap(MeanLoss(model), model, world, shard=config.shard)
        self.optimizers = optimizers.make_optimizers(model, config)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=dtype == torch.float16)
        self.is_late = (
            model.device.type == "cuda"
            and config.optimizer in optimizers.SKIP_ON_DEVICE
            and world.size == 1  # nobody has tried it with several
            and not self.scaler.is_enabled()
        )
        self._steps, self._graph = 0, cast(StepGraph | None, None)
        self._compiled = CompiledBlocks() if config.compile else None
        if self._compiled is not None:
            model.run_block = self._compiled

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> Outcome:
        """`launch`, and wait for what the step did."""
        return self.launch(inputs, targets, rate).outcome()

    def launch(self, inputs: Tensor, targets: Tensor, rate: float) -> Launched:
        """One update at learning rate ``rate`` on this process's windows, inputs and targets (B, T).

        A loss or a gradient that is not finite changes no weight.
        """
        inputs, targets = (placement.sent(tensor, self.model.device) for tensor in (inputs, targets))
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if not self.is_late:
            loss = self._gradients(inputs, targets)
            result = self._update(loss)
            self._forget_gradients()
            return Done(result)
        self._capture_if_due(inputs, targets)
        self._steps += 1
        if self._graph is not None and self._graph.fits(inputs):
            return OnDevice(*self._graph.replay(inputs, targets))
        return OnDevice(*self._compute(inputs, targets))

    def _compute(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A step of which the host knows nothing yet: loss and gradient norm, scalars on the device."""
        found = self._update_on_device(self._gradients(inputs, targets))
        self._forget_gradients()
        return found

    def _gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward pass, part by part; this process's mean loss."""
        parts = min(self.config.accumulate, len(inputs))
        loss = torch.zeros((), device=self.model.device)
        for number, (x, y) in enumerate(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)):
            with self.world.waiting(self.loss, number < parts - 1):
                loss += self._backward(x, y, len(x) / len(inputs))
        return loss

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)  # they would only take room during the next forward pass

    def _capture_if_due(self, inputs: Tensor, targets: Tensor) -> None:
        if self._steps != WARM_UP_STEPS or not self._captures(inputs):
            return
        try:
            self._graph = StepGraph(self._compute, inputs, targets)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.notes.append(f"No CUDA graph of a step could be captured, training goes on without: {_line(error)}")
            self._forget_gradients()

    def _captures(self, inputs: Tensor) -> bool:
        """Whether the host would be slower than the device, and nothing stands against a graph."""
        flops = training_flops_rule(self.model.config) * inputs.numel()
        return self.model.device.type == "cuda" and flops < HOST_BOUND and not self.config.recompute

    def _backward(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Add the gradients of a part that is this share of the step; its share of the loss."""
        unproven = self._compiled is not None and not self._compiled.proven
        try:
            part = self.forward(inputs, targets) * share
            self.scaler.scale(part).backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler, its C compiler, or a graph that it cannot make
            if not unproven or self.world.size > 1:
                raise
            self.notes.append(f"The blocks could not be compiled, training goes on without: {_line(error)}")
            self._compiled, self.model.run_block = None, nn.Module.__call__
            self.model.zero_grad(set_to_none=True)
            return self._backward(inputs, targets, share)
        if self._compiled is not None:
            self._compiled.proven = True
        return part.detach()

    def _update(self, loss: Tensor) -> Outcome:
        """The optimizers' step, once the host has seen that loss and gradients are finite."""
        value = self.world.mean(loss)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = placement.whole(optimizers.total_norm(self._all_gradients()))
        grad_norm = float(norm)
        updated = math.isfinite(value) and math.isfinite(grad_norm)
        if updated:
            if 0 < self.config.grad_clip < grad_norm:  # otherwise it would be a pass over all gradients for nothing
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.grad_clip, norm)
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        excused = math.isfinite(value) and self.scaler.is_enabled() and self.scaler.get_scale() > 1
        self.scaler.update()
        return Outcome(value, grad_norm, updated, excused)

    def _update_on_device(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The optimizers' step without a look at loss or norm: their kernels clip, and skip what is not finite."""
        norm = optimizers.total_norm(self._all_gradients())
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        clip = self.config.grad_clip
        divisor = ((norm + 1e-6) / clip).clamp(min=1.0) if clip > 0 else None  # as torch's clip_grad_norm_ has it
        for optimizer in self.optimizers:
            optimizers.step_on_device(optimizer, divisor, (~finite).float())
        return loss, norm

    def _all_gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of inputs and targets (B, T), in the precision of training."""
        inputs, targets = (placement.sent(tensor, self.model.device) for tensor in (inputs, targets))
        with self._autocast():
            loss: Tensor = self.loss(inputs, targets)
            return loss

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors as a checkpoint holds them; every process has to ask."""
        return to_file(self.model)

    def state(self) -> dict[str, Tensor]:
        """The optimizers' state and every process's random numbers; every process has to ask."""
        tensors = optimizers.state_tensors(self.model, self.optimizers)
        for rank, state in enumerate(self.world.gather(torch.get_rng_state())):
            tensors[f"{RANDOM}/cpu/{rank}"] = state
        if self.model.device.type == "cuda":
            for rank, state in enumerate(self.world.gather(torch.cuda.get_rng_state(self.model.device))):
                tensors[f"{RANDOM}/cuda/{rank}"] = state
        return tensors

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor], state: dict[str, Tensor], scaler: dict[str, float]) -> None:
        """Go back to what `weights` and `state` said; without a state, to a fresh start from ``weights``."""
        self._steps, self._graph = 0, None  # the optimizer's state will lie elsewhere
        for name, parameter in self.model.named_parameters():
            parameter.copy_(placement.placed_like(weights[name], parameter))
        own = {name: tensor for name, tensor in state.items() if not name.startswith(RANDOM + "/")}
        optimizers.load_state_tensors(self.model, self.optimizers, own)
        if scaler:
            self.scaler.load_state_dict(scaler)
        torch.manual_seed(self.config.seed + self.world.rank)
        rank = self.world.rank
        if f"{RANDOM}/cpu/{rank}" in state:
            torch.set_rng_state(state[f"{RANDOM}/cpu/{rank}"].clone())
        if f"{RANDOM}/cuda/{rank}" in state and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(state[f"{RANDOM}/cuda/{rank}"].clone(), self.model.device)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.model.device.type, self.dtype)
