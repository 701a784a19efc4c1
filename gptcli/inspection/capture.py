"""The activations of one forward pass, captured by forward hooks on GPTModel."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.model.gpt import GPTModel, KVCache, attention_weights


@dataclass(frozen=True)
class Capture:
    """Activations of a forward pass over T tokens; L layers, H heads, C channels. All float32 but ids, on the CPU.

    Attributes:
        ids: (T) the tokens, int64.
        tokens: (T, C) token vectors.
        positions: (T, C) position vectors.
        weights: (L, H, T, S) attention weights: rows sum to 1, later tokens have exactly 0. S > T where the cache held
            tokens. L is 0 unless weights were requested.
        attention: (L, T, C) the output of attention, which the block adds to the residual stream.
        feed_forward: (L, T, C) the output of the feed-forward layer, added likewise.
        stream: (L + 1, T, C) the residual stream before the first block, and after each.
        final: (T, C) the output of the final norm, which is the input of the output head.
    """

    ids: Tensor
    tokens: Tensor
    positions: Tensor
    weights: Tensor
    attention: Tensor
    feed_forward: Tensor
    stream: Tensor
    final: Tensor


def capture(model: GPTModel, ids: Tensor, cache: KVCache | None = None, weights: bool = True) -> Capture:
    """Run the model once over ``ids`` and keep its activations.

    Fused attention does not return its weights, so a hook computes them again from the same input.

    Args:
        model: in eval mode; the hooks are removed at the end.
        ids: (T), int64.
        cache: KV cache of one sequence; the forward pass reads it and appends T tokens.
        weights: keep attention weights, 4·L·H·T·S bytes.
    """
    config, length = model.config, ids.size(0)
    seen = length + (0 if cache is None else cache.length)
    kept = config.n_layers if weights else 0
    all_weights = torch.empty(kept, config.n_heads, length, seen)
    tokens, positions = torch.empty(length, config.emb_dim), torch.empty(length, config.emb_dim)
    attention = torch.empty(config.n_layers, length, config.emb_dim)
    feed_forward = torch.empty_like(attention)
    stream = torch.empty(config.n_layers + 1, length, config.emb_dim)

    def keep_output(place: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
            place.copy_(output.reshape(place.shape))

        return hook

    def keep_weights(place: Tensor) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
            x, cache_read, layer = inputs[:3]
            queries, keys, _ = module.heads(x)
            if cache_read is not None:
                keys = cache_read.store[layer, 0, :, :, :seen]
            place.copy_(attention_weights(queries, keys)[0])

        return hook

    def keep_input(place: Tensor) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            place.copy_(inputs[0][0])

        return hook

    with ExitStack() as hooks, torch.no_grad():
        hooks.enter_context(model.wte.register_forward_hook(keep_output(tokens)))
        hooks.enter_context(model.wpe.register_forward_hook(keep_output(positions)))
        for layer, block in enumerate(model.h):
            assert isinstance(block.attn, nn.Module)
            assert isinstance(block.mlp, nn.Module)
            hooks.enter_context(block.register_forward_pre_hook(keep_input(stream[layer])))
            hooks.enter_context(block.attn.register_forward_hook(keep_output(attention[layer])))
            hooks.enter_context(block.mlp.register_forward_hook(keep_output(feed_forward[layer])))
            if weights:
                hooks.enter_context(block.attn.register_forward_hook(keep_weights(all_weights[layer])))
        hooks.enter_context(model.ln_f.register_forward_pre_hook(keep_input(stream[-1])))
        final = model.hidden(ids[None].to(model.device), cache)[0].float().cpu()
    return Capture(ids.cpu(), tokens, positions, all_weights, attention, feed_forward, stream, final)
