"""The CPU engine: a model packed for decode_step.py, its cache and its threads; numpy arrays, no torch.

A row is one token at one position of a slot; a slot is the part of the cache that holds one sequence.
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.config.model import GPTConfig
from gptcli.errors import SettingError
from gptcli.inference.cpu_weights import Matrices
from gptcli.kernels.cpu import first_compilation
from gptcli.kernels.cpu import memory_layout as c
from gptcli.kernels.cpu.compile_cache import DecodingKernels, decoding_kernels
from gptcli.kernels.cpu.memory_layout import LANES, allocate, padded
from gptcli.kernels.cpu.step_program import phases
from gptcli.kernels.cpu.target import TILE
from gptcli.kernels.cpu.worker_threads import Helpers
from gptcli.model.quantization import Tensors

AT_ONCE = 12  # matmul.TILE of a CPU with wide registers: rows that are multiplied with a weight while in a register
MAX_ROWS = 192  # most rows of a step, unless there are more slots


class CpuEngine:
    """A packed model, its cache and its threads.

    Args:
        config: the model's shape, for which `open.obstacle` returns None.
        weights: by the model's parameter names, float32 or `Packed`, each of which is read once and not kept; or the
            matrices of `early.pack_early`, awaited when the kernels are there.
        bits: 32, 8 or 4: the format of the matrices; float32 ones are quantised when they are loaded.
        capacity: tokens that a slot of the cache holds; the model's context by default.
        slots: sequences that the cache holds.
        threads: computing threads, including the caller's.
        report: called with a message before an operation that takes long.
    """

    def __init__(
        self,
        config: GPTConfig,
        weights: Tensors | Future[Matrices],
        *,
        bits: int = 32,
        capacity: int | None = None,
        slots: int = 1,
        threads: int = 1,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config = config
        self.slots = slots
        self.at_once, self.verifies = AT_ONCE, True
        self.threads = min(threads, c.MAX_THREADS)
        self.capacity = padded(min(capacity or config.context_length, config.context_length), LANES)
        self._report, kernels = report, decoding_kernels(bits, report)
        if isinstance(weights, Future):
            self._matrices = weights.result()
        else:
            self._matrices = Matrices(config, bits, self.threads, kernels)
            self._matrices.fill(weights)
        self._table = self._matrices.table
        self._lay_out_work()
        self._write_program()
        self._start(kernels)

    def quantized_copy(self, bits: int) -> "CpuEngine":
        """This model with its float32 matrices packed in ``bits`` bits (8 or 4); everything else is shared.

        The two engines share the cache and the logits buffer: each can continue the other's sequences, and they must
        not run at the same time.

        Raises:
            GptcliError: the kernels for such a copy cannot be compiled.
        """
        reason = first_compilation.failure(f"int{bits}", self._report)
        if reason is not None:
            raise SettingError(f"No copy in int{bits} can be made: {reason}.", "Leave {draft} out, or take another.")
        kernels = decoding_kernels(bits, self._report)
        packed = copy.copy(self)
        packed._table = self._table.copy()
        packed._matrices = self._matrices.packed_anew(packed._table, bits, kernels)
        packed._write_program()
        packed._start(kernels)
        return packed

    def with_slots(self, slots: int) -> "CpuEngine":
        """These weights with a cache of their own, for ``slots`` sequences."""
        other = copy.copy(self)
        other.slots, other._table = slots, self._table.copy()
        other._lay_out_work()
        other._write_program()
        other._start(self._kernels)
        return other

    def device_sampler(self, requests: Sequence[Any], drawable: Any = None) -> None:
        """None: the caller draws from the logits."""

    def _start(self, kernels: DecodingKernels) -> None:
        """Start the helper threads."""
        weights, self._kernels = self._matrices, kernels
        self._run = kernels.run.bound(
            weights.data, weights.scale, weights.floats, self._work, self._table, self._control
        )
        self._helpers = Helpers(self._run, self._control, self.threads - 1)
        self.close = weakref.finalize(self, self._helpers.end)

    @property
    def weight_bytes(self) -> int:
        """Bytes that one decode step reads of the matrices."""
        return self._matrices.bytes_read

    def forward(
        self,
        slots: Sequence[int],
        ids: Sequence[Sequence[int]],
        positions: Sequence[int],
        *,
        every: bool = False,
        exit_at: int = 0,
    ) -> NDArray[np.float32]:
        """As `engine.Engine.forward`: float32. More than `max_rows` tokens are read in several passes."""
        places = [start + n for row, start in zip(ids, positions, strict=True) for n in range(len(row))]
        owners = [slot for slot, row in zip(slots, ids, strict=True) for _ in row]
        tokens = [token for row in ids for token in row]
        wanted = range(len(tokens)) if every else [n - 1 for n in accumulate(map(len, ids))]
        if len(tokens) <= self.max_rows:
            return self._pass(tokens, places, owners, wanted, exit_at)
        parts: list[NDArray[np.float32]] = []
        for first in range(0, len(tokens), self.max_rows):
            part = slice(first, first + self.max_rows)
            its = [n - first for n in wanted if first <= n < first + self.max_rows]
            logits = self._pass(tokens[part], places[part], owners[part], its, exit_at if its else 0)
            if its:
                parts.append(logits.copy())
        if not exit_at:
            return np.concatenate(parts)
        halves = [np.split(part, 2) for part in parts]
        return np.concatenate([half[side] for side in (0, 1) for half in halves])

    def _pass(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        wanted: Sequence[int],
        exit_at: int,
    ) -> NDArray[np.float32]:
        """Run a forward pass of up to `max_rows` tokens.

        Args:
            ids, positions, slots: of each row its token id, position and slot; the positions of a slot are consecutive,
                and the cache holds all earlier ones.
            wanted: indices of the rows whose logits are computed.
            exit_at: the early-exit layer (from 1): the head's logits of its normed output follow the final ones; 0 for
                none.

        Returns:
            (W, V) float32, or (2 W, V) with an early-exit layer; valid until the next pass.
        """
        control, rows = self._control, self.max_rows
        self._open_panels(positions, slots)
        for number, values in enumerate((ids, positions, slots, wanted)):
            first = self._lists + number * rows
            control[first : first + len(values)] = values
        control[c.ROWS], control[c.WANTED], control[c.EXIT_LAYER] = len(ids), len(wanted), exit_at
        self._helpers.wake()
        self._run(0)
        logits = self._logits[: len(wanted), : self.config.vocab_size]
        if not exit_at:
            return logits
        return np.concatenate([logits, self._logits[rows : rows + len(wanted), : self.config.vocab_size]])

    def fork(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of slot ``source`` to slot ``target``."""
        for cache in (self._keys, self._values):
            kept = padded(length, LANES) * cache.shape[-1] // self.capacity
            cache[target, :, :kept] = cache[source, :, :kept]
        self._open[target] = self._open[source]

    def _open_panels(self, positions: Sequence[int], slots: Sequence[int]) -> None:
        """Transpose a full panel of keys back if a sequence continues inside it (see cached_attention.py)."""
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
        """Allocate activations, logits, scratch and cache in one float32 array; write their offsets to the table."""
        config, table = self.config, self._table
        width, projected = int(table[c.QKV + c.INPUTS]), int(table[c.QKV + c.OUTPUTS])
        self.max_rows = self.prompt_tokens = padded(min(MAX_ROWS, max(self.capacity, self.slots)), TILE)
        rows, head = self.max_rows, int(table[c.HEAD + c.OUTPUTS])
        panels = -(-config.head_dim // LANES)
        caches = self.slots * config.n_layers * config.n_heads
        sizes = {
            c.X: rows * width,
            c.NORMED: 2 * rows * width,
            c.CONTEXT: rows * width,
            c.PROJECTED: rows * projected,
            c.HIDDEN: 2 * rows * int(table[c.CONTRACT + c.INPUTS]),  # and a copy in the next product's layout
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
        rows_of_keys = config.n_layers * config.n_heads  # a row holds all positions of one head
        self._keys = view(c.KEYS).reshape(self.slots, rows_of_keys, -1)
        self._values = view(c.VALUES).reshape(self.slots, rows_of_keys * panels, -1)
        self._open = np.full(self.slots, -1)  # the panel of each slot's keys that is being filled
        table[c.LAYERS], table[c.HEADS], table[c.EMB_DIM] = config.n_layers, config.n_heads, config.emb_dim
        table[c.HEAD_SIZE], table[c.CAPACITY], table[c.MAX_ROWS] = config.head_dim, self.capacity, rows
        table[c.SCRATCH_SIZE] = self._scratch_size()

    def _scratch_size(self) -> int:
        inputs = max(int(self._table[c.QKV + c.INPUTS]), int(self._table[c.CONTRACT + c.INPUTS]))
        return c.scratch_size(self.capacity, self.config.head_dim, inputs, TILE)

    def _write_program(self) -> None:
        """Write the phases of a step to the table, one row each, and allocate their counters."""
        table, program = self._table, phases(self.config, self._table)
        table[c.PROGRAM :] = 0
        for number, row in enumerate(program):
            first = c.PROGRAM + number * c.STEP
            table[first : first + len(row)] = row
        table[c.STEPS] = len(program)
        self._lists = c.COUNTERS + c.counter_cells(len(program))
        self._control = np.zeros(self._lists + 4 * self.max_rows, np.int64)
