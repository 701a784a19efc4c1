"""A decode step as launches of Triton kernels: one token in each of B slots, or several tokens in a single slot.

A layer takes five launches: layer norm with the fused projection and the write into the cache; attention; projection
with the residual sum; layer norm with the first matrix of the feed-forward layer and its activation; the second matrix
with the residual sum. With several rows the norms are separate launches, since otherwise every program of a product
would read all rows twice. The residual stream and all sums are float32 for any dtype of the weights.
"""

from typing import Any

import torch
from torch import Tensor

from gptcli.inference.row_weights import Matrix, embeddings, matrix
from gptcli.kernels.gpu.attention_decode import attend_kernel, embed_kernel
from gptcli.kernels.gpu.few_rows import few_rows_kernel
from gptcli.kernels.gpu.launches import Launch, run_all
from gptcli.kernels.gpu.matvec import one_row_kernel
from gptcli.kernels.gpu.prompt import norm_kernel
from gptcli.model.gpt import GPTModel, TransformerBlock

MOST_ROWS = 128  # most slots for which these kernels are used; with more, cuBLAS is faster
BLOCK = 128  # positions of the cache that an attention program loads together, for heads of up to 128 elements
SPLITS = 8  # parts of the cache that one row's attention is divided into, at most
PROGRAMS = 132  # multiprocessors of an H100: a one-row product has at least as many programs where its shape allows
TILES = {"float": 2**14, "int8": 2**16, "int4": 2**16}  # weights that a one-row program of 8 warps holds
OUTPUTS = 16  # most outputs of a one-row program
SHARED = 96 * 2**10  # bytes of shared memory for the blocks that a program loads ahead
EXPONENT = 0x4B000000  # 2^23 in float32


