"""Decoding and prompts on a CUDA GPU: graphs of Triton's kernels beside the plain engine, and beside the chip's limits.

Random weights, made on the device. `python tests/benchmarks/gpu_decode.py [--quick] [--only PART …]`
Parts: limits decode batch packed prefill draw. About 100 seconds on an H100; `--quick`: 40, what has a target.
"""

import argparse
import functools
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gptcli.config.model import GPTConfig
from gptcli.config.sampling import SamplingConfig
from gptcli.evaluation.benchmark.engines import bytes_read
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Scorer
from gptcli.inference.sequence import Request
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model import cost
from gptcli.model.gpt import GPTModel
from gptcli.model.quantized import PackedModel

PARTS = ("limits", "decode", "batch", "packed", "prefill", "draw")
LIMITS = {"bytes": 3.0e12, "flops": 0.8e15}
ROWS: list[tuple[str, ...]] = []


def say(*cells: object) -> None:
    """A line of the table, printed at once."""
    ROWS.append(tuple(str(cell) for cell in cells))
    print(" | ".join(f"{cell!s:<24}" if n == 0 else f"{cell!s:>12}" for n, cell in enumerate(cells)), flush=True)


def seconds(call: Callable[[], object], times: int = 5) -> float:
    """The median of the wall-clock seconds of one call, the device's work included."""
    call()
    torch.cuda.synchronize()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def limits() -> None:
    a = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    LIMITS["bytes"] = 2 * a.numel() * 5 / seconds(lambda: [b.copy_(a) for _ in range(5)])
    long = a.view(torch.int32)
    read = a.numel() * 5 / seconds(lambda: [long.sum() for _ in range(5)])
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    LIMITS["flops"] = 2 * 8192**3 * 5 / seconds(lambda: [x @ y for _ in range(5)])
    say("copy, read and written", f"{LIMITS['bytes'] / 1e9:,.0f} GB/s")
    say("sum, read", f"{read / 1e9:,.0f} GB/s")
    say("8192^3 in bfloat16", f"{LIMITS['flops'] / 1e12:,.0f} TFLOP/s")


