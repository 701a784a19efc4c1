"""The torch engine: several sequences, each in a slot of one cache, on any device.

A step reads token ids and positions from tensors with fixed addresses, and its shapes depend on the length of a text
only through the part of the cache that is attended to, a multiple of the span. So on a CUDA device a step is captured
once as a CUDA graph and then replayed; without a graph, launching a few hundred kernels one by one takes most of a
small model's step. On other devices the step runs eagerly.

If Triton kernels can run, they compute the step (step_launches.py), draw from its logits on the device
(device_draws.py) and read prompts (prompt_launches.py). All other cases use the plain torch step.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from gptcli.config.sampling import SamplingConfig
from gptcli.device import graphs
from gptcli.device.allocator import out_of_memory
from gptcli.inference.ragged_cache import RaggedCache
from gptcli.inference.sampling import Drawable
from gptcli.inference.sequence import Request
from gptcli.kernels.gpu.triton_support import triton_reason
from gptcli.model.gpt import Cache, GPTModel, KVCache
from gptcli.model.quantized import PackedModel

if TYPE_CHECKING:
    from gptcli.inference.device_draws import DeviceDraws
    from gptcli.inference.prompt_launches import PromptStep
    from gptcli.inference.step_launches import DecodeStep

SPAN = 128  # positions; a step attends to a multiple of it
AT_ONCE = 8  # most tokens of a single sequence in a step, and so in a verification of speculation
PART = 1024  # most tokens of a prompt in one forward pass
_Made = TypeVar("_Made")


class TorchEngine:
    """A `GPTModel`, its cache and its steps, as an `engine.Engine`.

    Args:
        model: in eval mode.
        capacity: tokens that a slot holds; the model's context by default.
        slots: sequences that the cache holds.
        span: see `SPAN`.
        capture: replay steps as CUDA graphs on a CUDA device.
        compiled: compile the steps with torch.compile.
        kernels: compute the steps with Triton kernels if they can run; ignored with ``compiled``.
        report: called with the reason if graphs, torch.compile or kernels do not work and a slower step is used.
    """

    def __init__(
        self,
        model: GPTModel,
        capacity: int | None = None,
        slots: int = 1,
        *,
        span: int = SPAN,
        capture: bool = True,
        compiled: bool = False,
        kernels: bool = True,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config = config = model.config
        self.model, self.slots, self.at_once = model, slots, AT_ONCE
        self.prompt_tokens = 0  # prompts of several lengths would be padded
        self.verifies = model.dtype == torch.float32
        self._span, self._report = span, report
        kept = min(capacity or config.context_length, config.context_length)
        places = -(-(kept + AT_ONCE) // span) * span
        self._padding = places - AT_ONCE  # index in S of a padding row's first token
        shape = (config.n_layers, 2, slots, config.n_heads, places, config.head_dim)
        # Zeros and not uninitialised: masked values are multiplied by 0, and NaN times 0 is NaN.
        self._store = torch.zeros(shape, device=model.device, dtype=model.dtype)
        self._ids = torch.zeros(slots, AT_ONCE, dtype=torch.int64, device=model.device)
        self._places = torch.zeros(slots, dtype=torch.int64, device=model.device)
        self._captures = capture and model.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        self._graphs: dict[tuple[int, int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._draws: DeviceDraws | None = None
        self._drawn: dict[SamplingConfig | None, Callable[[], None]] = {}
        self._compiled = torch.compile(self._compute, dynamic=False) if compiled else None
        self._kernels: DecodeStep | None = None
        self._prompts: PromptStep | None = None
        if kernels and not compiled:
            self._open_kernels()

    def _open_kernels(self) -> None:
        """Set up the Triton kernels, or report why they cannot run."""
        device = self.model.device
        reason = triton_reason(device)
        if reason is None:
            try:
                from gptcli.inference.prompt_launches import PromptStep
                from gptcli.inference.step_launches import MOST_ROWS, DecodeStep

                if self.slots <= MOST_ROWS:
                    nvidia = self._captures and torch.version.hip is None
                    hopper = nvidia and torch.cuda.get_device_capability(device) >= (9, 0)
                    self._kernels = DecodeStep(
                        self.model, self._store, self._ids, self._places, self._padding, dependent=hopper
                    )
                    self._prompts = PromptStep(self._kernels, self._replaying if self._captures else None)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                reason = _first_line(error)
        if reason is not None and device.type == "cuda":
            self._report(f"Triton's kernels cannot be used ({reason}); decoding continues without.")

    def _without_kernels(self, error: Exception) -> None:
        """Report that a kernel cannot run, and use the plain step from now on; without memory no step can."""
        if out_of_memory(error) is not None:
            raise error
        self._kernels, self._prompts, self._draws = None, None, None
        self._drawn.clear()
        self._graphs.clear()
        self._report(f"Triton's kernels cannot run here ({_first_line(error)}); decoding continues without.")

    def with_slots(self, slots: int) -> "TorchEngine":
        """This model with a cache of its own, for ``slots`` sequences of a whole context."""
        return TorchEngine(self.model, None, slots, span=self._span, capture=self._captures, report=self._report)

    def quantized_copy(self, bits: int) -> "TorchEngine":
        """This model with its matrices packed in ``bits`` bits (8 or 4), on this engine's cache."""
        weights = {name: t.detach().to("cpu", torch.float32).numpy() for name, t in self.model.state_dict().items()}
        packed = copy.copy(self)
        packed.model = PackedModel(self.config, weights, bits, self.model.device, self.model.dtype)
        packed._graphs, packed._compiled = {}, None
        packed._draws, packed._drawn = None, {}
        if self._kernels is not None:
            packed._open_kernels()
        return packed

    @torch.no_grad()
    def device_sampler(self, requests: Sequence[Request], drawable: Drawable | None = None) -> "DeviceDraws | None":
        """As `engine.Engine.device_sampler`: None without the kernels, or if one graph cannot draw for all requests."""
        if self._kernels is None:
            return None
        from gptcli.inference.device_draws import DeviceDraws, filters_of, plainly

        possible, filters = filters_of(requests)
        if not possible:
            return None
        if self._draws is None or self._draws.drawable != drawable:
            self._draws = DeviceDraws(self._kernels, drawable)
            self._drawn.clear()
        draws = self._draws
        draws.restart()
        if filters not in self._drawn:
            try:
                draws.prepare(filters)
                run = plainly(draws.launches(filters))
                self._drawn[filters] = self._replaying(run) if self._captures else run
            except Exception as error:
                self._without_kernels(error)
                return None
        draws.restart()  # capturing runs steps; all rows were padding, so no state has advanced
        draws.use(self._drawn[filters])
        return draws

    @torch.no_grad()
    def forward(
        self,
        slots: Sequence[int],
        ids: Sequence[Sequence[int]],
        positions: Sequence[int],
        *,
        every: bool = False,
        exit_at: int = 0,
    ) -> Tensor:
        """As `engine.Engine.forward`: one step for a token of each slot, else one slot after the other."""
        if all(len(row) == 1 for row in ids) and (len(slots) > 1 or (self.slots > 1 and positions[0] > 0)):
            return self._step_rows([row[0] for row in ids], positions, slots, exit_at)
        reads = zip(slots, ids, positions, strict=True)
        if len(slots) == 1:
            return self._read(*next(reads), every, exit_at)
        return _joined([self._read(*read, every, exit_at).clone() for read in reads], exit_at)

    def _read(self, slot: int, ids: Sequence[int], start: int, every: bool, exit_at: int) -> Tensor:
        """Tokens of one slot from position ``start`` on: logits (1, V) of the last, or (T, V), as `forward` says."""
        if (
            self._prompts is not None
            and start == 0
            and not (every or exit_at)
            and self.slots + len(ids) > 2
            and len(ids) <= PART
        ):
            try:
                return self._prompts.run(slot, ids)
            except Exception as error:
                self._without_kernels(error)
        if self.slots == 1 and len(ids) <= AT_ONCE:
            logits = self._run([ids], [start], exit_at)
            return logits if every else logits[len(ids) - 1 :: len(ids)]
        parts: list[Tensor] = []
        for first in range(0, len(ids), PART):
            part = torch.tensor([ids[first : first + PART]], device=self.model.device)
            cache = KVCache.over(self._store[:, :, slot : slot + 1], start + first)
            if every:
                parts.append(self._logits(part, cache, slice(None), exit_at))
            elif first + PART >= len(ids):
                return self._logits(part, cache, slice(-1, None), exit_at)
            else:
                self.model.hidden(part, cache)
        return _joined(parts, exit_at)

    def _step_rows(self, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int], exit_at: int) -> Tensor:
        """One token of each slot in one step: logits (B, V), or (2 B, V) with ``exit_at``."""
        all_ids, places = [[0]] * self.slots, [self._padding] * self.slots
        for slot, token_id, position in zip(slots, ids, positions, strict=True):
            all_ids[slot], places[slot] = [token_id], position
        logits = self._run(all_ids, places, exit_at)
        if len(slots) == self.slots and list(slots) == sorted(slots):
            return logits
        return logits[[*slots, *(self.slots + slot for slot in slots if exit_at)]]

    @torch.no_grad()
    def fork(self, source: int, target: int, length: int) -> None:
        """As `engine.Engine.fork`."""
        self._store[:, :, target, :, :length] = self._store[:, :, source, :, :length]

    def _run(self, ids: Sequence[Sequence[int]], places: Sequence[int], exit_at: int) -> Tensor:
        """One step of T ids in every row, from index ``places`` on. Logits (B T, V), or (2 B T, V) with ``exit_at``."""
        count = len(ids[0])
        self._ids[:, :count] = torch.tensor(ids)
        self._places[:] = torch.tensor(places)
        last = max(place for place in places if place < self._padding) + count
        if self._kernels is not None and not exit_at:
            try:
                return self._replayed((count, 0, 0))
            except Exception as error:
                self._without_kernels(error)
        key = count, -(-last // self._span) * self._span, exit_at
        if self._captures:
            try:
                return self._replayed(key)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._captures = False
                self._report(f"No CUDA graph could be captured ({_first_line(error)}); decoding continues without.")
        return self._step(*key)

    def _replayed(self, key: tuple[int, int, int]) -> Tensor:
        """Run the step of key (tokens, span, exit_at): by its graph, captured at the first use, or eagerly."""
        if not self._captures:
            return self._step(*key)
        if key not in self._graphs:
            self._graphs[key] = self._capture(lambda: self._step(*key))
        graph, logits = self._graphs[key]
        graph.replay()
        return logits

    def _capture(self, run: Callable[[], _Made]) -> tuple[torch.cuda.CUDAGraph, _Made]:
        """A CUDA graph of the launches of ``run``, and the value of ``run``: tensors that a replay writes to."""
        with torch.cuda.device(self.model.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):  # warm-up: libraries initialise outside the graph
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with graphs.capture(graph, self._pool):
                made = run()
        return graph, made

    def _replaying(self, run: Callable[[], None]) -> Callable[[], None]:
        """A function that replays a graph of the launches of ``run``."""
        graph, _ = self._capture(run)
        return lambda: graph.replay()

    def _step(self, count: int, span: int, exit_at: int) -> Tensor:
        """Run a step on the ids and positions in the tensors: by the kernels (span 0), compiled, or eagerly."""
        if not span and self._kernels is not None:
            return self._kernels.run(count)
        if self._compiled is not None and not exit_at:
            try:
                return self._compiled(count, span, exit_at)
            except Exception as error:
                self._compiled = None
                self._report(f"torch.compile cannot work here ({_first_line(error)}); decoding continues without.")
        return self._compute(count, span, exit_at)

    def _compute(self, count: int, span: int, exit_at: int) -> Tensor:
        cache = RaggedCache(self._store, self._places, span, self.config.context_length)
        return self._logits(self._ids[:, :count], cache, slice(None), exit_at)

    def _logits(self, ids: Tensor, cache: Cache, wanted: slice, exit_at: int) -> Tensor:
        """Logits (B W, V) of the ``wanted`` columns of ids (B, T); then as many of early-exit layer ``exit_at``."""
        layers: list[Tensor] = []
        hook = self.model.h[exit_at - 1].register_forward_hook(lambda _, __, x: layers.append(x)) if exit_at else None
        try:
            hidden = self.model.hidden(ids, cache)[:, wanted].flatten(0, 1)  # (B W, C)
        finally:
            if hook is not None:
                hook.remove()
        if exit_at:
            hidden = torch.cat([hidden, self.model.ln_f(layers[0][:, wanted].flatten(0, 1))])
        return self.model.logits(hidden)


def _joined(parts: list[Tensor], exit_at: int) -> Tensor:
    """Logits of several passes as one pass would give them: with an early-exit layer, its half follows the other."""
    if len(parts) == 1 or not exit_at:
        return torch.cat(parts)
    halves = [part.chunk(2) for part in parts]
    return torch.cat([half[side] for side in (0, 1) for half in halves])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
