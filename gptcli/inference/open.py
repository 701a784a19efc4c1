"""Choice of the engine, and checkpoints opened in it. torch is imported only if it is used or a GPU must be found."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptcli.checkpoints.layout import packed_bits, read_language_model
from gptcli.config.model import GPTConfig
from gptcli.errors import SettingError, nearest, with_names
from gptcli.inference.engine import Scorer
from gptcli.inference.sampling import Drawable
from gptcli.kernels.cpu.numba_support import numba_reason
from gptcli.tokenizers import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from gptcli.inference.cpu_weights import Matrices

ENGINES = ("auto", "cpu", "torch")
QUANTIZATIONS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the reason for its choice: "cpu" is the compiled kernels, "torch" is torch on any device."""

    engine: Literal["cpu", "torch"]
    reason: str


def obstacle(config: GPTConfig) -> str | None:
    """Why the CPU kernels cannot run a model of this shape on this machine, in all precisions, or None."""
    return _hindrance("cpu", "float32", config) or _compilers_reason("float32", "int8", "int4")


def _compilers_reason(*kinds: str) -> str | None:
    """Why numba cannot be used, or None, also where the kernels of these kinds need no compilation."""
    try:
        from gptcli.kernels.cpu import compile_cache

        if all(map(compile_cache.is_kept, kinds)):
            return None
    except Exception:  # without a numba, or with a damaged one
        return numba_reason()
    return numba_reason()


def _hindrance(device: str, dtype: str, config: GPTConfig, compiled: bool = False) -> str | None:
    """Why the CPU kernels cannot run a model of this shape as asked, if they can be compiled; or None."""
    hindrances = [
        f"{{device}} {device} is no CPU" if device not in ("auto", "cpu") else None,
        f"{{dtype}} {dtype} is not float32" if dtype not in ("auto", "float32") else None,
        "{compile} is torch's" if compiled else None,
        "the CPU kernels have no exact gelu" if config.activation == "gelu" else None,
    ]
    return next((reason for reason in hindrances if reason), None)


def choose_engine(engine: str, device: str, dtype: str, config: GPTConfig, compiled: bool = False) -> EngineChoice:
    """Resolve ``engine``: "auto" is torch if a GPU is found or the CPU kernels cannot run the model, else "cpu".

    Raises:
        GptcliError: there is no such engine, or "cpu" cannot run the model as asked.
    """
    if engine not in ENGINES:
        raise SettingError(f"There is no {{engine}} {engine!r}.", nearest(engine, ENGINES))
    if engine == "torch":
        return EngineChoice("torch", "asked for")
    hindrance = _hindrance(device, dtype, config, compiled) or _compilers_reason("float32")
    if engine == "cpu":
        if hindrance:
            raise SettingError(
                f"{{engine}} cpu cannot be used: {hindrance}.", "Use {engine} torch, or auto to let it choose."
            )
        return EngineChoice("cpu", "asked for")
    if hindrance:
        return EngineChoice("torch", with_names(hindrance, str))
    if device == "auto" and gpu_is_possible():
        from gptcli.device import placement as devices

        if devices.choose().device.type != "cpu":
            return EngineChoice("torch", "a GPU is present")
    return EngineChoice("cpu", "no GPU asked for or found")


def pack_early(
    path: Path,
    adapter: Path | None,
    config: GPTConfig,
    bits: int,
    *,
    engine: str,
    device: str,
    dtype: str,
    compiled: bool,
    threads: int | None,
) -> "Future[Matrices] | None":
    """`early.pack_early` where the choice of the engine, which has to import numba, will probably be "cpu"; else None.

    Args:
        path, adapter: as for `open_scorer`.
        config: the model's shape.
        bits: of the weights: 32, 8 or 4; only float32 ones are packed without numba.
        engine, device, dtype, compiled: as for `choose_engine`.
        threads: as for `open_scorer`.
    """
    possible = engine in ("auto", "cpu") and _hindrance(device, dtype, config, compiled) is None and bits == 32
    if not possible or (engine == device == "auto" and gpu_is_possible()):
        return None
    from gptcli.inference import early

    return early.pack_early(path, adapter, config, count_threads(threads))


def if_it_compiles(
    choice: EngineChoice, bits: int, may_change: bool = True, report: Callable[[str], None] = lambda line: None
) -> EngineChoice:
    """``choice``, or torch where it is "cpu" and its kernels for ``bits`` bits are not there and cannot be compiled.

    Args:
        choice: of `choose_engine`.
        bits: of the weights: 32, 8 or 4.
        may_change: whether torch may serve instead.
        report: called with a line before a compilation.

    Raises:
        GptcliError: the compilation failed, and torch may not serve.
    """
    if choice.engine != "cpu":
        return choice
    from gptcli.kernels.cpu import compile_cache, first_compilation

    what = next(what for what, each in compile_cache.BITS.items() if each == bits)
    reason = first_compilation.failure(what, report)
    if reason is None:
        return choice
    if not may_change:
        raise SettingError(f"{{engine}} cpu cannot be used: {reason}.", "Use {engine} torch, or auto to let it choose.")
    return EngineChoice("torch", reason)


