"""Prefill of one slot of the cache in one forward pass, on the weights of row_weights.py: eight launches a layer.

cuBLAS computes the matrix products, torch the attention, and Triton kernels the rest. The layer norm also adds the bias
of the product before it, two of a layer's four products add to the residual stream in place, and the head is computed
for the last token only. A padded length is captured as a CUDA graph after `WORTH_CAPTURING` prompts. Packed weights
take one more launch for each product, and activations other than the tanh form of GELU one more a layer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.inference.row_weights import Matrix
from gptcli.inference.step_launches import DecodeStep, power_of_two
from gptcli.kernels.gpu.attention_decode import embed_kernel
from gptcli.kernels.gpu.prompt import norm_kernel, pick_kernel, widen_kernel, write_cache_kernel

LENGTHS = (64, 128, 256, 512, 1024)  # tokens that prompts are padded to
WORTH_CAPTURING = 2  # prompts of a padded length that are read before a graph is captured for it


class PromptStep:
    """Reads prompts into the cache of a `DecodeStep`.

    Args:
        step: provides the matrices, the cache and the head.
        capture: captures the launches of a function as a CUDA graph and returns its replay; None for no graphs.
    """

    def __init__(self, step: DecodeStep, capture: Callable[[Callable[[], None]], Callable[[], None]] | None) -> None:
        self._step, self._capture = step, capture
        device = step.store.device
        self._seen: Counter[int] = Counter()
        self._graphs: dict[int, Callable[[], None]] = {}
        self._numbers = torch.zeros(2 + max(LENGTHS), dtype=torch.int64, device=device)  # slot, last index, ids
        self._slot, self._last, self._ids = self._numbers[:1], self._numbers[1:2], self._numbers[None, 2:]
        self._start = torch.zeros(1, dtype=torch.int64, device=device)
        self._dependent: dict[str, Any] = {"DEPENDENT": step.dependent}
        if step.dependent:
            self._dependent["launch_pdl"] = True
        sizes = [m.outputs * m.inputs for layer in step.matrices for m in layer if m.kind != "float"]
        self._wide = torch.empty(max(sizes, default=0), device=device, dtype=step.dtype)

    def run(self, slot: int, ids: Sequence[int]) -> Tensor:
        """Read ids from position 0 on: logits (1, V) float32 of the last id, valid until the next call."""
        count = len(ids)
        length = next((n for n in LENGTHS if count <= n <= self._step.store.size(4)), None)
        if length is None:
            self._numbers[:2] = torch.tensor([slot, count - 1])
            self._read(torch.tensor([ids], device=self._numbers.device))
            return self._step.logits[:1]
        self._numbers[: 2 + count] = torch.tensor([slot, count - 1, *ids])
        if self._capture is not None and length not in self._graphs and self._seen[length] >= WORTH_CAPTURING:
            self._graphs[length] = self._capture(lambda: self._read(self._ids[:, :length]))
        self._seen[length] += 1
        if length in self._graphs:
            self._graphs[length]()
        else:
            self._read(self._ids[:, :count])
        return self._step.logits[:1]

    def _read(self, ids: Tensor) -> None:
        """Read ids (1, T), padding after index `_last`, into `_slot`; writes the first row of the step's logits."""
        step, config = self._step, self._step.config
        count, C, width = ids.size(1), config.emb_dim, power_of_two(config.emb_dim)
        x = torch.empty(count, C, device=ids.device, dtype=step.dtype)
        tokens = step.tokens
        embed_kernel[(count,)](
            ids, self._start, tokens.rows, tokens.rows if tokens.scale is None else tokens.scale, step.positions, x,
            count, ids.stride(0), C, config.context_length, KIND=tokens.kind, WIDTH=width, DEPENDENT=False,
        )  # fmt: skip
        bias: Tensor | None = None  # of the preceding product; the next norm adds it
        for number, (block, (qkv, proj, fc, out)) in enumerate(zip(step.blocks, step.matrices, strict=True)):
            found = self._attention(self._norm(x, bias, block.ln_1), qkv, number, block)
            x.addmm_(found, self._weight(proj))
            hidden = self._product(self._norm(x, proj.bias, block.ln_2), fc, config.activation)
            x.addmm_(hidden, self._weight(out))
            bias = out.bias
        pick_kernel[(1,)](
            x, x if bias is None else bias, self._last, step.residual, C, BIASED=bias is not None, WIDTH=width,
            **self._dependent,
        )  # fmt: skip
        step.run_head()

    def _attention(self, x: Tensor, qkv: Matrix, number: int, block: Any) -> Tensor:
        """Attention output (T, C) for the normed input x (T, C); writes keys and values to the cache."""
        config, cache = self._step.config, self._step.store[number]
        count, C, D = x.size(0), config.emb_dim, config.head_dim
        scale = float(block.attn.query_scale) / D**0.5
        qkv_rows = self._product(x, qkv)
        write_cache_kernel[(count, 2)](
            qkv_rows, cache, self._slot, C, config.n_heads, D, cache.size(3), cache.stride(0), WIDTH=power_of_two(C)
        )
        queries, keys, values = (
            part.view(1, count, config.n_heads, -1).transpose(1, 2) for part in qkv_rows.chunk(3, dim=1)
        )
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
        return seen.transpose(1, 2).reshape(count, C)

    def _norm(self, x: Tensor, bias: Tensor | None, norm: torch.nn.LayerNorm) -> Tensor:
        """Add the bias to x (T, C) in place; return the layer norm of the sum."""
        out = torch.empty_like(x)
        norm_kernel[(len(x),)](
            x, x if bias is None else bias, norm.weight, norm.bias, out, x.size(1), norm.eps,
            BIASED=bias is not None, WIDTH=power_of_two(x.size(1)), **self._dependent,
        )  # fmt: skip
        return out

    def _product(self, x: Tensor, weights: Matrix, activation: str = "none") -> Tensor:
        """activation(x W + b), (T, N)."""
        weight, bias = self._weight(weights), weights.bias
        if activation == "gelu_new" and bias is not None and x.is_cuda:  # one cuBLAS call with the tanh form of GELU
            fused: Tensor = torch._addmm_activation(bias, x, weight, use_gelu=True)
            return fused
        y = x @ weight if bias is None else torch.addmm(bias, x, weight)
        if activation == "gelu_new":
            return F.gelu(y, approximate="tanh")
        return F.gelu(y) if activation == "gelu" else F.relu_(y) if activation == "relu" else y

    def _weight(self, weights: Matrix) -> Tensor:
        """W (K, N) in the model's dtype; a packed W is unpacked into a buffer that the next call overwrites."""
        if weights.kind == "float":
            return weights.rows.t()
        size: Any = weights.outputs, weights.inputs
        wide = self._wide[: weights.outputs * weights.inputs].view(size)
        grid = -(-weights.outputs // 32), -(-weights.inputs // 128)
        widen_kernel[grid](weights.rows, weights.scale, wide, *size, KIND=weights.kind, BLOCK_N=32, BLOCK_K=128)
        return wide.t()
