"""The one training step: forward, backward and update, whatever the precision, the parts and the processes."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptcli import device as devices
from gptcli import distributed, optim
from gptcli.checkpoint import to_file
from gptcli.config import TrainConfig
from gptcli.distributed import ALONE, World
from gptcli.loss import chunked_cross_entropy
from gptcli.model import GPTModel

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


class Stepper:
    """A model with all it takes to train it.

    Args:
        model: on its device; with ``config.shard`` its parameters become shards.
        config: how to train.
        world: the processes that share every step.
    """

    def __init__(self, model: GPTModel, config: TrainConfig, world: World = ALONE) -> None:
        self.model, self.config, self.world = model, config, world
        self.notes: list[str] = []
        model.recompute = config.recompute
        self.dtype = dtype = devices.DTYPES[config.dtype]
        self.loss: nn.Module = distributed.wrap(MeanLoss(model), model, world, shard=config.shard)
        self.optimizers = optim.make_optimizers(model, config)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=dtype == torch.float16)
        self._compiled: Callable[..., Tensor] | None = torch.compile(self.loss) if config.compile else None

    def step(self, inputs: Tensor, targets: Tensor, rate: float) -> Outcome:
        """One update at learning rate ``rate`` on this process's windows, inputs and targets (B, T).

        A loss or a gradient that is not finite changes no weight.
        """
        parts = min(self.config.accumulate, len(inputs))
        loss = torch.zeros((), device=self.model.device)
        for number, (x, y) in enumerate(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)):
            with self.world.waiting(self.loss, number < parts - 1):
                part = self.forward(x, y) * (len(x) / len(inputs))
                self.scaler.scale(part).backward()
            loss += part.detach()
        value = self.world.mean(loss)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = devices.whole(optim.total_norm(gradients))
        grad_norm = float(norm)
        updated = math.isfinite(value) and math.isfinite(grad_norm)
        if updated:
            if 0 < self.config.grad_clip < grad_norm:  # otherwise it would be a pass over all gradients for nothing
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.grad_clip, norm)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                self.scaler.step(optimizer)
        excused = math.isfinite(value) and self.scaler.is_enabled() and self.scaler.get_scale() > 1
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)  # gradients would only take room during the next forward pass
        return Outcome(value, grad_norm, updated, excused)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of inputs and targets (B, T), in the precision of training."""
        inputs, targets = inputs.to(self.model.device), targets.to(self.model.device)
        with self._autocast():
            if self._compiled is not None:
                try:
                    return self._compiled(inputs, targets)
                except Exception as error:  # the compiler, its C++ compiler or a graph it cannot make
                    self._compiled = None
                    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self.notes.append(f"--compile failed and is left out: {first}")
            loss: Tensor = self.loss(inputs, targets)
            return loss

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors as a checkpoint holds them; every process has to ask."""
        return to_file(self.model)

    def state(self) -> dict[str, Tensor]:
        """The optimizers' state and every process's random numbers; every process has to ask."""
        tensors = optim.state_tensors(self.model, self.optimizers)
        for rank, state in enumerate(self.world.gather(torch.get_rng_state())):
            tensors[f"{RANDOM}/cpu/{rank}"] = state
        if self.model.device.type == "cuda":
            for rank, state in enumerate(self.world.gather(torch.cuda.get_rng_state(self.model.device))):
                tensors[f"{RANDOM}/cuda/{rank}"] = state
        return tensors

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor], state: dict[str, Tensor], scaler: dict[str, float]) -> None:
        """Go back to what `weights` and `state` said; without a state, to a fresh start from ``weights``."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(devices.placed_like(weights[name], parameter))
        own = {name: tensor for name, tensor in state.items() if not name.startswith(RANDOM + "/")}
        optim.load_state_tensors(self.model, self.optimizers, own)
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
