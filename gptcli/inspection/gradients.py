"""Gradient norms by layer and component, with the residual connections and without."""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.gpt import GPTModel

COMPONENTS = ("attention", "feed-forward", "norms")
_COMPONENT_OF = {"attn": "attention", "mlp": "feed-forward", "ln_1": "norms", "ln_2": "norms"}

# The course's example: five linear layers with these input and output widths, one input, torch.manual_seed(123).
DEMO_SIZES = (3, 3, 3, 3, 3, 1)
DEMO_INPUT = (1.0, 0.0, -1.0)
DEMO_SEED = 123


def gradient_norms(model: GPTModel, ids: Tensor, shortcuts: bool = True) -> dict[str, Any]:
    """L2 norms of the gradients of the mean next-token loss over ids (T), after one backward pass.

    Args:
        model: in eval mode; its gradients are None afterwards.
        ids: (T), at least two tokens.
        shortcuts: whether to keep the residual connections; without them each block is
            mlp(ln_2(attn(ln_1(x)))).

    Returns:
        "loss" in nats a token; "layers", a dict of COMPONENTS to one norm per layer; "token vectors" (the output head
        included where weights are tied), "position vectors", "final norm", and "output head" where it is untied.
    """
    ids = ids.to(model.device)
    with ExitStack() as hooks:
        if not shortcuts:
            for block in model.h:
                hooks.enter_context(block.register_forward_hook(_without_shortcuts))
        with torch.enable_grad():
            loss = F.cross_entropy(model(ids[None, :-1])[0], ids[1:])
            loss.backward()
    try:
        layers = {
            component: [
                _norm(p for name, p in block.named_parameters() if _COMPONENT_OF[name.split(".")[0]] == component)
                for block in model.h
            ]
            for component in COMPONENTS
        }
        result = {
            "loss": float(loss.detach()),
            "layers": layers,
            "token vectors": _norm([model.wte.weight]),
            "position vectors": _norm([model.wpe.weight]),
            "final norm": _norm(model.ln_f.parameters()),
        }
        if not model.config.tie_weights:
            result["output head"] = _norm([model.lm_head.weight])
    finally:
        model.zero_grad(set_to_none=True)
    return result


def _without_shortcuts(block: Any, inputs: tuple[Any, ...], _output: Tensor) -> Tensor:
    """A forward hook that replaces a block's output by that of its layers without residual connections."""
    after_attention: Tensor = block.attn(block.ln_1(inputs[0]), *inputs[1:])
    result: Tensor = block.mlp(block.ln_2(after_attention))
    return result


def _norm(parameters: Iterable[Tensor]) -> float:
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def demo(shortcuts: bool) -> list[float]:
    """The course's demonstration: mean absolute weight gradient of each of five layers (linear, GELU in its tanh form).

    The loss is the squared error against 0; with shortcuts, a layer of equal input and output width adds its input.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(DEMO_SEED)
        layers = [nn.Linear(width, next_width) for width, next_width in pairwise(DEMO_SIZES)]
        x = torch.tensor([DEMO_INPUT])
        for layer in layers:
            y = F.gelu(layer(x), approximate="tanh")
            x = x + y if shortcuts and x.shape == y.shape else y
        x.square().mean().backward()
    return [float(layer.weight.grad.abs().mean()) for layer in layers if layer.weight.grad is not None]
