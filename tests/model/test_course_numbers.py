"""Every example that the course publishes, out of our own classes, with the weights that the course gives."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.config.model import GPTConfig
from gptcli.model.gpt import FeedForward, Linear, MultiHeadAttention, attention_weights, fused_attention

Numbers = dict[str, Any]


def tensor(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def close(actual: Tensor, exact: Any, published: Any = None) -> None:
    """Equal to the exact value, and to what is printed in the course, which has four digits."""
    torch.testing.assert_close(actual, tensor(exact), atol=1e-6, rtol=1e-5)
    if published is not None:
        torch.testing.assert_close(actual, tensor(published), atol=1.01e-4, rtol=0)


def test_plain_attention(course_numbers: Numbers) -> None:
    x, case = tensor(course_numbers["inputs"]), course_numbers["plain_attention"]
    weights = torch.softmax(x @ x.T, dim=-1)
    close(weights, case["attention_weights"])
    close(weights @ x, case["context_vectors"], case["published_context_vectors"])
    torch.testing.assert_close(weights[1], tensor(case["published_weights_journey"]), atol=5.1e-3, rtol=0)


def _qkv(course_numbers: Numbers, case: str) -> tuple[Tensor, Tensor, Tensor]:
    x, weights = tensor(course_numbers["inputs"]), course_numbers[case]
    q, k, v = (x @ tensor(weights[f"W_{name}"]).T for name in ("query", "key", "value"))
    return q[None, None], k[None, None], v[None, None]


def test_attention_with_trained_weights_looks_everywhere_from_the_last_token(course_numbers: Numbers) -> None:
    """Without a mask, each query on its own is a last token: exactly what a cached step computes."""
    q, k, v = _qkv(course_numbers, "qkv_attention")
    case = course_numbers["qkv_attention"]
    rows = [fused_attention(q[:, :, i : i + 1], k, v)[0, 0, 0] for i in range(6)]
    close(torch.stack(rows), case["context_vectors"], case["published_context_vectors"])


def test_causal_attention(course_numbers: Numbers) -> None:
    q, k, v = _qkv(course_numbers, "qkv_attention")
    case = course_numbers["causal_attention"]
    close(attention_weights(q, k)[0, 0], case["attention_weights"], case["published_attention_weights"])
    close(fused_attention(q, k, v)[0, 0], case["context_vectors"])


def test_multi_head_attention(course_numbers: Numbers) -> None:
    case = course_numbers["multi_head_attention"]
    config = GPTConfig(vocab_size=1, context_length=6, emb_dim=2, n_heads=2, n_layers=1, qkv_bias=False)
    attention = MultiHeadAttention(config).eval()
    # The course's example reads 3 numbers a token and gives 2.
    attention.c_attn = Linear(3, 6, bias=False)
    joined = torch.cat([tensor(case[f"W_{name}"]).T for name in ("query", "key", "value")], dim=1)
    attention.load_state_dict(
        {
            "c_attn.weight": joined,
            "c_proj.weight": tensor(case["out_proj_weight"]).T,
            "c_proj.bias": tensor(case["out_proj_bias"]),
        }
    )
    x = tensor(course_numbers["inputs"])[None]
    q, k, v = attention.heads(x)
    close(attention_weights(q, k)[0], case["attention_weights"])
    close(fused_attention(q, k, v)[0].transpose(0, 1).flatten(1), case["context_before_projection"])
    close(attention(x)[0], case["output"], case["published_output"])


def test_layer_norm(course_numbers: Numbers) -> None:
    case = course_numbers["layer_norm"]
    close(nn.LayerNorm(5, eps=case["eps"])(tensor(case["input"])), case["normalized"], case["published_normalized"])


def test_softmax_and_temperature(course_numbers: Numbers) -> None:
    from gptcli.config.sampling import SamplingConfig
    from gptcli.inference.sampling import distribution

    case = course_numbers["softmax"]
    for temperature, published in ((1.0, case["published"]), (1 / 8, case["published_times_8"])):
        actual = distribution(tensor([case["input"]]), SamplingConfig(temperature=temperature))
        torch.testing.assert_close(actual[0], tensor(published), atol=5.1e-5, rtol=0)


@pytest.mark.parametrize("shortcuts", [False, True])
def test_gradient_flow(course_numbers: Numbers, shortcuts: bool) -> None:
    case = course_numbers["gradient_flow"]
    sizes = case["layer_sizes"]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    for n, layer in enumerate(layers):
        layer.load_state_dict({k: tensor(case["parameters"][f"layers.{n}.0.{k}"]) for k in ("weight", "bias")})
    x = tensor(case["input"])
    for layer in layers:
        y = F.gelu(layer(x), approximate="tanh")
        x = x + y if shortcuts and x.shape == y.shape else y
    F.mse_loss(x, tensor(case["target"])).backward()
    exact = case[f"mean_abs_weight_gradient_{'with' if shortcuts else 'without'}_shortcuts"]
    gradients = [layer.weight.grad.abs().mean() for layer in layers]  # type: ignore[union-attr]
    torch.testing.assert_close(torch.stack(gradients), tensor(exact), atol=0, rtol=1e-4)


def test_the_feed_forward_network_uses_the_courses_gelu(course_numbers: Numbers) -> None:
    """One layer of the gradient-flow example through our own class: its first half is that layer and its GELU."""
    case = course_numbers["gradient_flow"]["parameters"]
    config = GPTConfig(vocab_size=1, context_length=1, emb_dim=3, n_heads=1, n_layers=1)
    network = FeedForward(config)
    network.c_fc, network.c_proj = Linear(3, 3), Linear(3, 3)
    network.load_state_dict(
        {
            "c_fc.weight": tensor(case["layers.0.0.weight"]).T,
            "c_fc.bias": tensor(case["layers.0.0.bias"]),
            "c_proj.weight": torch.eye(3),
            "c_proj.bias": torch.zeros(3),
        }
    )
    x = tensor([[1.0, 0.0, -1.0]])
    inner = x @ tensor(case["layers.0.0.weight"]).T + tensor(case["layers.0.0.bias"])
    cubic = torch.sqrt(torch.tensor(2 / torch.pi)) * (inner + 0.044715 * inner**3)
    torch.testing.assert_close(network(x), 0.5 * inner * (1 + torch.tanh(cubic)))
