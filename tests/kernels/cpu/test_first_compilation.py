"""A compiler that ends its process costs a line and not the run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

from gptcli.kernels.cpu.numba_support import numba_reason

pytestmark = pytest.mark.skipif(numba_reason() is not None, reason="numba cannot be loaded")

ABORTS = (
    "import os, sys; print('LLVM ERROR: Cannot select: intrinsic %llvm.x86.avx512.vpdpwssd.512', file=sys.stderr); "
    "sys.stderr.flush(); os.abort()"
)
REASON = "numba's compiler ended with SIGABRT (LLVM ERROR: Cannot select: intrinsic %llvm.x86.avx512.vpdpwssd.512)"
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals of processes")


@pytest.fixture
def aborting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled yet, and the compiler aborts."""
    from gptcli.kernels.cpu import compile_cache, first_compilation

    monkeypatch.setattr(compile_cache, "is_kept", lambda what: False)
    monkeypatch.setattr(first_compilation, "PROGRAM", ABORTS)


def test_what_is_in_the_cache_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.kernels.cpu import compile_cache, first_compilation

    monkeypatch.setattr(subprocess, "run", lambda *a, **b: pytest.fail("a process was started"))
    for what in (*compile_cache.BITS, "training"):
        assert compile_cache.is_kept(what)  # conftest.py has compiled them
        assert first_compilation.failure(what) is None
    monkeypatch.setattr(compile_cache, "is_kept", lambda what: False)
    monkeypatch.setattr(compile_cache, "are_kept", lambda: False)  # the caller compiles each time
    assert first_compilation.failure("float32") is None


@posix
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (ABORTS, REASON),
        ("import os; os.kill(os.getpid(), 9)", "numba's compiler ended with SIGKILL"),
        ("import os, sys; sys.stderr.write('one\\n\\n  two  words.\\n'); sys.stderr.flush(); os._exit(3)",
         "numba's compiler ended with exit code 3 (two words)"),
        ("raise ValueError('the caller will meet it again')", None),
        ("pass", None),
    ],
    ids=["abort", "kill", "code", "error", "compiled"],
)  # fmt: skip
def test_what_ended_the_compiler_is_one_line(
    monkeypatch: pytest.MonkeyPatch, program: str, expected: str | None
) -> None:
    from gptcli.kernels.cpu import compile_cache, first_compilation

    monkeypatch.setattr(compile_cache, "is_kept", lambda what: False)
    monkeypatch.setattr(first_compilation, "PROGRAM", program)
    lines: list[str] = []
    assert first_compilation.failure("int8", lines.append) == expected
    assert len(lines) == 1
    assert "int8" in lines[0]


@posix
def test_the_torch_engine_serves_and_one_line_says_why(gptcli: Any, tmp_path: Path, request: Any) -> None:
    tiny_checkpoint(tmp_path / "run")
    options = ("generate", "a", "-c", "run", "-t", 0, "-n", 5, "--device", "cpu")
    expected = gptcli(*options)
    assert expected.code == 0, expected.err
    request.getfixturevalue("aborting")
    served = gptcli(*options)
    assert (served.code, served.out) == (0, expected.out)
    assert served.err.count("\n") == expected.err.count("\n") + 2
    assert f"The torch engine is used: {REASON}." in " ".join(served.err.split())
    gptcli(*options, "--engine", "cpu", "-q").assert_user_error(
        "--engine cpu cannot be used: ", "SIGABRT", "--engine torch"
    )


@posix
@pytest.mark.usefixtures("aborting")
def test_nothing_is_compiled_for_bad_input(gptcli: Any, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "run")
    for bad in (("",), ("--prompts", "missing.txt"), ("a", "-n", 10**6, "--overflow", "error")):
        gptcli("generate", *bad, "-c", "run", "--device", "cpu").assert_user_error()


@posix
def test_a_draft_that_cannot_be_compiled_is_refused(gptcli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from gptcli.kernels.cpu import compile_cache, first_compilation

    tiny_checkpoint(tmp_path / "run")
    monkeypatch.setattr(compile_cache, "is_kept", lambda what: what == "float32")
    monkeypatch.setattr(first_compilation, "PROGRAM", ABORTS)
    refused = gptcli("generate", "a", "-c", "run", "-n", 5, "--device", "cpu", "--draft", "int8", "-q")
    refused.assert_user_error("No copy in int8 can be made", "SIGABRT", "--draft")


@posix
@pytest.mark.usefixtures("aborting")
def test_training_goes_on_with_torch() -> None:
    from gptcli.kernels.cpu.train_kernels import open_kernels

    assert open_kernels() == REASON


@pytest.mark.slow
def test_a_process_of_its_own_fills_the_cache(tmp_path: Path) -> None:
    """The second start finds every kernel; the markers and numba's files are the child's."""
    code = (
        "import subprocess, sys; from gptcli.kernels.cpu import compile_cache, first_compilation; "
        "lines = []; what = sys.argv[1]; before = compile_cache.is_kept(what); "
        "assert first_compilation.failure(what, lines.append) is None; "
        "print(before, len(lines), compile_cache.is_kept(what))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for what in ("int8", "training"):
        for expected in ("False 1 True", "True 0 True"):
            done = subprocess.run(
                [sys.executable, "-c", code, what],
                capture_output=True, text=True, cwd=Path(__file__).parents[3], env=environment,
            )  # fmt: skip
            assert done.stdout.strip() == expected, done.stderr
    assert list((tmp_path / "cache").rglob("*.nbc"))
