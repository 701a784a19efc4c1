"""A GPT-2 written straight from the equations, one position and one head at a time where that is plainer.

It shares no code with gptcli: the fast model is held against it.
"""

import math

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)  # biased
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores: Tensor) -> Tensor:
    exponentials = torch.exp(scores - scores.max(-1, keepdim=True).values)
    return exponentials / exponentials.sum(-1, keepdim=True)


def attention(x: Tensor, p: dict[str, Tensor], prefix: str, n_heads: int, keep: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √d + M) V for x (T, C); ``keep`` (H, T, T) multiplies the weights, as dropout does."""
    length, width = x.shape
    size = width // n_heads
    qkv = x @ p[prefix + "c_attn.weight"] + p.get(prefix + "c_attn.bias", torch.zeros(3 * width, dtype=x.dtype))
    mask = torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
    outputs = []
    for head in range(n_heads):
        q, k, v = (qkv[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
        weights = softmax(q @ k.T / math.sqrt(size) + mask)
        outputs.append((weights if keep is None else weights * keep[head]) @ v)
    return torch.cat(outputs, dim=-1) @ p[prefix + "c_proj.weight"] + p[prefix + "c_proj.bias"]


def logits(ids: Tensor, p: dict[str, Tensor], n_layers: int, n_heads: int) -> Tensor:
    """(T, V) logits of one sequence ids (T), from parameters by OpenAI's names."""
    x = p["wte.weight"][ids] + p["wpe.weight"][: len(ids)]
    for n in range(n_layers):
        b = f"h.{n}."
        x = x + attention(layer_norm(x, p[b + "ln_1.weight"], p[b + "ln_1.bias"]), p, b + "attn.", n_heads)
        h = layer_norm(x, p[b + "ln_2.weight"], p[b + "ln_2.bias"])
        h = gelu(h @ p[b + "mlp.c_fc.weight"] + p[b + "mlp.c_fc.bias"])
        x = x + h @ p[b + "mlp.c_proj.weight"] + p[b + "mlp.c_proj.bias"]
    x = layer_norm(x, p["ln_f.weight"], p["ln_f.bias"])
    return x @ p.get("lm_head.weight", p["wte.weight"]).T
