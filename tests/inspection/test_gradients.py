"""Gradients with the residual connections, without, and the course's example."""

from typing import Any

import pytest
import torch
from models import tiny_model
from torch import Tensor
from torch.nn import functional as F

from gptcli.inspection import gradients
from gptcli.model.gpt import GPTModel

IDS = torch.randint(61, (11,), generator=torch.Generator().manual_seed(5))


def loss_of(model: GPTModel, shortcuts: bool) -> Tensor:
    x = model.wte(IDS[None, :-1]) + model.wpe.weight[:10]
    for block in model.h:
        added = block.attn(block.ln_1(x))
        x = x + added if shortcuts else added
        added = block.mlp(block.ln_2(x))
        x = x + added if shortcuts else added
    return F.cross_entropy(F.linear(model.ln_f(x), model.head)[0], IDS[1:])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_norms_are_those_of_the_model_written_out(shortcuts: bool, tied: bool) -> None:
    model = tiny_model(tie_weights=tied)
    found = gradients.gradient_norms(model, IDS, shortcuts)
    assert all(p.grad is None for p in model.parameters())
    assert not any(block._forward_hooks for block in model.h)
    loss = loss_of(model, shortcuts)
    loss.backward()

    def norm(name: str) -> float:
        return float(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if n.startswith(name)]).norm())

    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["token vectors"] == pytest.approx(norm("wte"), rel=1e-4)
    assert found["position vectors"] == pytest.approx(norm("wpe"), rel=1e-4)
    assert found["final norm"] == pytest.approx(norm("ln_f"), rel=1e-4)
    assert ("output head" in found) != tied
    for n in range(2):
        assert found["layers"]["attention"][n] == pytest.approx(norm(f"h.{n}.attn"), rel=1e-4)
        assert found["layers"]["feed-forward"][n] == pytest.approx(norm(f"h.{n}.mlp"), rel=1e-4)
        assert found["layers"]["norms"][n] == pytest.approx(norm(f"h.{n}.ln"), rel=1e-4)


@pytest.mark.parametrize("shortcuts", [True, False])
def test_the_demonstration_is_the_courses(course_numbers: dict[str, Any], shortcuts: bool) -> None:
    name = f"mean_abs_weight_gradient_{'with' if shortcuts else 'without'}_shortcuts"
    before = torch.random.get_rng_state()
    assert gradients.demo(shortcuts) == pytest.approx(course_numbers["gradient_flow"][name], rel=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)
