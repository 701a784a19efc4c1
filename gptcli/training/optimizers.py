"""The optimizers by name, their weight decay groups and saved state, and the learning rate of every step."""

import inspect
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.config.recipe import RecipeConfig
from gptcli.device.placement import placed_like, whole

# torch wraps these methods to exclude them from torch.compile; the first call imports the compiler, in 1.5 s.
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")

SKIP_ON_DEVICE = frozenset({"adamw", "adam"})  # see step_on_device; SGD's kernel skips wrongly
MUON_MOMENTUM, MUON_FIRST_MOMENTUM = 0.95, 0.85
EMBEDDINGS = ("wte.weight", "wpe.weight", "lm_head.weight")
MUON_SCALE = 0.2  # the typical root mean square of an AdamW update (Liu et al., 2025)


def make_optimizers(model: nn.Module, recipe: RecipeConfig) -> list[torch.optim.Optimizer]:
    """The optimizer called ``recipe.optimizer``, with weight decay on matrices only, not on biases and norms.

    - adamw: AdamW (Loshchilov & Hutter, 2019), fused.
    - adam: Adam (Kingma & Ba, 2015), fused; its weight decay is part of the gradient.
    - sgd: gradient descent with momentum ``beta1``, fused.
    - adafactor: Adafactor (Shazeer & Stern, 2018): second moments by row and column, so almost no memory.
    - muon: Muon (Jordan et al., 2024) with Nesterov's momentum for the matrices inside the blocks, its steps scaled to
      AdamW's size (Liu et al., 2025), so that one rate serves both; AdamW for embeddings, head, biases and norms.

    Returns:
        one torch optimizer, or two that update disjoint sets of parameters.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rate, betas = recipe.learning_rate, (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "muon":
        inside = [p for name, p in named if ".h." in f".{name}" and p.dim() == 2]
        chosen = {id(p) for p in inside}
        outside = {name: p for name, p in named if id(p) not in chosen}
        tables = [p for name, p in outside.items() if name.endswith(EMBEDDINGS)]
        rest = _decay_groups([p for p in outside.values() if not any(p is t for t in tables)], recipe.weight_decay)
        rest.append({"params": tables, "weight_decay": recipe.weight_decay, "factor": recipe.embedding_rate})
        muon = plain(Muon)(inside, lr=rate, weight_decay=recipe.weight_decay, momentum=MUON_MOMENTUM)
        return [muon, plain(torch.optim.AdamW)(rest, lr=rate, betas=betas, fused=True)]
    groups = _decay_groups([p for _, p in named], recipe.weight_decay)
    if recipe.optimizer == "sgd":
        # torch cannot run the fused form on shards.
        return [plain(torch.optim.SGD)(groups, lr=rate, momentum=recipe.beta1, fused=not _is_sharded(named))]
    if recipe.optimizer == "adafactor":
        adafactor = ShardedAdafactor if _is_sharded(named) else torch.optim.Adafactor
        return [plain(adafactor)(groups, lr=rate)]
    adam = plain(torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW)
    device = named[0][1].device
    if device.type != "cuda" or _is_sharded(named):
        return [adam(groups, lr=rate, betas=betas, fused=True)]
    # A learning rate in device memory, so that a captured step can be replayed with another value.
    return [adam(groups, lr=torch.tensor(rate, device=device), betas=betas, fused=True, capturable=True)]


def set_rates(optimizers: list[torch.optim.Optimizer], recipe: RecipeConfig, rate: float, step: int) -> None:
    """Set the learning rate of ``step``, and Muon's momentum, which may grow in the first steps."""
    grown = min(1.0, step / recipe.momentum_warmup) if recipe.momentum_warmup else 1.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            its_rate = rate * group.get("factor", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(its_rate)
            else:
                group["lr"] = its_rate
            if isinstance(optimizer, Muon):
                group["momentum"] = MUON_MOMENTUM - (MUON_MOMENTUM - MUON_FIRST_MOMENTUM) * (1 - grown)


@cache
def plain(kind: Any) -> Any:
    """The optimizer class ``kind`` without torch.compile's wrappers; gptcli compiles no optimizer."""
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    return type(kind.__name__, (kind,), {**bare, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The L2 norm of all gradients as one vector: a scalar tensor, a DTensor where the gradients are shards."""
    if all(type(g) is Tensor and g.device.type == "cpu" and g.is_contiguous() for g in gradients):
        squares = [torch.dot(g.view(-1), g.view(-1)) for g in gradients]  # takes half the time of norm() per tensor
        return torch.stack(squares).sum().sqrt()
    return torch.nn.utils.get_total_norm(gradients)


def step_on_device(optimizer: Any, divisor: Tensor | None, skipped: Tensor) -> None:
    """One step of an optimizer in `SKIP_ON_DEVICE`; its kernel clips and skips, so the host reads no value.

    Args:
        optimizer: with fused=True.
        divisor: float32 scalar by which the kernel divides the gradients; None for 1.
        skipped: float32 scalar, 1 to change neither weights nor state, else 0.
    """
    optimizer.grad_scale, optimizer.found_inf = divisor, skipped  # as torch.amp.GradScaler sets them
    optimizer.step()
    optimizer.grad_scale = optimizer.found_inf = None


class Muon(torch.optim.Optimizer):
    """Muon on matrices: the momentum, orthogonalised, scaled to the root mean square of AdamW's updates.

    torch.optim.Muon (2.9 and later) computes in bfloat16 only, which is several times slower on a CPU without bfloat16
    instructions, and with shards each of its fifteen products would gather a matrix. This class gathers each gradient
    once, and computes in float32 on a CPU.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix; ``closure``, part of torch's interface, is ignored."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalised(whole(parameter.grad.lerp(mean, group["momentum"])))
                rate = group["lr"] * MUON_SCALE * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(placed_like(update, parameter), alpha=-rate)


def orthogonalised(matrix: Tensor) -> Tensor:
    """``matrix`` with all its singular values near 1 (0.7 to 1.2), by the Newton-Schulz iteration.

    Five steps of X <- aX + (bA + cA²)X with A = XXᵀ and Jordan's coefficients (Jordan et al., 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class ShardedAdafactor(torch.optim.Adafactor):
    """torch's Adafactor on shards: its row and column means need whole parameters, which are gathered one at a time.

    Every process computes the same update and holds all of the means, one number per row and per column of a matrix.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter; ``closure``, part of torch's interface, is ignored."""
        for group in self.param_groups:
            settings = {name: value for name, value in group.items() if name != "params"}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                all_of_it = nn.Parameter(whole(parameter))
                all_of_it.grad = whole(parameter.grad)
                alone = torch.optim.Adafactor([all_of_it], **settings)
                alone.state[all_of_it] = self.state[parameter]
                alone.step()
                self.state[parameter] = alone.state[all_of_it]
                parameter.copy_(placed_like(all_of_it.detach(), parameter))


def _is_sharded(named: list[tuple[str, nn.Parameter]]) -> bool:
    return any(hasattr(parameter, "full_tensor") for _, parameter in named)


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of the optimizers, by "parameter/field", where it is: DTensors where it is shards."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    found = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for field, value in state.items():
                if value is not None:
                    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                    found[f"{names[parameter]}/{field}"] = tensor.detach()
    return found


def load_state_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Replace the state of the optimizers by ``tensors``, named as in `state_tensors`; all of them are whole.

    Other names are ignored. One tensor is asked for at a time.
    """
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    fields: dict[str, list[str]] = {}
    for key in tensors:
        name, _, field = key.rpartition("/")
        fields.setdefault(name, []).append(field)
    for optimizer in optimizers:
        saved = optimizer.state_dict()
        saved["state"] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            if names[parameter] not in fields:
                continue
            state = {}
            for field in fields[names[parameter]]:
                tensor = tensors[f"{names[parameter]}/{field}"]
                is_like_it = tensor.dim() > 0 and not isinstance(optimizer, ShardedAdafactor)
                # A copy in memory that torch aligns: the alignment of a mapped file could change the order of sums, and
                # the mapping would keep the file open.
                state[field] = (placed_like(tensor, parameter) if is_like_it else tensor).clone()
            saved["state"][index] = state
        optimizer.load_state_dict(saved)


def learning_rate(recipe: RecipeConfig, step: int, schedule_steps: int) -> float:
    """The learning rate of ``step`` (from 0): linear warm-up, then constant, cosine or linear decay, or wsd.

    The decay ends after ``schedule_steps`` steps at ``min_learning_rate``, which is a tenth of the peak unless given.
    wsd (warm-up, stable, decay; Hu et al., 2024) is constant up to its cooldown, which is linear. In a run for a fixed
    time it is constant until the clock has decided where the cooldown begins: the planned steps are an estimate.
    """
    peak = recipe.learning_rate
    if step < recipe.warmup_steps:
        return peak * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant" or (recipe.for_time is not None and recipe.cooldown_start is None):
        return peak
    lowest = peak / 10 if recipe.min_learning_rate is None else recipe.min_learning_rate
    if recipe.schedule == "wsd":
        start, length = cooldown(recipe, schedule_steps)
        return lowest + (peak - lowest) * (1 - min(1.0, max(0, step + 1 - start) / length))
    progress = min(1.0, (step - recipe.warmup_steps) / max(1, schedule_steps - 1 - recipe.warmup_steps))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if recipe.schedule == "cosine" else 1 - progress
    return lowest + (peak - lowest) * share


def cooldown(recipe: RecipeConfig, schedule_steps: int) -> tuple[int, int]:
    """The first step of wsd's cooldown, and the number of its steps."""
    if recipe.cooldown_start is None:
        length = max(1, round(schedule_steps * recipe.cooldown_share / (1 + recipe.cooldown_share)))
        return schedule_steps - length, length
    return recipe.cooldown_start, cooldown_length(recipe, recipe.cooldown_start)


def cooldown_length(recipe: RecipeConfig, start: int) -> int:
    """The steps of a cooldown after ``start`` steps."""
    return max(1, math.ceil(recipe.cooldown_share * start))
