"""Checks of what works on this machine: kernels, a training step on each device, a text, a picture, the disk."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.config.model import GPTConfig
from gptcli.device import inventory
from gptcli.errors import GptcliError
from gptcli.kernels.cpu import cache_folders

if TYPE_CHECKING:
    from gptcli.model.gpt import GPTModel

SHAPE = GPTConfig(vocab_size=64, context_length=16, emb_dim=32, n_heads=2, n_layers=1, drop_rate=0.1)
STEPS, RATE = 3, 1e-2  # of training: the loss of a small model falls at once
Report = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what was tried.
        ok: whether it works.
        required: whether gptcli can neither train nor generate without it.
        detail: what was found, or the error.
        fix: what to do if it does not work; else empty.
        seconds: how long it took.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str
    seconds: float


def checks(folder: Path, report: Report) -> Iterator[Check]:
    """Every check, one after another; ``report`` is told before kernels are compiled, which takes 10 to 30 s.

    Args:
        folder: is tried for writing; no file is left.
        report: called with a line.
    """
    numba = inventory.install_command("numba")
    yield _tried("the disk", lambda: _write(folder), "Change to a folder that you can write to, with free space.")
    yield _tried("CPU kernels of generate", lambda: _decoding_kernels(report), numba, required=False)
    yield _tried("CPU kernels of train", lambda: _training_kernels(report), numba, required=False)
    torch = inventory.install_command("torch")
    try:
        names = [about["device"] for about in inventory.devices()]
    except Exception as error:  # a torch that is absent, or does not load
        yield Check("torch", False, True, _one_line(error), torch, 0.0)
        return
    for name in names:
        # A GPU that does not work leaves the CPU.
        fix = torch if name == "cpu" else "Compute on the device cpu, or update the GPU's driver or torch."
        yield _tried(f"a training step on {name}", lambda: _train(name), fix, required=name == "cpu")  # noqa: B023
        if name.startswith("cuda"):
            triton = "Install a C compiler (gcc), Python's headers and Triton; torch is used without them."
            yield _tried(f"Triton kernels on {name}", lambda: _triton(name), triton, required=False)  # noqa: B023
    yield _tried("a generated text", _generate, torch)
    yield _tried("a picture (Agg)", _draw, inventory.install_command("matplotlib"), required=False)


def _tried(name: str, attempt: Callable[[], str], fix: str, *, required: bool = True) -> Check:
    started = time.perf_counter()
    try:
        ok, detail = True, attempt()
    except Exception as error:  # whatever is broken is what the check is for
        ok, detail = False, error.message if isinstance(error, GptcliError) else _one_line(error)
    return Check(name, ok, required, detail, "" if ok else fix, round(time.perf_counter() - started, 2))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _write(folder: Path) -> str:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"gptcli")
        file.flush()
        os.fsync(file.fileno())
    return f"{inventory.shown(folder.resolve())}, {inventory.free_disk(folder) / 1e9:,.1f} GB free"


def _decoding_kernels(report: Report) -> str:
    from gptcli.kernels.cpu.numba_support import numba_reason

    if (reason := numba_reason()) is not None:
        raise RuntimeError(reason)
    from gptcli.kernels.cpu import compile_cache, first_compilation

    if (reason := first_compilation.failure("float32", report)) is not None:
        raise RuntimeError(reason)
    compile_cache.decoding_kernels(32, report)
    return "compiled, and kept" if compile_cache.are_kept() else "compiled; the cache directory cannot be written"


def _training_kernels(report: Report) -> str:
    from gptcli.kernels.cpu.train_kernels import open_kernels

    kernels = open_kernels(report)
    if isinstance(kernels, str):
        raise RuntimeError(kernels)
    return "compiled"


def _model(device: str) -> "GPTModel":
    import torch

    from gptcli.model.gpt import GPTModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return GPTModel(SHAPE).to(device)


def _train(device: str) -> str:
    import math

    import torch

    from gptcli.config.recipe import RecipeConfig
    from gptcli.config.runtime import RuntimeConfig
    from gptcli.training.step import Stepper

    stepper = Stepper(_model(device).train(), RecipeConfig(dtype="float32"), RuntimeConfig(compile=False))
    ids = torch.arange(17)[None] % 5
    losses = [stepper.step(ids[:, :-1], ids[:, 1:], RATE, number).loss for number in range(STEPS)]
    if not math.isfinite(losses[-1]) or losses[-1] >= losses[0]:
        raise RuntimeError(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps")
    return f"loss {losses[0]:.2f}, then {losses[-1]:.2f}"


def _triton(device: str) -> str:
    import torch

    from gptcli.kernels.gpu.triton_support import triton_reason

    if (reason := triton_reason(torch.device(device))) is not None:
        raise RuntimeError(reason)
    return "compiled"


def _generate() -> str:
    from gptcli.config.sampling import SamplingConfig
    from gptcli.inference.decode import Scheduler, generate
    from gptcli.inference.engine import Scorer
    from gptcli.inference.sequence import Request
    from gptcli.inference.torch_engine import TorchEngine

    engine = TorchEngine(_model("cpu").eval(), SHAPE.context_length, capture=False)
    request = Request([1, 2, 3], 4, SamplingConfig(temperature=0.0), 1)
    return f"{len(list(generate(Scheduler(Scorer(engine)), request)))} tokens"


def _draw() -> str:
    import numpy as np

    from gptcli.inspection.plots import attention_map

    return f"{len(attention_map(np.eye(2), ['a', 'b'], 'a picture')):,} bytes of PNG"


@dataclass(frozen=True)
class CacheFolder:
    """A folder of files that can be made again: what it holds, whose it is, and its size in bytes."""

    name: str
    owner: str
    path: Path
    size: int


def caches() -> list[CacheFolder]:
    """The folders in which gptcli, and what it is made of, keep files. gptcli's own come first."""
    own = cache_folders.folders()
    hub = Path(os.environ.get("HF_HOME") or _user_cache() / "huggingface")
    others = [
        ("downloaded weights", "huggingface_hub", Path(os.environ.get("HF_HUB_CACHE") or hub / "hub")),
        ("compiled GPU kernels", "triton", Path(os.environ.get("TRITON_CACHE_DIR") or _home() / ".triton")),
    ]
    found = [
        CacheFolder(name, owner, path, inventory.folder_bytes(path)) for name, owner, path in others if path.is_dir()
    ]
    if own:
        found.insert(
            0, CacheFolder("compiled CPU kernels", "gptcli", own[0].parent, sum(map(inventory.folder_bytes, own)))
        )
    return found


def clean_caches() -> list[CacheFolder]:
    """Remove what gptcli itself has cached, and return it. Later commands compile their kernels again."""
    import shutil

    removed = []
    for path in cache_folders.folders():
        size = inventory.folder_bytes(path)
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            removed.append(CacheFolder("compiled CPU kernels", "gptcli", path, size))
    return removed


def _home() -> Path:
    return Path(os.environ.get("HOME") or os.environ.get("USERPROFILE") or ".")


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