def model_of(size: str, **changes: int) -> GPTModel:
    """Random weights in bfloat16."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = GPTModel(GPTConfig.preset(size, drop_rate=0.0, **changes), init=None)
        for name, parameter in model.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                parameter.data.fill_(1.0)
            elif parameter.dim() == 1:
                parameter.data.normal_(0, 0.02)
            else:
                parameter.data.normal_(0, 0.05 if name == "wte.weight" else 0.02)
    return model.to(torch.bfloat16).eval()


def packed_of(size: str, bits: int, alike: bool = False, **changes: int) -> GPTModel:
    """Packed on the device, without the search for the best scale that quantization.py does; ``alike``: all layers."""
    model = model_of(size, **changes)
    config = model.config
    weights = {name: Fast(tensor, bits) for name, tensor in model.state_dict().items()}
    del model
    return PackedModel(config, Weights(weights, alike), bits, "cuda", torch.bfloat16)


class Fast:
    """A weight on the device that becomes `Packed`, or float32, when it is asked for."""

    def __init__(self, tensor: torch.Tensor, bits: int) -> None:
        self.tensor, self.bits = tensor, bits

    def get(self, name: str) -> Any:
        from gptcli.model.quantization import Packed, is_packed_name, is_transposed

        if not is_packed_name(name):
            return self.tensor.float().cpu().numpy()
        w = self.tensor.float()
        w = w.t() if is_transposed(name) else w
        if self.bits == 8:
            scale = w.abs().amax(0) / 127
            return Packed((w / scale).round().to(torch.int8).cpu().numpy(), scale.cpu().numpy(), len(w))
        groups = w.reshape(-1, 32, w.size(1))
        scale = (groups.abs().amax(1) / 7).to(torch.bfloat16)
        q = (groups / scale.float()[:, None]).round().clamp(-8, 7).add(8).to(torch.uint8).reshape(w.shape)
        bits = scale.view(torch.int16).cpu().numpy().view("uint16")
        return Packed((q[0::2] | (q[1::2] << 4)).cpu().numpy(), bits, len(w))


class Weights(dict[str, Any]):
    """Packed when asked for; with ``alike`` every layer's are the first's, which are packed once."""

    def __init__(self, weights: dict[str, Fast], alike: bool) -> None:
        super().__init__(weights)
        self.alike = alike
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if not self.alike:
            return super().__getitem__(name).get(name)
        first = ".".join("0" if part.isdigit() else part for part in name.split("."))
        if first not in self.made:
            self.made[first] = super().__getitem__(first).get(first)
        return self.made[first]


def engine_of(name: str, model: GPTModel, slots: int) -> TorchEngine:
    """The plain engine or the kernels'; the latter changes where the model's weights lie, so it comes last."""

    def report(line: str) -> None:
        print(f"  engine: {line}", flush=True)

    return TorchEngine(model, 640, slots, kernels=name == "kernels", report=report)


def decode_rate(engine: TorchEngine, slots: int, new: int = 96) -> tuple[float, list[list[int]]]:
    """Tokens a second of greedy texts after a prompt of 16, and the texts."""
    requests = [Request(list(range(100 + n, 116 + n)), new, SamplingConfig(0), seed=n) for n in range(slots)]
    scheduler = Scheduler(Scorer(engine))

    def run() -> list[list[int]]:
        sequences = [scheduler.add(request) for request in requests]
        while not all(sequence.done for sequence in sequences):
            scheduler.step()
        return [[token.id for token in sequence.tokens] for sequence in sequences]

    texts = run()
    few = [Request(r.prompt, 2, r.sampling, r.seed) for r in requests]
    long, requests_long = seconds(run, 3), requests
    requests = few
    short = seconds(run, 3)
    requests = requests_long
    return slots * (new - 2) / (long - short), texts


def step_seconds(engine: TorchEngine, slots: int) -> float | None:
    """Seconds of a drawn step, queued without looking at it; None where nothing draws on the device."""
    requests = [Request([5], 400, SamplingConfig(0.8), seed=n) for n in range(slots)]
    draws = engine.device_sampler(requests)
    if draws is None:
        return None
    from gptcli.inference.sequence import Sequence as Text

    for slot, request in enumerate(requests):
        engine.forward([slot], [list(range(100))], [0])
        text = Text(request, engine.config.context_length)
        text.accept(7, share=1.0)
        draws.join(slot, text, 100)
    took = seconds(lambda: [draws._run() for _ in range(50)], 5) / 50
    for slot in range(slots):
        draws.leave(slot)
    return took


def logits_of(engine: TorchEngine) -> torch.Tensor:
    """(32, V): after each of 32 tokens, read one by one."""
    ids = torch.randint(0, 50_000, (32,), generator=torch.Generator().manual_seed(1)).tolist()
    return torch.cat([engine.forward([0], [[token]], [at]).float() + 0.0 for at, token in enumerate(ids)])


def beside(first: torch.Tensor, second: torch.Tensor) -> str:
    """The largest difference as a share of the largest logit, and in how many rows the argmax is the same."""
    worst = float((first - second).abs().max() / first.abs().max())
    return f"{worst:.1e}, {int((first.argmax(-1) == second.argmax(-1)).sum())}/{len(first)}"


def measure(
    title: str, model: GPTModel, slots: int, held: str, names: Sequence[str] = ("plain", "kernels"), new: int = 96
) -> None:
    size = bytes_read(model.config, held)  # type: ignore[arg-type]
    limit = LIMITS["bytes"] / size * slots
    texts, logits = [], []
    for name in names:
        engine = engine_of(name, model, slots)
        rate, text = decode_rate(engine, slots, new)
        texts.append(text)
        if slots == 1:
            logits.append(logits_of(engine))
        step = step_seconds(engine, slots)
        extra = "" if step is None else f"{step * 1e6:.0f} us a step, {size / step / 1e9:,.0f} GB/s"
        say(f"{title}, {name}", f"{rate:,.0f} tok/s", f"{rate / limit:.0%} of limit", extra)
        del engine
        free()
    if len(names) == 1:
        return
    same = sum(a == b for one, other in zip(*texts, strict=True) for a, b in zip(one[:64], other[:64], strict=True))
    say("  same greedy ids", f"{same}/{64 * slots}", "logits, argmax", beside(*logits) if logits else "")


def decode() -> None:
    for size in ("small", "medium", "xl"):
        measure(f"decode 1, {size}", model_of(size), 1, "bfloat16")
        free()


def batch() -> None:
    for size, slots in (("small", 8), ("small", 32), ("xl", 8)):
        measure(f"decode {slots}, {size}", model_of(size), slots, "bfloat16")
        free()


def packed() -> None:
    for size in ("small", "xl"):
        for bits in (8, 4):
            measure(f"decode 1, {size} int{bits}", packed_of(size, bits), 1, f"int{bits}")
            free()
    measure("decode 8, small int8", packed_of("small", 8), 8, "int8")
    free()


def prefill(wanted: Sequence[tuple[str, int]] = (("small", 16), ("xl", 16), ("small", 8), ("xl", 4))) -> None:
    for size, held in wanted:
        model = model_of(size) if held == 16 else packed_of(size, held)
        config = model.config
        head = 2 * config.emb_dim * config.vocab_size
        flops = 512 * (cost.flops_per_token(config).matrices - head) + head
        ids = torch.randint(0, 50_000, (512,), generator=torch.Generator().manual_seed(1)).tolist()
        found = []
        for name in ("plain", "kernels"):
            engine = engine_of(name, model, 1)
            read = functools.partial(engine.forward, [0], [ids], [0])
            found.append(read().float() + 0.0)
            first = seconds(read, 1)
            for _ in range(3):
                read()
            took = seconds(read, 20)
            say(
                f"prefill 512, {size} {held} bits, {name}", f"{512 / took:,.0f} tok/s",
                f"{flops / took / LIMITS['flops']:.0%} of peak", f"{took * 1e6:.0f} us, first {first * 1e6:.0f}",
            )  # fmt: skip
            del engine, read
            free()
        say("  logits, argmax", beside(*found))
        del model
        free()


def quick() -> None:
    """What has a target, the plain engine beside it for small only."""
    for size, slots in (("small", 1), ("xl", 1), ("small", 8), ("xl", 8)):
        names = ("plain", "kernels") if size == "small" else ("kernels",)
        measure(f"decode {slots}, {size}", model_of(size), slots, "bfloat16", names, 64)
        free()
    for bits in (8, 4):
        measure(f"decode 1, xl int{bits}", packed_of("xl", bits, alike=True), 1, f"int{bits}", ("kernels",), 64)
        free()
    prefill((("small", 16), ("xl", 16)))


def draw() -> None:
    """What each sampling costs in a step of small."""
    model = model_of("small")
    engine = TorchEngine(model, 640, 1)
    for title, sampling in {
        "greedy": SamplingConfig(0),
        "temperature": SamplingConfig(0.8),
        "top-k 50": SamplingConfig(0.8, top_k=50),
        "top-p 0.9": SamplingConfig(0.8, top_p=0.9),
        "penalty 1.2": SamplingConfig(0.8, repetition_penalty=1.2),
    }.items():
        request = Request(list(range(16)), 96, sampling, seed=1)
        scheduler = Scheduler(Scorer(engine))
        took = seconds(lambda r=request, s=scheduler: list(generate(s, r)), 3)  # type: ignore[misc]
        say(f"96 tokens, {title}", f"{96 / took:,.0f} tok/s")


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def run(jobs: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """One job after the other; one that fails shows the end of its traceback."""
    for name, job in jobs:
        started = time.perf_counter()
        try:
            job()
        except Exception:
            print(f"{name} failed:", *traceback.format_exc().strip().splitlines()[-8:], sep="\n  ", flush=True)
        free()
        print(f"  ({name}: {time.perf_counter() - started:.1f} s)", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="what has a target")
    options = parser.parse_args(arguments)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    torch.set_grad_enabled(False)
    parts = ("limits", "quick") if options.quick else options.only
    jobs: list[tuple[str, Callable[[], None]]] = [(name, globals()[name]) for name in parts]
    run(jobs)


if __name__ == "__main__":
    main()
