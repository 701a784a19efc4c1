"""What inspection shows is what the model computes."""

from pathlib import Path

import pytest
import torch
from models import tiny_checkpoint, tiny_model
from torch import Tensor

from gptcli.inspection.capture import Capture, capture
from gptcli.model.gpt import GPTModel, KVCache

VARIANTS = [
    {},
    {"qkv_bias": False, "tie_weights": False},
    {"scale_attn": False, "scale_attn_by_layer": True, "activation": "relu"},
    {"n_heads": 1, "n_layers": 3},
]


def ids_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (length,), generator=torch.Generator().manual_seed(seed))


def fused_outputs(model: GPTModel, ids: Tensor, cache: KVCache | None = None) -> tuple[Capture, list[Tensor]]:
    """A capture, and what fused attention gave to each layer's output projection: (H, T, D) each."""
    outputs: list[Tensor] = []

    def keep(_module: object, inputs: tuple[Tensor, ...]) -> None:
        outputs.append(inputs[0][0].unflatten(-1, (model.config.n_heads, -1)).transpose(0, 1))

    handles = [block.attn.c_proj.register_forward_pre_hook(keep) for block in model.h]
    captured = capture(model, ids, cache)
    for handle in handles:
        handle.remove()
    return captured, outputs


def values_of(model: GPTModel, captured: Capture) -> list[Tensor]:
    with torch.no_grad():
        return [block.attn.heads(block.ln_1(captured.stream[n][None]))[2][0] for n, block in enumerate(model.h)]


@pytest.mark.parametrize("changes", VARIANTS)
def test_weights_are_those_of_the_fused_path(changes: dict[str, object]) -> None:
    model = tiny_model(**changes)
    captured, outputs = fused_outputs(model, ids_of(17))
    assert torch.equal(captured.weights, captured.weights.tril())
    torch.testing.assert_close(captured.weights.sum(-1), torch.ones(captured.weights.shape[:-1]))
    for layer, (fused, values) in enumerate(zip(outputs, values_of(model, captured), strict=True)):
        torch.testing.assert_close(captured.weights[layer] @ values, fused, atol=1e-5, rtol=0)
        projected = model.h[layer].attn.c_proj(fused.transpose(0, 1).flatten(1))
        torch.testing.assert_close(projected.detach(), captured.attention[layer], atol=1e-5, rtol=0)


@pytest.mark.parametrize("new_tokens", [1, 4])
def test_weights_of_a_cached_step_are_the_last_rows(new_tokens: int) -> None:
    model, ids = tiny_model(), ids_of(15)
    whole = capture(model, ids)
    cache = KVCache(model.config)
    capture(model, ids[:-new_tokens], cache)
    step, outputs = fused_outputs(model, ids[-new_tokens:], cache)
    assert step.weights.shape == (2, 3, new_tokens, 15)
    torch.testing.assert_close(step.weights, whole.weights[:, :, -new_tokens:], atol=1e-5, rtol=0)
    torch.testing.assert_close(step.final, whole.final[-new_tokens:], atol=1e-4, rtol=1e-4)
    for layer, (fused, values) in enumerate(zip(outputs, values_of(model, whole), strict=True)):
        torch.testing.assert_close(step.weights[layer] @ values, fused, atol=1e-5, rtol=0)


def test_the_residual_stream_adds_up() -> None:
    model, ids = tiny_model(), ids_of(9)
    captured = capture(model, ids)
    torch.testing.assert_close(captured.stream[0], captured.tokens + captured.positions)
    for layer in range(2):
        after = captured.stream[layer] + captured.attention[layer] + captured.feed_forward[layer]
        torch.testing.assert_close(captured.stream[layer + 1], after)
    with torch.no_grad():
        torch.testing.assert_close(captured.final @ model.head.T, model(ids[None])[0], atol=1e-5, rtol=1e-5)


def test_capturing_leaves_no_hook_behind_and_can_leave_the_weights_out() -> None:
    model = tiny_model()
    assert capture(model, ids_of(5), weights=False).weights.shape == (0, 3, 5, 5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("changes", VARIANTS)
def test_equals_hugging_face(tmp_path: Path, changes: dict[str, object]) -> None:
    """Eager attention weights and hidden states of transformers, which opens our directory as it is."""
    transformers = pytest.importorskip("transformers")
    from gptcli.checkpoints import checkpoint

    path = tiny_checkpoint(tmp_path / "tiny", spread=0.05, **changes)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path, attn_implementation="eager").eval()
    ids = ids_of(17)
    with torch.no_grad():
        answer = theirs(ids[None], output_attentions=True, output_hidden_states=True)
    ours = capture(checkpoint.load(path).model(), ids)
    torch.testing.assert_close(ours.weights, torch.cat(answer.attentions), atol=1e-5, rtol=0)
    # Their last hidden state has gone through the final norm; the one before it is our stream before the last block.
    hidden = torch.cat([*ours.stream[:-1, None], ours.final[None]])
    torch.testing.assert_close(hidden, torch.cat(answer.hidden_states), atol=1e-5, rtol=1e-5)