class DecodeStep:
    """The steps of one model over one cache, and their buffers.

    Args:
        model: in eval mode; its projections become views of the kernels' weights (see row_weights.py).
        store: (L, 2, B, H, S, D), the cache.
        ids: (B, T) int64: each slot's next tokens; T is the most that a step reads.
        places: (B) int64: the position of the first of these tokens.
        padding: the position of padding rows, greater than any position of a text.
        dependent: launch each kernel before the previous one has ended (Hopper's programmatic dependent launch).

    Attributes:
        logits: (R, V) float32, the result of `launches`.
    """

    def __init__(
        self, model: GPTModel, store: Tensor, ids: Tensor, places: Tensor, padding: int, *, dependent: bool = False
    ) -> None:
        self.config = config = model.config
        self.store, self.ids, self.places, self.padding, self.dependent = store, ids, places, padding, dependent
        self.tokens, self.head = embeddings(model)
        self.positions, self.norm = model.wpe.weight, model.ln_f
        blocks: list[Any] = list(model.h)
        self.blocks: list[TransformerBlock] = blocks
        self.matrices = [
            tuple(matrix(m) for m in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)) for b in blocks
        ]
        rows = max(store.size(2), ids.size(1))
        self.dtype = model.dtype
        self._chunk = max(BLOCK, -(-store.size(4) // (SPLITS * BLOCK)) * BLOCK)
        self._splits = -(-store.size(4) // self._chunk)
        self._split = _is_power_of_two(config.head_dim)
        device, wide = model.device, torch.float32
        self._x = torch.zeros(rows, config.emb_dim, device=device, dtype=wide)
        self._normed = torch.zeros(rows, config.emb_dim, device=device, dtype=model.dtype)
        self._q = torch.zeros(rows, config.emb_dim, device=device, dtype=wide)
        self._context = torch.zeros(rows, config.emb_dim, device=device, dtype=model.dtype)
        self._parts = torch.zeros(self._splits, config.emb_dim, device=device, dtype=wide)
        self._lse = torch.zeros(self._splits, config.n_heads, device=device, dtype=wide)
        self._hidden = torch.zeros(rows, config.hidden_dim, device=device, dtype=model.dtype)
        self.logits: Tensor = torch.zeros(rows, config.vocab_size, device=device, dtype=wide)

    def run(self, count: int) -> Tensor:
        """Queue a step of ``count`` tokens of every slot: logits (B T, V) float32, valid until the next step."""
        run_all(self.launches(count))
        return self.logits[: self.store.size(2) * count]

    @property
    def residual(self) -> Tensor:
        """(R, C) float32: the residual stream; `run_head` reads its first row."""
        return self._x

    def run_head(self) -> None:
        """Queue the final norm and the head of the first row of `residual`, into the first row of `logits`."""
        run_all(self._normed_product("head", 1, 1, self.head, self.logits, "act", self.norm))

    def launches(self, count: int) -> list[Launch]:
        """A step of ``count`` tokens of every slot, in order; its last launch writes `logits` (B T, V)."""
        rows = self.store.size(2) * count
        steps = [self._embedding(rows, count)]
        for number, (block, (qkv, proj, fc, out)) in enumerate(zip(self.blocks, self.matrices, strict=True)):
            cache, norms = self.store[number], (block.ln_1, block.ln_2)
            steps += [
                *self._normed_product("qkv", rows, count, qkv, self._q, "qkv", norms[0], cache=cache),
                self._attention(rows, count, block, cache),
                self._after_attention(rows, count, proj),
                *self._normed_product("fc", rows, count, fc, self._hidden, "act", norms[1], self.config.activation),
                self._product("out", rows, count, self._hidden, out, self._x, "plain", "add"),
            ]
        steps += self._normed_product("head", rows, count, self.head, self.logits, "act", self.norm)
        return steps

    def _embedding(self, rows: int, count: int) -> Launch:
        config, tokens = self.config, self.tokens
        arguments = (
            self.ids, self.places, tokens.rows, tokens.rows if tokens.scale is None else tokens.scale, self.positions,
            self._x, count, self.ids.stride(0), config.emb_dim, config.context_length,
        )  # fmt: skip
        width = power_of_two(config.emb_dim)
        return Launch("embed", embed_kernel, (rows,), arguments, self._options(KIND=tokens.kind, WIDTH=width))

    def _attention(self, rows: int, count: int, block: TransformerBlock, cache: Tensor) -> Launch:
        config = self.config
        split = rows == 1 and self._split
        scale = float(block.attn.query_scale) / config.head_dim**0.5
        arguments = (
            self._q, cache, self.places, self._parts if split else self._context, self._lse, count, config.n_heads,
            cache.size(3), self.padding, cache.stride(0), scale,
        )  # fmt: skip
        width, tokens = power_of_two(config.head_dim), BLOCK if config.head_dim <= 128 else 32
        fits = 4 * tokens * width * self.dtype.itemsize <= SHARED  # two blocks each of keys and values
        options = self._options(
            D=config.head_dim, WIDTH=width, BLOCK=tokens, CHUNK=self._chunk, SPLIT=split,
            STAGES=1 if split or not fits else 3, num_warps=4 if split else 8,
        )  # fmt: skip
        grid = (rows * config.n_heads, self._splits if split else 1)
        return Launch("attend", attend_kernel, grid, arguments, options)

    def _after_attention(self, rows: int, count: int, proj: Matrix) -> Launch:
        if rows == 1 and self._split:
            return self._product("proj", rows, count, self._parts, proj, self._x, "combine", "add")
        return self._product("proj", rows, count, self._context, proj, self._x, "plain", "add")

    def _normed_product(
        self,
        name: str,
        rows: int,
        count: int,
        weights: Matrix,
        out: Tensor,
        epilogue: str,
        norm: torch.nn.LayerNorm,
        activation: str = "none",
        cache: Tensor | None = None,
    ) -> list[Launch]:
        """The product of the residual stream's layer norm, in one launch for one row and in two for several."""
        if rows == 1:
            return [self._product(name, 1, count, self._x, weights, out, "norm", epilogue, activation, norm, cache)]
        arguments = (
            self._x, self._x, norm.weight, norm.bias, self._normed, self._x.size(1), norm.eps,
        )  # fmt: skip
        options = self._options(BIASED=False, WIDTH=power_of_two(self._x.size(1)))
        of_norm = norm.weight.nbytes + norm.bias.nbytes
        return [
            Launch("norm", norm_kernel, (rows,), arguments, options, weight_bytes=of_norm),
            self._product(name, rows, count, self._normed, weights, out, "plain", epilogue, activation, None, cache),
        ]

    def _product(
        self,
        name: str,
        rows: int,
        count: int,
        x: Tensor,
        weights: Matrix,
        out: Tensor,
        prologue: str,
        epilogue: str,
        activation: str = "none",
        norm: torch.nn.LayerNorm | None = None,
        cache: Tensor | None = None,
    ) -> Launch:
        config, some = self.config, self._x
        outputs, inputs = weights.outputs, weights.inputs
        scale, bias = (some if part is None else part for part in (weights.scale, weights.bias))
        into = out, some if cache is None else cache, self.places
        sizes = config.n_heads, config.head_dim, self.store.size(4), 0 if cache is None else cache.stride(0)
        of_norm = 0 if norm is None else norm.weight.nbytes + norm.bias.nbytes
        work = {"weight_bytes": weights.nbytes + of_norm, "flops": 2 * rows * outputs * inputs}
        shared: dict[str, Any] = {
            "KIND": weights.kind,
            "EPILOGUE": epilogue,
            "ACTIVATION": activation,
            "BIASED": weights.bias is not None,
        }
        if rows == 1:
            gain, shift, eps = (some, some, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
            packed = weights.rows.view({"float": self.dtype, "int8": torch.int32, "int4": torch.int16}[weights.kind])
            arguments: tuple[Any, ...] = (
                x, packed, scale, bias, gain, shift, *into, self._lse, outputs, inputs, eps, *sizes, EXPONENT
            )  # fmt: skip
            width, block_n, warps = one_row_shape(outputs, inputs, weights.kind)
            if prologue == "combine":  # combining attention parts takes additional registers
                warps = max(4, warps)
            options = self._options(
                **shared, PROLOGUE=prologue, WIDTH=width, BLOCK_N=block_n, SPLITS=self._splits, CHUNK=self._chunk,
                num_warps=warps,
            )  # fmt: skip
            return Launch(name, one_row_kernel, (-(-outputs // block_n),), arguments, options, **work)
        arguments = x, weights.rows, scale, bias, *into, rows, count, outputs, inputs, *sizes
        shape = few_rows_shape(rows, outputs, inputs, self.dtype.itemsize)
        stride = weights.rows.stride(0) * weights.rows.itemsize
        aligned = stride % 16 == 0 and weights.rows.data_ptr() % 16 == 0
        options = self._options(**shared, **shape, DTYPE=_triton_dtype(self.dtype), FETCH=stride if aligned else 0)
        grid = -(-outputs // shape["BLOCK_N"]), -(-rows // shape["BLOCK_M"])
        return Launch(name, few_rows_kernel, grid, arguments, options, **work)

    def _options(self, **options: Any) -> dict[str, Any]:
        extra = {"launch_pdl": True} if self.dependent else {}
        return {**options, "DEPENDENT": self.dependent, **extra}


def one_row_shape(outputs: int, inputs: int, kind: str) -> tuple[int, int, int]:
    """For one_row_kernel: padded inputs, outputs of a program, and its warps (8 per `TILES` weights, at most 16)."""
    width, tile = max(32, power_of_two(inputs)), TILES[kind]
    block = max(1, tile // width) if width <= 4096 else 4
    while block > 1 and -(-outputs // block) < PROGRAMS:
        block //= 2
    block = min(block, OUTPUTS)
    return width, block, max(1, min(16, block * width * 8 // tile))


def few_rows_shape(rows: int, outputs: int, inputs: int, itemsize: int) -> dict[str, int]:
    """For few_rows_kernel: rows and outputs of a program, its blocks of inputs, warps and pipeline stages."""
    block_m = min(64, max(16, power_of_two(rows)))
    head = outputs >= 64 * 2 * PROGRAMS
    if itemsize == 4 or head:
        block_n, kb, kw, most = 64 if head else 16, 1, 256 // itemsize, 4
    elif outputs > inputs:
        block_n, kb, kw, most = 32, 1, 128, 8
    else:  # fewer programs: each divides its inputs among four warps
        block_n, kb, kw, most = 16, 4, 128 if block_m < 64 else 64, 8
    stages = min(most, 1 + SHARED // ((block_m + block_n) * kb * kw * itemsize))  # blocks in shared memory plus one
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "KB": kb, "KW": kw, "num_warps": 4, "num_stages": stages}


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less than ``number``."""
    return 1 << (number - 1).bit_length()


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
