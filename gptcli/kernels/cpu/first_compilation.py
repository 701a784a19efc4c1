"""The first compilation of the kernels, in a process of its own: where LLVM fails, it ends the process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gptcli.kernels.cpu import compile_cache
from gptcli.kernels.cpu.numba_support import numba_reason

PROGRAM = "import sys; from gptcli.kernels.cpu.first_compilation import compile_here; compile_here(sys.argv[1])"
PACKAGES = Path(__file__).parents[3]  # the folder that gptcli is imported from


def failure(what: str, report: Callable[[str], None] = lambda line: None) -> str | None:
    """Compile the kernels ``what`` into the cache if they are not there; one line on what ended the compiler, or None.

    The caller loads them from there. It compiles for itself where the cache cannot be written, and where Python raised
    an error, which it will raise again.

    Args:
        what: "training", or a key of `compile_cache.BITS`.
        report: called with a line before a compilation.
    """
    if compile_cache.is_kept(what):
        return None
    if (reason := numba_reason()) is not None:
        return reason
    if not compile_cache.are_kept() or not sys.executable:
        return None
    compile_cache.announce(what, report)
    paths = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, what], env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    return None if done.returncode in (0, 1) else _reason(done.returncode, done.stderr.decode(errors="replace"))


def compile_here(what: str) -> None:
    """Compile the kernels ``what`` in this process, which may end there; it leaves no core file."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    compile_cache.compile_into_cache(what)


def _reason(code: int, told: str) -> str:
    """One line from an exit code and the lines on stderr: LLVM's own error, else the last one."""
    lines = [" ".join(line.split()) for line in told.splitlines() if line.strip()]
    last = next((line for line in lines if line.startswith("LLVM ERROR")), lines[-1] if lines else "")
    ended = signal.Signals(-code).name if -code in list(signal.Signals) else f"exit code {code}"
    return f"numba's compiler ended with {ended}" + (f" ({last[:200].rstrip('.')})" if last else "")
