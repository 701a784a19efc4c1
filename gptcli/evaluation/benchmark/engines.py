"""The engines that `gptcli bench` times.

A work is a timed workload: load, prefill, decode, batch or train. A contender is an engine in one precision that does
works. A contender's model is built for one work and freed after it, so that memory holds only the models of one work.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.config.sampling import SamplingConfig
from gptcli.inference import speculative
from gptcli.inference.arrays import Array
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Engine, Scorer
from gptcli.inference.open import obstacle
from gptcli.inference.sampling import greedy
from gptcli.inference.sequence import Request, Sequence
from gptcli.inference.torch_engine import TorchEngine
from gptcli.kernels.cpu import train_kernels
from gptcli.kernels.gpu.triton_support import triton_reason
from gptcli.model import cost
from gptcli.model.gpt import GPTModel
from gptcli.model.parameters import parameter_shapes
from gptcli.model.quantization import Packed
from gptcli.model.quantized import PackedModel
from gptcli.training.step import Stepper
from gptcli.training.step_graph import WARM_UP_STEPS

TRAINED_ROWS = 4
LEARNING_RATE = 1e-4
DECODING = frozenset({"prefill", "decode", "batch"})
FORMATS: dict[int, cost.WeightFormat] = {32: "float32", 8: "int8", 4: "int4"}
Weights = Mapping[str, NDArray[Any] | Packed]


@dataclass(frozen=True)
class Setting:
    """The inputs of a benchmark, the same for every contender.

    Attributes:
        config, weights: the model, with float32 weights.
        tokens: tokens that the work decode generates; the work batch generates a quarter of that per sequence.
        prompt: tokens that a prefill reads.
        batch: sequences that the work batch decodes at once.
        threads: CPU threads.
        device, dtype: the device of torch, and the dtype of its computations.
        rows, length: windows of a training step, and tokens of each (None: 256, or the context if it is shorter).
    """

    config: GPTConfig
    weights: Weights
    tokens: int
    prompt: int
    batch: int
    threads: int
    device: torch.device
    dtype: torch.dtype
    rows: int = TRAINED_ROWS
    length: int | None = None

    @property
    def place(self) -> str:
        """The end of a subject's name: the precision, and the device unless it is the CPU."""
        return self.dtype_name + ("" if self.device.type == "cpu" else f" on {self.device.type}")

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def batch_steps(self) -> int:
        """Tokens that the work batch decodes per sequence."""
        return max(1, self.tokens // 4)

    @property
    def training_length(self) -> int:
        """Tokens per window of a training step."""
        return self.length or min(256, self.config.context_length)

    def prompt_ids(self) -> list[int]:
        return [(1000 + i) % self.config.vocab_size for i in range(self.prompt)]

    def first_ids(self) -> list[int]:
        """The first token of each sequence of a batch."""
        return [row % self.config.vocab_size for row in range(self.batch)]

    def windows(self) -> Tensor:
        """The inputs of a training step, (B, T) int64."""
        ids = torch.arange(self.rows * self.training_length).view(self.rows, -1)
        return ids.to(self.device) % self.config.vocab_size

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights on the device; on the CPU in float32, writable arrays are shared and not copied."""
        arrays = {name: np.require(self.weights[name], requirements="W") for name in self.weights}
        return {name: torch.from_numpy(array).to(self.device, dtype) for name, array in arrays.items()}


@dataclass(frozen=True)
class Task:
    """A work on a loaded model, ready to be repeated.

    Attributes:
        run: does the work once; decoding returns the new ids, a list for each sequence.
        weight_bytes: bytes of weights that one step reads.
    """

    run: Callable[[], Any]
    weight_bytes: int = 0


@dataclass(frozen=True)
class Contender:
    """An engine in one precision.

    Attributes:
        subject: name of the engine and its precision.
        works: names of the works that it does.
        ready: builds the `Task` for the name of a work.
        model_bytes: approximate memory of its model.
        peer: whether it is the --against library, with which `Row.beside` compares the others.
        cooldown: seconds for which its threads spin after its work is done.
    """

    subject: str
    works: frozenset[str]
    ready: Callable[[str], Task]
    model_bytes: int
    peer: bool = False
    cooldown: float = 0.0


def ours(setting: Setting) -> list[Contender]:
    """Our engines that run on ``setting.device``, in the order of the table."""
    config, on_cpu = setting.config, setting.device.type == "cpu"
    found = []
    if on_cpu and obstacle(config) is None:
        for bits, name in FORMATS.items():
            size = cost.weight_bytes(config, name)
            found.append(Contender(f"cpu {name}", DECODING | {"load"}, partial(_kernels, setting, bits), size))
        both = sum(cost.weight_bytes(config, name) for name in ("float32", "int8"))
        found.append(Contender("cpu float32, drafted in int8", frozenset({"decode"}), partial(_drafted, setting), both))
    full = cost.parameter_count(config) * setting.dtype.itemsize
    found.append(Contender(f"torch {setting.place}", DECODING | {"train"}, partial(_torch, setting, 32), full))
    for bits in () if on_cpu else (8, 4):
        subject, size = f"torch {FORMATS[bits]} in {setting.place}", cost.weight_bytes(config, FORMATS[bits])
        found.append(Contender(subject, DECODING, partial(_torch, setting, bits), size))
    return found


def random_weights(config: GPTConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Matrices from N(0, 0.02²), biases 0, norm scales 1: the speed is that of real weights, without a download."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            weights[name] = np.full(shape, 1.0 if "ln_" in name and name.endswith("weight") else 0.0, np.float32)
        else:
            weights[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return weights


def bytes_read(config: GPTConfig, weight_format: cost.WeightFormat) -> int:
    """Bytes of weights read per decoded token: all but the position embeddings and an untied token embedding."""
    width, full = config.emb_dim, 2 if weight_format == "bfloat16" else 4
    unread = config.context_length * width * full
    if not config.tie_weights:
        tied = config.with_changes(tie_weights=True)
        unread += cost.weight_bytes(config, weight_format) - cost.weight_bytes(tied, weight_format)
    return cost.weight_bytes(config, weight_format) - unread


def capacity(setting: Setting) -> int:
    """The number of tokens that the KV cache must hold."""
    return max(setting.prompt, setting.tokens)


def _kernels(setting: Setting, bits: int, work: str) -> Task:
    """A work done by the numba kernels on the CPU."""
    from gptcli.inference.cpu_engine import CpuEngine

    def make(slots: int = 1) -> CpuEngine:
        config, room = setting.config, capacity(setting)
        return CpuEngine(config, setting.weights, bits=bits, capacity=room, slots=slots, threads=setting.threads)

    if work == "load":
        return Task(make)
    engine = make(setting.batch if work == "batch" else 1)
    return Task(_decoding(engine, setting, work), engine.weight_bytes)


def _drafted(setting: Setting, _: str) -> Task:
    """Speculative decoding as in `gptcli generate`: an int8 copy drafts for the float32 model. The tokens are those of
    float32; the rate can exceed the limit, as one reading of the float32 weights checks several tokens."""
    from gptcli.inference.cpu_engine import CpuEngine

    engine = CpuEngine(setting.config, setting.weights, capacity=capacity(setting), threads=setting.threads)
    scorer = Scorer(engine)
    packed = speculative.quantized_drafter(scorer, 8)
    request = Request(setting.first_ids()[:1], setting.tokens, SamplingConfig(temperature=0), seed=0)

    def decode() -> list[list[int]]:
        tally = speculative.Tally()
        scheduler = Scheduler(scorer, speculative.OnTrial(packed, tally), tally)
        return [[token.id for token in generate(scheduler, request)]]

    return Task(decode, engine.weight_bytes)


def _torch(setting: Setting, bits: int, work: str) -> Task:
    """A work done by torch; training is the step of `gptcli train`, on float32 weights."""
    if work == "train":
        dtype: Any = setting.dtype_name
        compiles = triton_reason(setting.device) is None  # as in a long run
        recipe = RecipeConfig(batch_size=setting.rows, dtype=dtype)
        model = _model(setting, torch.float32).train()
        if train_kernels.is_worthwhile(setting.training_length * setting.rows, setting.config.emb_dim):
            kernels = train_kernels.open_kernels()
            model.use(None if isinstance(kernels, str) else kernels)
        stepper = Stepper(model, recipe, RuntimeConfig(compile=compiles))
        x = setting.windows()
        for _ in range(WARM_UP_STEPS + 1 if compiles else 0):
            stepper.step(x, x, LEARNING_RATE)
        return Task(lambda: stepper.step(x, x, LEARNING_RATE))
    if bits == 32:
        model = _model(setting, setting.dtype)
    else:
        model = PackedModel(setting.config, setting.weights, bits, setting.device, setting.dtype)
    engine = TorchEngine(model, capacity(setting), setting.batch if work == "batch" else 1)
    held = "bfloat16" if bits == 32 and setting.dtype.itemsize == 2 else FORMATS[bits]
    return Task(_decoding(engine, setting, work), bytes_read(setting.config, held))


def _model(setting: Setting, dtype: torch.dtype) -> GPTModel:
    with torch.device("meta"):
        model = GPTModel(setting.config, init=None)
    model.load_state_dict(setting.tensors(dtype), assign=True)
    return model.eval()


def _decoding(engine: Engine, setting: Setting, work: str) -> Callable[[], Any]:
    """Prefill, or greedy decoding of one sequence or many."""
    prompt, first, rows = setting.prompt_ids(), setting.first_ids(), range(setting.batch)

    def likeliest(logits: Array) -> list[int]:
        ids: list[int] = greedy(logits, SamplingConfig(temperature=0)).tolist()
        return ids

    def drawn_there(ids: list[int], steps: int) -> list[list[int]] | None:
        """The ids that the engine draws on its device for each row; None where it returns logits instead."""
        texts = [Request([token], steps, SamplingConfig(temperature=0), seed=0) for token in ids]
        draws = engine.device_sampler(texts)
        if draws is None:
            return None
        for slot, request in enumerate(texts):
            draws.join(slot, Sequence(request, setting.config.context_length), 0)
        draws.queue()
        columns: list[list[int]] = []
        for step in range(steps):
            if step + 1 < steps:
                draws.queue()
            columns.append([found.id for found in draws.results().values()])
        for slot in range(len(texts)):
            draws.leave(slot)
        return list(map(list, zip(*columns, strict=True)))

    def decode() -> list[list[int]]:
        ids = first[:1]
        if (texts := drawn_there(ids, setting.tokens)) is not None:
            return texts
        drawn = [ids := likeliest(engine.forward([0], [ids], [position])) for position in range(setting.tokens)]
        return list(map(list, zip(*drawn, strict=True)))

    def decode_batch() -> list[list[int]]:
        ids, steps = first, range(setting.batch_steps)
        if (texts := drawn_there(ids, setting.batch_steps)) is not None:
            return texts
        drawn = [ids := likeliest(engine.forward(rows, [[token] for token in ids], [n] * len(rows))) for n in steps]
        return list(map(list, zip(*drawn, strict=True)))

    return {"prefill": lambda: engine.forward([0], [prompt], [0]), "decode": decode, "batch": decode_batch}[work]
