"""Which engine continues a text, and a decoder of that kind. Nothing here imports torch before it must."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptcli.checkpoints.layout import WEIGHTS, packed_bits, read_config
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError, nearest
from gptcli.inference.decode import SlotDecoder
from gptcli.inference.sampling import Drawable
from gptcli.kernels.cpu.numba_support import numba_reason
from gptcli.tokenizers import Tokenizer

ENGINES = ("auto", "cpu", "torch")
WORTH_DRAFTING = 48  # tokens; to pack a copy of the model takes as long as about twenty of them
BEYOND_CACHES = 2**27  # bytes of weights
QUANTIZATIONS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Choice:
    """An engine and why: "cpu" is the compiled kernels, "torch" is torch on any device."""

    engine: Literal["cpu", "torch"]
    reason: str


def obstacle(config: GPTConfig) -> str | None:
    """Why the CPU kernels cannot run a model of this shape on this machine, or None."""
    if config.activation == "gelu":
        return "the CPU kernels have no exact gelu"
    return numba_reason()


def choose_engine(engine: str, device: str, dtype: str, config: GPTConfig, compiled: bool = False) -> Choice:
    """Resolve ``--engine``: the CPU kernels wherever float32 on a CPU is asked for, or nothing better is there.

    Raises:
        GptcliError: no such engine, or the kernels are asked for and cannot serve.
    """
    if engine not in ENGINES:
        raise GptcliError(f"There is no --engine {engine!r}.", nearest(engine, ENGINES))
    if engine == "torch":
        return Choice("torch", "asked for")
    hindrances = [
        f"--device {device} is no CPU" if device not in ("auto", "cpu") else None,
        f"--dtype {dtype} is not float32" if dtype not in ("auto", "float32") else None,
        "--compile is torch's" if compiled else None,
    ]
    hindrance = next((reason for reason in hindrances if reason), None) or obstacle(config)
    if engine == "cpu":
        if hindrance:
            raise GptcliError(
                f"--engine cpu cannot serve: {hindrance}.", "Use --engine torch, or auto to let it choose."
            )
        return Choice("cpu", "asked for")
    if hindrance:
        return Choice("torch", hindrance)
    if device == "auto" and gpu_is_possible():
        from gptcli.device import placement as devices

        if devices.choose().device.type != "cpu":
            return Choice("torch", "a GPU is present")
    return Choice("cpu", "no GPU asked for or found")


def drafts_itself(choice: Choice, config: GPTConfig, bits: int, tokens: int) -> bool:
    """Whether so many tokens of a model held in ``bits`` bits come sooner with its own int8 copy as the draft.

    That is where each token would wait for float32 weights that no cache holds, on the kernels' engine, and where there
    is memory for the copy and a place to keep the kernels that read it.
    """
    from gptcli.model.cost import weight_bytes

    if (
        choice.engine != "cpu"
        or bits < 32
        or tokens < WORTH_DRAFTING
        or weight_bytes(config, "float32") < BEYOND_CACHES
    ):
        return False
    import psutil

    from gptcli.kernels.cpu import compile_cache

    return compile_cache.are_kept() and int(psutil.virtual_memory().available) > 2 * weight_bytes(config, "int8")


def gpu_is_possible() -> bool:
    """Whether it is worth importing torch to look for a GPU: a driver is there, or this is an Apple computer."""
    if sys.platform == "darwin":
        return True
    if sys.platform == "win32":
        return (Path("C:/Windows/System32") / "nvcuda.dll").exists()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


def count_threads(threads: int | None) -> int:
    """``--threads``, or the physical cores.

    Raises:
        GptcliError: fewer than 1.
    """
    if threads is not None and threads < 1:
        raise GptcliError(f"--threads is {threads}, but at least 1 must work.", "Leave it out for all cores.")
    import psutil

    return threads or psutil.cpu_count(logical=False) or 1


def check_quantization(name: str | None) -> int:
    """``--quantize`` as bits; 32 where it is not given.

    Raises:
        GptcliError: no such kind.
    """
    if name is None:
        return 32
    if name not in QUANTIZATIONS:
        raise GptcliError(f"There is no --quantize {name!r}.", nearest(name, QUANTIZATIONS))
    return QUANTIZATIONS[name]


def open_decoder(
    path: Path,
    choice: Choice,
    tokenizer: Tokenizer,
    *,
    slots: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    bits: int = 32,
    capacity: int | None = None,
    contrast: int | None = None,
    compiled: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> SlotDecoder:
    """The model of the checkpoint ``path``, ready to read.

    Args:
        path: a checkpoint directory.
        choice: which engine.
        tokenizer: the checkpoint's; ids that it has no text for are never drawn.
        slots: sequences that `decode.decode_together` may have under way at once.
        device, dtype: where and in what the torch engine computes.
        threads: CPU threads; None for the physical cores.
        bits: 8 or 4 packs float32 weights on the way in; a packed checkpoint stays as it is.
        capacity: tokens to make room for; the context by default.
        contrast: a layer to hold the last one against (see `sampling.contrast_layers`).
        compiled: let torch.compile make the torch engine's steps.
        report: called with a line that says what takes a while, or why something falls back.

    Raises:
        GptcliError: what is wrong with the checkpoint or an option; packing anew what is packed already.
    """
    config, ours = read_config(path)
    stored = packed_bits(path, ours)
    if bits < 32 and stored not in (32, bits):
        raise GptcliError(
            f"{path} is packed in {stored} bits already.", "Leave --quantize out, or give the float32 checkpoint."
        )
    if contrast is not None and not 1 <= contrast < config.n_layers:
        raise GptcliError(
            f"--contrast-layer is {contrast}, but the model has layers 1 to {config.n_layers}, the last being the one "
            "to hold it against.",
            f"Give a layer from 1 to {config.n_layers - 1}." if config.n_layers > 1 else "Leave --contrast-layer out.",
        )
    count = count_threads(threads)
    drawable = Drawable.of(tokenizer)
    if choice.engine == "cpu":
        from gptcli.checkpoints.numpy_weights import WeightFile
        from gptcli.inference.cpu_engine import Engine

        weights = WeightFile(path / WEIGHTS, config, stored)
        engine = Engine(
            config, weights, bits=min(bits, stored), capacity=capacity, slots=slots, threads=count, report=report
        )
        return SlotDecoder(engine, contrast=contrast, drawable=drawable)
    from gptcli.checkpoints import checkpoint
    from gptcli.device import placement as devices
    from gptcli.inference.torch_engine import TorchEngine

    placement = devices.choose(device, dtype)
    devices.set_threads(threads)
    model = checkpoint.load(path).runner(placement.device, placement.dtype, bits)
    torch_engine = TorchEngine(model, capacity, slots, compiled=compiled, report=report)
    return SlotDecoder(torch_engine, contrast=contrast, drawable=drawable)
