"""A model's weights in the flat arrays that the kernels read (see memory_layout.py), and quantized copies of them.

Neither this file nor packing float32 weights imports numba, so that both can go on at the same time (early.py).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptcli.config.model import GPTConfig
from gptcli.kernels.cpu import memory_layout as c
from gptcli.kernels.cpu.memory_layout import LANES, allocate, pack, padded
from gptcli.model import quantization
from gptcli.model.quantization import GROUP, Packed, Tensors

if TYPE_CHECKING:
    from gptcli.kernels.cpu.compile_cache import DecodingKernels

PORTION = 64  # blocks of a matrix (`LANES` outputs each) that one task quantises
_PER_CELL = {"float32": 1, "int8": 1, "int16": 2, "uint8": 2, "uint32": 8}  # weights in an element of data
_KINDS = (
    (c.QKV, "attn.c_attn"),
    (c.ATTENTION, "attn.c_proj"),
    (c.EXPAND, "mlp.c_fc"),
    (c.CONTRACT, "mlp.c_proj"),
)


class Matrices:
    """The packed matrices of a model, and its float32 biases, norms and position embedding.

    Attributes:
        data, scale: the matrices' values and scales.
        floats: biases, norms, position embedding, epsilon and attention scales, in this order.
        table: the offsets of all parts in the arrays, with room for an engine's.

    Args:
        config: the model's shape.
        bits: 32, 8 or 4, of the matrices.
        threads: number of packing threads.
        kernels: the packing functions, which float32 matrices do not need.
        table: an engine's, to which the offsets are written; None for a new one.
    """

    def __init__(
        self,
        config: GPTConfig,
        bits: int,
        threads: int,
        kernels: "DecodingKernels | None" = None,
        table: NDArray[np.int64] | None = None,
    ) -> None:
        self.config, self._bits, self._threads, self._kernels = config, bits, threads, kernels
        self.table = np.zeros(c.PROGRAM + c.STEP * (10 * config.n_layers + 6), np.int64) if table is None else table
        self._jobs = self._lay_out()
        self.floats: NDArray[np.float32] = np.zeros(0, np.float32)

    @property
    def bytes_read(self) -> int:
        """Bytes that one decode step reads of the matrices."""
        table = self.table
        if self.config.tie_weights:
            return self.data.nbytes + self.scale.nbytes
        return int(table[c.WTE + c.DATA]) * self.data.itemsize + int(table[c.WTE + c.SCALE]) * self.scale.itemsize

    def packed_anew(self, table: NDArray[np.int64], bits: int, kernels: "DecodingKernels") -> "Matrices":
        """A copy of these float32 matrices in ``bits`` bits (8 or 4), described by ``table``; ``floats`` is shared."""
        anew = Matrices(self.config, bits, self._threads, kernels, table)
        anew.floats = self.floats
        matrices = [c.QKV, c.ATTENTION, c.EXPAND, c.CONTRACT, c.HEAD, *([] if self.config.tie_weights else [c.WTE])]
        parts: list[tuple[int, int, int]] = []  # matrix, block, how many
        for matrix in matrices:
            blocks = int(self.table[matrix + c.OUTPUTS]) // LANES
            blocks *= 1 if matrix in (c.HEAD, c.WTE) else self.config.n_layers
            parts += [(matrix, block, min(PORTION, blocks - block)) for block in range(0, blocks, PORTION)]

        def pack_blocks(matrix: int, block: int, count: int) -> None:
            start = int(self.table[matrix + c.DATA]) + block * int(self.table[matrix + c.INPUTS]) * LANES
            anew._quantize(self.data, start, matrix, block, count)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(pack_blocks, *zip(*parts, strict=True)))
        return anew

    def fill(self, tensors: Tensors) -> None:
        """Copy the weights into the arrays, packing float32 ones; `Packed` ones must have this object's bits."""
        config, table = self.config, self.table
        names = [f"h.{layer}.ln_{i}" for layer in range(config.n_layers) for i in (1, 2)] + ["ln_f"]
        width = int(table[c.QKV + c.INPUTS])
        table[c.WPE] = table[c.NORMS] + 2 * width * len(names)
        table[c.EPSILON] = table[c.WPE] + config.context_length * config.emb_dim
        table[c.FACTORS] = table[c.EPSILON] + 1
        self.floats = np.zeros(int(table[c.FACTORS]) + config.n_layers, np.float32)
        with ThreadPoolExecutor(min(self._threads, 4)) as pool:
            # Largest first: while a matrix is read, memory holds its file pages as well as its packed copy.
            list(pool.map(lambda job: self._fill_matrix(tensors, *job), reversed(self._jobs)))
        for number, name in enumerate(names):
            at = int(table[c.NORMS]) + 2 * width * number
            self.floats[at : at + config.emb_dim] = tensors[f"{name}.weight"]
            self.floats[at + width : at + width + config.emb_dim] = tensors[f"{name}.bias"]
        self.floats[table[c.WPE] : table[c.EPSILON]] = np.asarray(tensors["wpe.weight"]).ravel()
        self.floats[table[c.EPSILON]] = config.layer_norm_eps
        for layer in range(config.n_layers):
            factor = config.head_dim**-0.5 if config.scale_attn else 1.0
            self.floats[table[c.FACTORS] + layer] = factor / (layer + 1 if config.scale_attn_by_layer else 1)

    def _lay_out(self) -> list[tuple[int, int, str]]:
        """Allocate the arrays and write the matrices' offsets to the table: (matrix, layer, name) of each matrix."""
        config, table = self.config, self.table
        data_type, scale_type = _types(self._bits)
        self._per_cell = _PER_CELL[np.dtype(data_type).name]
        width, hidden = padded(config.emb_dim, GROUP), padded(config.hidden_dim, GROUP)
        out = {
            c.QKV: padded(3 * config.emb_dim, LANES),
            c.ATTENTION: padded(config.emb_dim, LANES),
            c.EXPAND: padded(config.hidden_dim, LANES),
            c.CONTRACT: padded(config.emb_dim, LANES),
            c.HEAD: padded(config.vocab_size, LANES),
            c.WTE: padded(config.vocab_size, LANES),
        }
        jobs: list[tuple[int, int, str]] = []  # matrix, layer, name
        for matrix, kind in _KINDS:
            jobs += [(matrix, layer, f"h.{layer}.{kind}") for layer in range(config.n_layers)]
        jobs += [(c.HEAD, 0, "wte" if config.tie_weights else "lm_head")]
        if not config.tie_weights:
            jobs += [(c.WTE, 0, "wte")]
        cells = scales = biases = 0
        for matrix, layer, _ in jobs:
            inputs = hidden if matrix == c.CONTRACT else width
            if layer == 0:
                table[matrix : matrix + 5] = cells, scales, biases, inputs, out[matrix]
            size = inputs * out[matrix]
            cells += size // self._per_cell
            scales += size // GROUP if self._bits == 4 else out[matrix]
            biases += out[matrix]
        if config.tie_weights:
            table[c.WTE : c.WTE + 5] = table[c.HEAD : c.HEAD + 5]
        self.data = allocate(cells, data_type)
        self.scale = allocate(scales if self._bits < 32 else 1, scale_type)
        table[c.NORMS] = biases
        return jobs

    def _fill_matrix(self, tensors: Tensors, matrix: int, layer: int, name: str) -> None:
        data, scale, bias, inputs, outputs = (int(cell) for cell in self.table[matrix : matrix + 5])
        weight, four_bits = tensors[f"{name}.weight"], self._bits == 4
        if isinstance(weight, Packed):
            if four_bits:
                scale += layer * inputs // GROUP * outputs
                pack(weight.scale, self.scale, scale, inputs // GROUP)
            else:
                scale += layer * outputs
                self.scale[scale : scale + len(weight.scale)] = weight.scale
        elif quantization.is_transposed(f"{name}.weight"):
            weight = weight.T
        values = weight.values if isinstance(weight, Packed) else weight
        if isinstance(weight, Packed) and self.data.dtype in (np.int16, np.uint32):
            assert self._kernels is not None
            assert self._kernels.pack is not None
            first = data + layer * inputs // self._per_cell * outputs
            self._kernels.pack(np.ascontiguousarray(values), *values.shape, self.data, first, inputs)
        elif isinstance(weight, Packed) or self.data.dtype == np.float32:
            rows = inputs // 2 if four_bits else inputs
            pack(values, self.data, data + layer * rows * outputs, rows)
        else:
            first = layer * outputs // LANES
            with ThreadPoolExecutor(self._threads) as pool:
                blocks = range(0, padded(values.shape[1], LANES) // LANES, PORTION)
                list(pool.map(lambda block: self._pack_part(values, matrix, first, block), blocks))
        if matrix not in (c.WTE, c.HEAD) and f"{name}.bias" in tensors:
            at = bias + layer * outputs
            self.floats[at : at + values.shape[1]] = tensors[f"{name}.bias"]

    def _pack_part(self, values: NDArray[Any], matrix: int, first: int, block: int) -> None:
        """Quantise `PORTION` blocks from ``block`` on; ``first`` is the matrix's first block in those of all layers."""
        part = values[:, block * LANES : (block + PORTION) * LANES]
        inputs, count = int(self.table[matrix + c.INPUTS]), padded(part.shape[1], LANES) // LANES
        floats = np.zeros(count * inputs * LANES, np.float32)
        pack(part, floats, 0, inputs)
        self._quantize(floats, 0, matrix, first + block, count)

    def _quantize(self, source: NDArray[np.float32], start: int, matrix: int, block: int, count: int) -> None:
        """Quantise ``count`` float32 blocks from source[start:] into a matrix, from its block ``block`` on."""
        data, scale, _, inputs, _ = (int(cell) for cell in self.table[matrix : matrix + 5])
        data += block * inputs * LANES // self._per_cell
        scale += block * (inputs // GROUP if self._bits == 4 else 1) * LANES
        assert self._kernels is not None
        assert self._kernels.quantize is not None
        self._kernels.quantize(source, start, self.data, data, self.scale, scale, inputs, count)


def _types(bits: int) -> tuple[Any, Any]:
    """The dtypes of data and scale."""
    if bits == 32:
        return np.float32, np.float32
    from gptcli.kernels.cpu.compile_cache import DATA_TYPES, SCALE_TYPES

    return DATA_TYPES[bits], SCALE_TYPES[bits]
