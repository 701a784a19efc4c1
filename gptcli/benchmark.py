"""How fast this machine runs a model, each figure beside the limit that was measured in turns with it.

Decoding one sequence reads every weight once a token: its limit is the memory's read bandwidth. A prompt, a batch and
a training step are matrix products: their limit is the rate of a large one.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gptcli.config import GPTConfig
from gptcli.decoding import SlotDecoder
from gptcli.model import GPTModel
from gptcli.quantization import Packed
from gptcli.torch_engine import TorchEngine
from gptcli.weightfile import parameter_shapes

Weights = Mapping[str, NDArray[Any] | Packed]
READ_BYTES = 256 * 2**20
PRODUCT = 1024


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        work: what was done.
        subject: by which engine and in which precision.
        rate: the median, in ``unit``.
        low, high: the slowest and the fastest repetition.
        unit: "tokens/s", "s" or "GB/s".
        repetitions: how many times.
        limit: what the machine allows in the same unit, the median of the same turns; None where there is none.
        fraction: the median of rate / limit, turn by turn.
    """

    work: str
    subject: str
    rate: float
    low: float
    high: float
    unit: str
    repetitions: int
    limit: float | None = None
    fraction: float | None = None


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes, by the wall clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Limits:
    """What the machine can do at best, measured anew at every call."""

    def __init__(self) -> None:
        self._long = torch.ones(READ_BYTES // 4)
        self._square = torch.ones(PRODUCT, PRODUCT)

    def read_rate(self) -> float:
        """Bytes a second of a sum over a vector that no cache holds."""
        return READ_BYTES / seconds(lambda: self._long.sum())

    def product_rate(self) -> float:
        """Floating-point operations a second of a square float32 matrix product."""
        return 2 * PRODUCT**3 / seconds(lambda: self._square @ self._square)


def in_turns(
    work: str, subject: str, repetitions: int, call: Callable[[], Any], tokens: int, limit: Callable[[], float]
) -> Row:
    """Measure ``call``, which handles ``tokens`` tokens, and ``limit`` (tokens a second) one after the other."""
    call()
    limit()
    rates, limits = [], []
    for _ in range(repetitions):
        before = limit()
        rates.append(tokens / seconds(call))
        limits.append((before + limit()) / 2)
    fractions = [rate / most for rate, most in zip(rates, limits, strict=True)]
    return Row(
        work, subject, median(rates), min(rates), max(rates), "tokens/s", repetitions, median(limits), median(fractions)
    )


def random_weights(config: GPTConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A model's parameters drawn from N(0, 0.02²), norms neutral: as fast as real ones, and nothing to download."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            weights[name] = np.full(shape, 1.0 if "ln_" in name and name.endswith("weight") else 0.0, np.float32)
        else:
            weights[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return weights


def matrix_flops(config: GPTConfig) -> int:
    """Floating-point operations of the matrix products of one token, the head not among them."""
    width = config.emb_dim
    return 2 * config.n_layers * width * (4 * width + 2 * config.hidden_dim)


def torch_model(config: GPTConfig, weights: Weights) -> GPTModel:
    """The torch model with these float32 weights, which it shares where they may be written to."""
    model = GPTModel(config, init=None)
    model.load_state_dict(
        {name: torch.from_numpy(np.require(weights[name], requirements="W")) for name in weights}, assign=True
    )
    return model.eval()


def cpu_engine(
    config: GPTConfig, weights: Weights, bits: int, *, threads: int, tokens: int, prompt: int, batch: int,
    repetitions: int, works: set[str], limits: Limits,
) -> Iterator[Row]:  # fmt: skip
    """Load, prefill, decode and batch with the compiled kernels."""
    from gptcli.engine import Engine
    from gptcli.kernel_cache import Kernels

    Kernels().prepare(bits)
    subject = {32: "cpu float32", 8: "cpu int8", 4: "cpu int4"}[bits]
    times = []
    for _ in range(repetitions if "load" in works else 1):
        engine = None  # let the last one go before the next one comes
        start = time.perf_counter()
        engine = Engine(config, weights, bits=bits, capacity=max(prompt, 32) + tokens, slots=batch, threads=threads)
        times.append(time.perf_counter() - start)
    assert engine is not None
    if "load" in works:
        yield Row("load", subject, median(times), max(times), min(times), "s", repetitions)
    flops = matrix_flops(config)
    head_flops = 2 * config.emb_dim * config.vocab_size
    ids = [(1000 + i) % config.vocab_size for i in range(prompt)]
    if "prefill" in works:
        per_token = flops + head_flops / prompt

        def product_limit() -> float:
            return limits.product_rate() / per_token

        yield in_turns(f"prefill {prompt}", subject, repetitions, lambda: engine.read(0, ids, 0), prompt, product_limit)
    if "decode" in works:

        def read_limit() -> float:
            return limits.read_rate() / engine.weight_bytes

        def decode() -> None:
            for position in range(tokens):
                engine.read(0, [position % config.vocab_size], position)

        yield in_turns(f"decode {tokens}", subject, repetitions, decode, tokens, read_limit)
    if "batch" in works and batch > 1:

        def batched_limit() -> float:
            return limits.product_rate() / (flops + head_flops)

        def decode_batch() -> None:
            for position in range(tokens // 4):
                engine.step([position % config.vocab_size] * batch, [position] * batch, range(batch), range(batch))

        count = tokens // 4 * batch
        yield in_turns(f"decode, {batch} at once", subject, repetitions, decode_batch, count, batched_limit)


def torch_engine(
    config: GPTConfig, weights: Weights, *, tokens: int, prompt: int, repetitions: int, works: set[str], limits: Limits
) -> Iterator[Row]:
    """Prefill, decode and a training step with the torch model, in float32 on the CPU."""
    model = torch_model(config, weights)
    read = SlotDecoder(TorchEngine(model, max(prompt, tokens)))
    ids = [(1000 + i) % config.vocab_size for i in range(prompt)]
    flops, head_flops = matrix_flops(config), 2 * config.emb_dim * config.vocab_size

    def from_the_start(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            read.crop(0)
            call()

        return run

    if "prefill" in works:
        prefill = from_the_start(lambda: read.read(ids))
        yield in_turns(
            f"prefill {prompt}", "torch float32", repetitions, prefill, prompt,
            lambda: limits.product_rate() / (flops + head_flops / prompt),
        )  # fmt: skip
    if "decode" in works:
        size = sum(parameter.numel() for name, parameter in model.named_parameters() if name != "wpe.weight") * 4
        decode = from_the_start(lambda: [read.read([i % config.vocab_size]) for i in range(tokens)])
        limit = lambda: limits.read_rate() / size  # noqa: E731
        yield in_turns(f"decode {tokens}", "torch float32", repetitions, decode, tokens, limit)
    if "train" in works:
        yield training_step(config, repetitions, limits, lambda x: F.cross_entropy(model(x).flatten(0, 1), x.flatten()),
                            list(model.train().parameters()), "torch float32")  # fmt: skip


def training_step(
    config: GPTConfig,
    repetitions: int,
    limits: Limits,
    loss: Callable[[torch.Tensor], torch.Tensor],
    parameters: list[torch.nn.Parameter],
    subject: str,
    batch: int = 4,
) -> Row:
    """Forward, backward, clip and AdamW over a batch of windows of at most 256 tokens."""
    length = min(256, config.context_length)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.1, fused=True)
    x = torch.arange(batch * length).view(batch, length) % config.vocab_size

    def step() -> None:
        loss(x).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    flops = 3 * (matrix_flops(config) + 2 * config.emb_dim * config.vocab_size)
    work = f"train, {batch} x {length}"
    return in_turns(work, subject, repetitions, step, batch * length, lambda: limits.product_rate() / flops)


def transformers_model(
    config: GPTConfig, *, tokens: int, prompt: int, repetitions: int, works: set[str], limits: Limits
) -> Iterator[Row]:
    """The same works with Hugging Face's transformers, of random weights of the same shape."""
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    shape = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.emb_dim,
        n_layer=config.n_layers, n_head=config.n_heads, n_inner=config.hidden_dim,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(shape)
    model.eval()
    flops, head_flops = matrix_flops(config), 2 * config.emb_dim * config.vocab_size
    x = torch.arange(prompt)[None] % config.vocab_size
    if "prefill" in works:

        def prefill() -> None:
            with torch.inference_mode():
                model(x, logits_to_keep=1)

        limit = lambda: limits.product_rate() / (flops + head_flops / prompt)  # noqa: E731
        yield in_turns(f"prefill {prompt}", "transformers", repetitions, prefill, prompt, limit)
    if "decode" in works:
        size = sum(parameter.numel() for name, parameter in model.named_parameters() if "wpe" not in name) * 4

        def decode() -> None:
            model.generate(x[:, :1], max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)

        limit = lambda: limits.read_rate() / size  # noqa: E731
        yield in_turns(f"decode {tokens}", "transformers", repetitions, decode, tokens, limit)
    if "train" in works:
        model.train()
        yield training_step(
            config,
            repetitions,
            limits,
            lambda ids: model(ids, labels=ids).loss,
            list(model.parameters()),
            "transformers",
        )
