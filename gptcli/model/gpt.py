"""The whole model: GPT-2 (Radford et al., 2019), as the course builds it, with OpenAI's parameter names.

Letters for shapes:
    B batch    T tokens in this call    S cached tokens and the T new ones    C emb_dim
    H heads    D head_dim = C / H   V vocab_size    F feed-forward width, 4C unless the config says otherwise
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from gptcli.config.model import GPTConfig
from gptcli.config.recipe import Init
from gptcli.kernels.cpu.train_kernels import TrainKernels
from gptcli.model.dropout import RANDOM, Seeds, dropout, dropout_attention, gelu, split_heads
from gptcli.model.initial_values import initial_values


class Linear(nn.Module):
    """y = x W + b with W stored (in, out), as in OpenAI's files, so that loading them needs no transposition."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.kernels: TrainKernels | None = None  # see GPTModel.use

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))  # (..., in) -> (rows, in)
        if self.kernels is not None and self.kernels.linear is not None and self.kernels.accept(rows):
            y = self.kernels.linear(rows, self.weight, self.bias)
        else:
            y = rows @ self.weight if self.bias is None else torch.addmm(self.bias, rows, self.weight)
        return y.view(*x.shape[:-1], -1)  # (rows, out) -> (..., out)


class Head(nn.Linear):
    """y = x Wᵀ with W stored (out, in), as an embedding; uninitialised until it is drawn or loaded."""

    def reset_parameters(self) -> None:
        pass


class Cache(Protocol):
    """The interface of a key/value cache to the model."""

    def positions(self, count: int) -> Tensor:
        """Positions of the next ``count`` tokens, int64: (T), or (B, T) where rows differ."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values (B, H, T, D) of one layer; return the attention output of queries, (B, H, T, D)."""

    def advance(self, count: int) -> None:
        """Add ``count`` to the length, after every layer has stored the tokens' keys and values."""


class KVCache:
    """Keys and values of the tokens read so far, so that a forward pass computes the new tokens only.

    Args:
        config: the model's shape.
        batch_size: B.
        capacity: the most tokens that the cache holds; the model's context by default.
        device, dtype: of the cache.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int = 1, capacity: int | None = None,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.capacity = min(capacity or config.context_length, config.context_length)
        shape = (config.n_layers, 2, batch_size, config.n_heads, self.capacity, config.head_dim)
        self.store = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    @classmethod
    def over(cls, store: Tensor, length: int) -> "KVCache":
        """A cache of ``length`` tokens whose storage is the view ``store`` (L, 2, B, H, S, D)."""
        cache = cls.__new__(cls)
        cache.store, cache.capacity, cache.length = store, store.size(4), length
        return cache

    def positions(self, count: int) -> Tensor:
        return torch.arange(self.length, self.length + count, device=self.store.device)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return fused_attention(queries, *self.extend(layer, keys, values))

    def advance(self, count: int) -> None:
        self.length += count

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, D) of one layer; return all keys and values of the layer, (B, H, S, D)."""
        all_keys, all_values = self.store[layer, :, :, :, : self.length + keys.size(2)].unbind()
        all_keys[:, :, self.length :], all_values[:, :, self.length :] = keys, values
        return all_keys, all_values

    def crop(self, length: int) -> None:
        """Drop every token after the first ``length``."""
        self.length = min(self.length, length)


def causal_mask(query_length: int, key_length: int, device: torch.device | None = None) -> Tensor:
    """(T, S) bool, True where a query attends: to its own position and to earlier ones."""
    return torch.ones(query_length, key_length, dtype=torch.bool, device=device).tril(key_length - query_length)


def attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √D + M), the weights that fused attention does not return.

    Args:
        queries: (B, H, T, D), the last T of the S tokens.
        keys: (B, H, S, D).

    Returns:
        (B, H, T, S): every row sums to 1; weights of later positions are exactly 0.
    """
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.size(-1))  # (B, H, T, S)
    mask = causal_mask(scores.size(-2), scores.size(-1), scores.device)
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``attention_weights(queries, keys) @ values`` without holding the weights; (B, H, T, D)."""
    if queries.size(-2) == 1:  # a single new token attends to all S tokens, so no mask is needed
        return F.scaled_dot_product_attention(queries, keys, values)
    if queries.size(-2) == keys.size(-2):
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    mask = causal_mask(queries.size(-2), keys.size(-2), queries.device)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


class MultiHeadAttention(nn.Module):
    """Causal multi-head attention with one fused projection to queries, keys and values."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.drop_rate = config.n_heads, config.head_dim, config.drop_rate
        self.kernels: TrainKernels | None = None  # see GPTModel.use
        # fused_attention divides scores by √D; the queries are multiplied by any other factor of the config.
        self.query_scale = 1.0 if config.scale_attn else math.sqrt(config.head_dim)
        if config.scale_attn_by_layer:
            self.query_scale /= layer + 1
        self.c_attn = Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.c_proj = Linear(config.emb_dim, config.emb_dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, C), each (B, H, T, D)."""
        queries, keys, values = split_heads(self.c_attn(x), self.n_heads)  # (B, T, 3C) -> 3 x (B, H, T, D)
        return queries if self.query_scale == 1.0 else queries * self.query_scale, keys, values

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0, seeds: Tensor | None = None) -> Tensor:
        if self.training and self.drop_rate > 0 and cache is None:
            scale, qkv = self.query_scale / math.sqrt(self.head_dim), self.c_attn(x)
            return self.c_proj(dropout_attention(qkv, self.n_heads, self.drop_rate, scale, seeds, self.kernels))
        heads = self.heads(x)
        context = fused_attention(*heads) if cache is None else cache.attend(layer, *heads)
        return self.c_proj(context.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C)