def generation_dtype(name: str, choice: EngineChoice, device: str, drafted: bool) -> str:
    """The dtype ``name``, and of "auto" the one that a text is generated in.

    It is bfloat16 on a CUDA GPU that has it and float16 on another, which take half the memory and time, and float32
    elsewhere. With a draft it is float32 everywhere: rounded logits could make the text depend on the draft.

    Args:
        name: of a dtype, or "auto".
        choice: the engine.
        device: the name of a device, or "auto".
        drafted: whether `speculative` guesses tokens.

    Raises:
        GptcliError: there is no such dtype or device.
    """
    if name != "auto" or choice.engine == "cpu" or drafted:
        return "float32" if name == "auto" else name
    from gptcli.device import placement as devices

    return devices.training_precision("auto", devices.choose(device).device).name


def gpu_is_possible() -> bool:
    """Whether there may be a GPU: a driver's files exist, or this is macOS. Avoids importing torch to find out."""
    if sys.platform == "darwin":
        return True
    if sys.platform == "win32":
        return (Path("C:/Windows/System32") / "nvcuda.dll").exists()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


def count_threads(threads: int | None) -> int:
    """``threads``, or the number of physical cores that this process may use.

    Raises:
        GptcliError: fewer than 1.
    """
    if threads is not None and threads < 1:
        raise SettingError(f"{{threads}} is {threads}, but at least 1 is needed.", "Leave it out for all cores.")
    from gptcli.device import resources

    return threads or resources.usable_cores()


def check_quantization(name: str | None) -> int:
    """Bits of the format ``name``; 32 for None.

    Raises:
        GptcliError: there is no such format.
    """
    if name is None:
        return 32
    if name not in QUANTIZATIONS:
        raise SettingError(f"There is no {{quantize}} {name!r}.", nearest(name, QUANTIZATIONS))
    return QUANTIZATIONS[name]


def check_layer(contrast: int | None, config: GPTConfig) -> None:
    """Raise SettingError unless ``contrast`` is None or a layer, from 1, before the last one."""
    if contrast is not None and not 1 <= contrast < config.n_layers:
        raise SettingError(
            f"{{contrast_layer}} is {contrast}, but the model has layers 1 to {config.n_layers}, the last being the "
            "one to hold it against.",
            f"Give a layer from 1 to {config.n_layers - 1}." if config.n_layers > 1 else "Leave {contrast_layer} out.",
        )


def open_scorer(
    path: Path,
    choice: EngineChoice,
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
    adapter: Path | None = None,
    packed: "Future[Matrices] | None" = None,
    report: Callable[[str], None] = lambda line: None,
) -> Scorer:
    """The checkpoint ``path`` in an engine, ready for `decode.Scheduler`.

    Args:
        path: a checkpoint directory.
        choice: the engine.
        tokenizer: the checkpoint's; ids without a text in it are never drawn.
        slots: sequences that are decoded at the same time.
        device, dtype: of the torch engine; "auto" is the best device, and float32.
        threads: CPU threads; None for the number of physical cores.
        bits: 8 or 4 packs float32 weights at loading; a packed checkpoint keeps its format.
        capacity: tokens that a slot of the cache holds; the context by default.
        contrast: the early-exit layer for `sampling.contrast_layers`; None for plain logits.
        compiled: compile the torch engine's steps with torch.compile.
        adapter: the directory of an adapter for the checkpoint.
        packed: of `pack_early` for this checkpoint and adapter; the torch engine leaves it unused.
        report: called with a message before a long operation, or with the reason for a fallback.

    Raises:
        GptcliError: the checkpoint is damaged, an option is out of range, or ``bits`` differs from a packed
            checkpoint's.
    """
    config, ours = read_language_model(path)
    stored = packed_bits(path, ours)
    if bits < 32 and stored not in (32, bits):
        raise SettingError(
            f"{path} is packed in {stored} bits already.", "Leave {quantize} out, or give the float32 checkpoint."
        )
    check_layer(contrast, config)
    count = count_threads(threads)
    drawable = Drawable.of(tokenizer)
    if choice.engine == "cpu":
        from gptcli.checkpoints.adapters import open_weights
        from gptcli.inference.cpu_engine import CpuEngine

        weights = open_weights(path, adapter) if packed is None else packed
        engine = CpuEngine(
            config, weights, bits=min(bits, stored), capacity=capacity, slots=slots, threads=count, report=report
        )
        return Scorer(engine, drawable, contrast)
    from gptcli.checkpoints import checkpoint
    from gptcli.device import placement as devices
    from gptcli.inference.torch_engine import TorchEngine

    placement = devices.choose(device, dtype)
    devices.set_threads(threads)
    model = checkpoint.load(path, adapter).runner(placement.device, placement.dtype, bits)
    torch_engine = TorchEngine(model, capacity, slots, compiled=compiled, report=report)
    return Scorer(torch_engine, drawable, contrast)
