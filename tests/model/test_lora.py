"""Adapters: their gradients and first step by the formula, what is frozen, and the memory that they do not take."""

import copy
from typing import Any

import pytest
import torch
from models import tiny_config, tiny_model

from gptcli.config.lora import TARGETS, LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.errors import SettingError
from gptcli.model import quantized
from gptcli.model.cost import training_memory
from gptcli.model.gpt import GPTModel, Linear
from gptcli.model.lora import LoRALinear, add_adapters, is_adapted
from gptcli.model.loss import chunked_cross_entropy
from gptcli.model.parameters import adapter_size
from gptcli.model.quantization import is_packed_name, packed, unpacked
from gptcli.model.quantized import packed_base
from gptcli.training.step import Stepper

IDS = torch.randint(61, (3, 21), generator=torch.Generator().manual_seed(4))


def loss_of(model: GPTModel) -> torch.Tensor:
    return chunked_cross_entropy(model.hidden(IDS[:, :-1]), model.head, IDS[:, 1:])


def change(layer: LoRALinear) -> torch.Tensor:
    """What the adapter adds to W (in, out)."""
    return layer.scale * layer.lora_A.T @ layer.lora_B.T


def test_the_first_step_is_the_full_gradient_projected_on_the_rows_of_a() -> None:
    full = tiny_model()
    adapted, rate = copy.deepcopy(full), 0.1
    add_adapters(adapted, LoRAConfig(5, 12.0), seed=7)
    assert torch.equal(loss_of(adapted), loss_of(full)), "B is 0 at first"
    loss_of(full).backward()
    recipe = RecipeConfig(optimizer="sgd", beta1=0.0, weight_decay=0.0, grad_clip=0.0)
    before = copy.deepcopy(adapted.state_dict())
    Stepper(adapted, recipe).step(IDS[:, :-1], IDS[:, 1:], rate)
    count = 0
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoRALinear):
            gradient = full.get_parameter(f"{name}.weight").grad
            assert gradient is not None
            a = before[f"{name}.lora_A"]
            expected = -rate * layer.scale**2 * a.T @ (a @ gradient)
            assert (change(layer) - expected).abs().max() < 1e-5
            assert expected.abs().max() > 1e-3, "else the test shows nothing"
            assert torch.equal(layer.lora_A, a), "its gradient is 0 where B is"
            count += 1
    assert count == len(TARGETS) * 2
    changed = {name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("lora_B")}


def test_gradients_are_autograds() -> None:
    torch.manual_seed(0)
    base = Linear(6, 10).double()
    torch.nn.init.normal_(base.weight)
    torch.nn.init.normal_(base.bias)
    layer = LoRALinear(base.requires_grad_(False), 6, 10, LoRAConfig(3, 5.0), torch.Generator().manual_seed(1)).double()
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = base(x) + 5 / 3 * (x @ layer.lora_A.T) @ layer.lora_B.T
    found = layer(x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    theirs = torch.autograd.grad((expected * weights).sum(), [x, layer.lora_A, layer.lora_B])
    ours = torch.autograd.grad((found * weights).sum(), [x, layer.lora_A, layer.lora_B])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_only_the_adapters_have_gradients_and_state() -> None:
    model = tiny_model()
    assert not is_adapted(model)
    add_adapters(model, LoRAConfig(2, 4.0, ("attn.c_attn", "mlp.c_proj")), seed=1)
    assert is_adapted(model)
    stepper = Stepper(model, RecipeConfig())
    stepper.step(IDS[:, :-1], IDS[:, 1:], 1e-3)
    trained = {name.rpartition("/")[0] for name in stepper.state() if "/" in name}
    expected = {
        f"h.{layer}.{target}.lora_{factor}"
        for layer in range(2)
        for target in ("attn.c_attn", "mlp.c_proj")
        for factor in "AB"
    }
    assert {name for name in trained if not name.startswith("random")} == expected
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected


def test_the_seed_alone_decides_the_factors() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())  # type: ignore[no-untyped-call]
        model = GPTModel(tiny_config())
        add_adapters(model, LoRAConfig(), seed)
        return model.get_parameter("h.1.mlp.c_fc.lora_A")

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert drawn(3).abs().max() <= 42**-0.5


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_with_dropout_and_recomputing_learns(recompute: bool) -> None:
    model = tiny_model(drop_rate=0.1).train()
    add_adapters(model, LoRAConfig(), seed=1)
    model.recompute = recompute
    stepper = Stepper(model, RecipeConfig())
    losses = [stepper.step(IDS[:, :-1], IDS[:, 1:], 1e-2, number).loss for number in range(6)]
    assert losses[-1] < losses[0] - 0.3


def test_targets_by_their_shortest_clear_names() -> None:
    assert LoRAConfig(targets=("c_fc", "attn.c_proj", "c_attn")).targets == ("attn.c_attn", "attn.c_proj", "mlp.c_fc")
    for wrong, words in ((("c_proj",), "attn.c_proj or mlp.c_proj"), (("wte",), "no matrix 'wte'"), ((), "no matrix")):
        with pytest.raises(SettingError, match=words):
            LoRAConfig(targets=wrong)
    for settings, words in (({"rank": 0}, "rank 0"), ({"alpha": 0.0}, "lora_alpha"), ({"alpha": float("nan")}, "nan")):
        with pytest.raises(SettingError, match=words):
            LoRAConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_base_has_the_gradients_of_its_unpacked_weights(bits: Any, tied: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(quantized, "SLICE", 42 * 50)  # a matrix in several slices
    source = tiny_model(tie_weights=tied)
    arrays = {name: tensor.numpy() for name, tensor in source.state_dict().items()}
    arrays = {name: packed(name, a, bits) if is_packed_name(name) else a for name, a in arrays.items()}  # type: ignore[misc]
    packed_model = packed_base(source.config, arrays, bits, "cpu")
    plain = GPTModel(source.config, init=None)
    plain.load_state_dict({name: torch.from_numpy(unpacked(name, array)) for name, array in arrays.items()})
    losses, gradients = [], []
    for model in (packed_model, plain):
        add_adapters(model, LoRAConfig(3, 6.0), seed=1)
        torch.manual_seed(5)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            torch.nn.init.normal_(parameter, std=0.1)
        losses.append(loss_of(model))
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in trained.items()})
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    assert len(gradients[0]) == 16
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)
    held = sum(b.nbytes for b in packed_model.buffers())
    assert held < sum(p.nbytes for name, p in plain.named_parameters() if ".base." in name) / 2.5


def test_the_forecast_counts_what_is_trained() -> None:
    config, adapter = GPTConfig(), LoRAConfig()
    model = GPTModel(tiny_config())
    add_adapters(model, adapter, 1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_size(tiny_config(), adapter) == trained
    full, low = training_memory(config, 4, 256), training_memory(config, 4, 256, adapter=adapter)
    assert low.optimizer == 8 * adapter_size(config, adapter)
    assert low.peak < 0.55 * full.peak
    packed_too = training_memory(config, 4, 256, adapter=LoRAConfig(base_bits=8))
    assert 0.45 < packed_too.weights / low.weights < 0.5, "a third of small are its embeddings"