class FeedForward(nn.Module):
    """C -> F -> C for each position; between them GELU (tanh form; Hendrycks & Gimpel, 2016), exact GELU or ReLU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.kernels: TrainKernels | None = None
        self.c_fc = Linear(config.emb_dim, config.hidden_dim)
        self.c_proj = Linear(config.hidden_dim, config.emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)  # (B, T, F)
        if self.activation == "relu":
            return self.c_proj(F.relu(hidden))
        return self.c_proj(gelu(hidden, self.kernels) if self.activation == "gelu_new" else F.gelu(hidden))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), each with its own layer norm (pre-norm)."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.emb_dim, eps=config.layer_norm_eps)
        self.attn = MultiHeadAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.emb_dim, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.drop_rate = config.drop_rate
        self.kernels: TrainKernels | None = None

    def forward(self, x: Tensor, cache: Cache | None = None, layer: int = 0, seeds: Seeds = RANDOM) -> Tensor:
        attended = self.attn(self.ln_1(x), cache, layer, seeds[0])
        x = x + dropout(attended, self.drop_rate, self.training, seeds[1], self.kernels)
        return x + dropout(self.mlp(self.ln_2(x)), self.drop_rate, self.training, seeds[2], self.kernels)


class GPTModel(nn.Module):
    """A GPT-2-class language model; with labels a classifier, whose head is ``score``, read at a text's last token.

    Args:
        config: its shape.
        init: "gpt2" draws weights from N(0, 0.02²), residual projections from N(0, 0.02² / 2N) for N layers, and
            zeroes biases (GPT-2's paper and code); "course" keeps torch's defaults: embeddings from N(0, 1), linear
            layers uniform in ±1/√in; None leaves weights uninitialised, for a caller that loads them.
    """

    def __init__(self, config: GPTConfig, init: Init | None = "gpt2") -> None:
        super().__init__()
        self.config = config
        self.kernels: TrainKernels | None = None
        self.recompute = False  # recompute every block in the backward pass instead of holding its activations
        self.run_block: Callable[..., Tensor] = nn.Module.__call__  # called if there is no cache
        V, positions, C = config.vocab_size, config.context_length, config.emb_dim
        self.wte = nn.Embedding(V, C, _weight=torch.empty(V, C))  # uninitialised until it is drawn or loaded
        self.wpe = nn.Embedding(positions, C, _weight=torch.empty(positions, C))
        self.h = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.emb_dim, eps=config.layer_norm_eps)
        if config.labels:
            self.score = Head(config.emb_dim, len(config.labels), bias=False)
        elif not config.tie_weights:
            self.lm_head = Head(config.emb_dim, config.vocab_size, bias=False)
        if init is not None:
            self.initialise(init)

    @property
    def head(self) -> Tensor:
        """The output head (V, C): the token embedding if tied, else lm_head; of a classifier score (labels, C)."""
        if self.config.labels:
            return self.score.weight
        return self.wte.weight if self.config.tie_weights else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        return self.wpe.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wpe.weight.dtype

    def use(self, kernels: TrainKernels | None) -> None:
        """Compute dropout, GELU, attention with dropout and linear layers by kernels if they accept the tensors."""
        for module in self.modules():
            if isinstance(module, Linear | MultiHeadAttention | FeedForward | TransformerBlock | GPTModel):
                module.kernels = kernels

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V), of a classifier (..., labels), of hidden states (..., C): hidden @ head.T."""
        return F.linear(hidden, self.head)

    def hidden(self, ids: Tensor, cache: Cache | None = None, seeds: Tensor | None = None) -> Tensor:
        """The residual stream (B, T, C) after the final norm.

        Args:
            ids: (B, T) token ids, int64; with a cache they follow the cached tokens.
            cache: read and extended by T tokens.
            seeds: (N + 1, 3, B) int64, decide what dropout drops on a CPU (`step_seeds`); None for random ones.
        """
        count = ids.size(1)
        positions = torch.arange(count, device=ids.device) if cache is None else cache.positions(count)  # (T) or (B, T)
        x = self.wte(ids) + self.wpe(positions)  # (B, T, C)
        sites: Sequence[Seeds] = seeds.unbind() if seeds is not None else [RANDOM] * (len(self.h) + 1)
        x = dropout(x, self.config.drop_rate, self.training, sites[-1][0], self.kernels)
        if x.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16:
            x = x.bfloat16()  # norms, residual sums and GELU on a GPU are limited by memory bandwidth
        run = partial(recomputed, self.run_block, use_reentrant=False) if self.recompute else self.run_block
        for layer, block in enumerate(self.h):
            x = run(block, x, seeds=sites[layer]) if cache is None else block(x, cache, layer)
        if cache is not None:
            cache.advance(count)
        return self.ln_f(x)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) for the token after each of ids (B, T)."""
        return self.logits(self.hidden(ids, cache))

    def next_logits(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, V) for the token after the last of ids (B, T): the head is computed at this position only."""
        return self.logits(self.hidden(ids, cache)[:, -1])

    @torch.no_grad()
    def initialise(self, init: Init) -> None:
        """Initialise every parameter by the scheme ``init`` (see the class)."""
        own = dict(self.named_parameters())
        for name, values in initial_values(self, self.config.n_layers, init):
            own[name].copy_(values)
