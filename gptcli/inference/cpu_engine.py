"""The CPU engine: a model packed for decode_step.py, with a cache of its own and a team of threads.

It speaks numpy and needs no torch. Rows are the unit of work: a token at a position of a slot, a slot being one
sequence's place in the cache.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.config.model import GPTConfig
from gptcli.inference.cpu_weights import Matrices
from gptcli.kernels.cpu import memory_layout as c
from gptcli.kernels.cpu.compile_cache import Kernels
from gptcli.kernels.cpu.matmul import LANES, TILE
from gptcli.kernels.cpu.memory_layout import allocate, padded
from gptcli.kernels.cpu.step_program import phases
from gptcli.kernels.cpu.worker_threads import Helpers
from gptcli.model.quantization import Tensors

AT_ONCE = 12  # rows that meet each weight while it is in a register, or nearly so
MAX_ROWS = 192  # tokens of a prompt that are read together


class Engine:
    """A packed model, its cache and its threads.

    Args:
        config: the model's shape; `open.obstacle` knows what the kernels do not.
        tensors: float32 weights by the model's names, or `Packed` ones; each is asked for once and let go.
        bits: 32, 8 or 4: float32 matrices are quantised on the way in.
        capacity: tokens that each slot of the cache has room for.
        slots: sequences that can be under way at once.
        threads: how many compute, the calling one included.
        report: called with a line that says what takes a while.
    """

    def __init__(
        self,
        config: GPTConfig,
        tensors: Tensors,
        *,
        bits: int = 32,
        capacity: int | None = None,
        slots: int = 1,
        threads: int = 1,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config = config
        self.slots = slots
        self.at_once = AT_ONCE
        self.threads = min(threads, c.MAX_THREADS)
        self.capacity = padded(min(capacity or config.context_length, config.context_length), LANES)
        self._kernels = Kernels(report)
        self._table = np.zeros(c.PROGRAM + c.STEP * (10 * config.n_layers + 6), np.int64)
        self._matrices = Matrices(config, self._table, self._kernels, bits, self.threads)
        self._matrices.fill(tensors)
        self._lay_out_work()
        self._write_program()
        self._start(bits)

    def quantized_copy(self, bits: int) -> "Engine":
        """This model with its float32 matrices packed in ``bits`` bits (8 or 4), and everything else shared.

        Both have one cache and one place for logits, so each reads on where the other is, and only one at a time.
        """
        packed = copy.copy(self)
        packed._table = self._table.copy()
        packed._matrices = self._matrices.packed_anew(packed._table, bits)
        packed._write_program()
        packed._start(bits)
        return packed

    def draws(self, requests: Sequence[Any], drawable: Any = None) -> None:
        """Nothing: whoever asked for logits draws from them."""

    def _start(self, bits: int) -> None:
        """Make the kernel ready, and helpers for it."""
        weights = self._matrices
        self._arguments = (weights.data, weights.scale, weights.floats, self._work, self._table, self._control)
        self._kernels.prepare(bits)
        self._helpers = Helpers(self._kernels.run, self._arguments, self.threads - 1)
        self.close = weakref.finalize(self, self._helpers.end)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one decode step reads of the matrices."""
        return self._matrices.bytes_read

    def step(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        wanted: Sequence[int] | None = None,
        exit_at: int = 0,
    ) -> NDArray[np.float32]:
        """Read up to `max_rows` tokens at once.

        Args:
            ids, positions, slots: a token each, where it stands in its sequence, and which sequence that is; tokens of
                one sequence follow one another, and everything before them has been read.
            wanted: the rows whose logits to compute; all by default.
            exit_at: compute, below these, what the final norm and the head make of this layer (from 1); 0 for none.

        Returns:
            (W, V) float32, or (2 W, V) with an early exit; valid until the next step.
        """
        control, rows = self._control, self.max_rows
        self._open_panels(positions, slots)
        wanted = range(len(ids)) if wanted is None else wanted
        for number, values in enumerate((ids, positions, slots, wanted)):
            first = self._lists + number * rows
            control[first : first + len(values)] = values
        control[c.ROWS], control[c.WANTED], control[c.EXIT_LAYER] = len(ids), len(wanted), exit_at
        self._helpers.wake()
        self._kernels.run(*self._arguments, 0)
        logits = self._logits[: len(wanted), : self.config.vocab_size]
        if not exit_at:
            return logits
        return np.concatenate([logits, self._logits[rows : rows + len(wanted), : self.config.vocab_size]])

    def read(
        self, slot: int, ids: Sequence[int], start: int, *, every: bool = False, exit_at: int = 0
    ) -> NDArray[np.float32]:
        """Read tokens of one sequence from position ``start`` on; logits after the last of them, or after each.

        Returns:
            (1, V) or (T, V) float32, valid until the next step; with an early exit (see `step`) twice as many rows.

        A exit_at cannot be read after each of more than `max_rows` tokens.
        """
        parts: list[NDArray[np.float32]] = []
        for first in range(0, len(ids), self.max_rows):
            part = ids[first : first + self.max_rows]
            last = first + len(part) == len(ids)
            wanted = range(len(part)) if every else [len(part) - 1] if last else []
            positions = range(start + first, start + first + len(part))
            logits = self.step(part, positions, [slot] * len(part), wanted, exit_at if wanted else 0)
            if every:
                parts.append(logits if last and not parts else logits.copy())
        return np.concatenate(parts) if len(parts) > 1 else logits

    def fork(self, source: int, target: int, length: int) -> None:
        """Let slot ``target`` know the first ``length`` tokens of ``source``."""
        for cache in (self._keys, self._values):
            kept = padded(length, LANES) * cache.shape[-1] // self.capacity
            cache[target, :, :kept] = cache[source, :, :kept]
        self._open[target] = self._open[source]

    def _open_panels(self, positions: Sequence[int], slots: Sequence[int]) -> None:
        """Turn back the panel of keys that a sequence goes on in, where it is a full one (see cached_attention.py)."""
        ends: dict[int, int] = {}
        for position, slot in zip(positions, slots, strict=True):
            if slot not in ends and position % LANES and self._open[slot] != position // LANES:
                size = LANES * self.config.head_dim
                panel = self._keys[slot, :, position // LANES * size :][:, :size]
                turned = panel.reshape(len(panel), -1, LANES).transpose(0, 2, 1)
                panel[:] = turned.reshape(len(panel), -1)
            ends[slot] = position
        for slot, position in ends.items():
            self._open[slot] = -1 if (position + 1) % LANES == 0 else position // LANES

    def _lay_out_work(self) -> None:
        """Activations, logits, scratch and cache in one array."""
        config, table = self.config, self._table
        width, projected = int(table[c.QKV + c.INPUTS]), int(table[c.QKV + c.OUTPUTS])
        self.max_rows = padded(min(MAX_ROWS, max(self.capacity, self.slots)), TILE)
        rows, head = self.max_rows, int(table[c.HEAD + c.OUTPUTS])
        panels = -(-config.head_dim // LANES)
        caches = self.slots * config.n_layers * config.n_heads
        sizes = {
            c.X: rows * width,
            c.NORMED: 2 * rows * width,
            c.CONTEXT: rows * width,
            c.PROJECTED: rows * projected,
            c.HIDDEN: 2 * rows * int(table[c.CONTRACT + c.INPUTS]),  # and arranged for the next product
            c.LOGITS: 2 * rows * head,
            c.SCRATCH: self.threads * self._scratch_size(),
            c.KEYS: caches * self.capacity * config.head_dim,
            c.VALUES: caches * self.capacity * panels * LANES,
        }
        at = 0
        for cell, size in sizes.items():
            table[cell] = at
            at += padded(size, LANES)
        self._work = allocate(at, np.float32, huge=False)

        def view(cell: int) -> NDArray[np.float32]:
            return self._work[int(table[cell]) : int(table[cell]) + sizes[cell]]

        self._logits = view(c.LOGITS).reshape(-1, head)
        rows_of_keys = config.n_layers * config.n_heads  # position after position in each
        self._keys = view(c.KEYS).reshape(self.slots, rows_of_keys, -1)
        self._values = view(c.VALUES).reshape(self.slots, rows_of_keys * panels, -1)
        self._open = np.full(self.slots, -1)  # the panel of each slot's keys that is being filled
        table[c.LAYERS], table[c.HEADS], table[c.EMB_DIM] = config.n_layers, config.n_heads, config.emb_dim
        table[c.HEAD_SIZE], table[c.CAPACITY], table[c.MAX_ROWS] = config.head_dim, self.capacity, rows
        table[c.SCRATCH_SIZE] = self._scratch_size()

    def _scratch_size(self) -> int:
        inputs = max(int(self._table[c.QKV + c.INPUTS]), int(self._table[c.CONTRACT + c.INPUTS]))
        return c.scratch_size(self.capacity, self.config.head_dim, inputs)

    def _write_program(self) -> None:
        """The phases of a step, one row each, and the counters that they take."""
        table, program = self._table, phases(self.config, self._table)
        table[c.PROGRAM :] = 0
        for number, row in enumerate(program):
            first = c.PROGRAM + number * c.STEP
            table[first : first + len(row)] = row
        table[c.STEPS] = len(program)
        self._lists = c.COUNTERS + c.counter_cells(len(program))
        self._control = np.zeros(self._lists + 4 * self.max_rows, np.int64)
