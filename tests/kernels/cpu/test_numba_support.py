"""A numba that is missing or does not load is one line, and torch serves."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

from gptcli.config.model import GPTConfig

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ImportError('this numba is for another NumPy')", "numba cannot be loaded: this numba is for another"),
        ("raise ModuleNotFoundError('No module named numba', name='numba')", "numba is not installed"),
        ("import no_such_module", "numba cannot be loaded: No module named"),
    ],
)
def test_generate_goes_on_with_torch(tmp_path: Path, module: str, reason: str) -> None:
    (tmp_path / "numba.py").write_text(module, encoding="utf-8")
    tiny_checkpoint(tmp_path / "model")
    nothing_kept = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    environment = os.environ | nothing_kept | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "gptcli", "generate", "ab", "-c", str(tmp_path / "model"), "-n", "3", "-v"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"engine torch ({reason}" in result.stderr
    refused = subprocess.run([*command, "--engine", "cpu"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert reason in refused.stderr
    plain = subprocess.run(command[:-1], capture_output=True, text=True, env=environment)
    assert (
        len([line for line in plain.stderr.splitlines() if line.startswith(f"The torch engine is used: {reason}")]) == 1
    )


@pytest.mark.parametrize(
    "bad",
    [
        ("",),
        ("a", "--draft", "nowhere"),
        ("a", "-n", 10**6, "--overflow", "error"),
        ("--prompts", "missing.txt"),
        ("--prompts", "empty.txt"),
        ("a", "--threads", 0),
    ],
)
def test_bad_input_stays_two_lines(gptcli: Any, monkeypatch: pytest.MonkeyPatch, bad: tuple[object, ...]) -> None:
    """The engine is named when everything has been checked, not before."""
    monkeypatch.setattr("gptcli.inference.open.numba_reason", lambda: "numba is not installed")
    monkeypatch.setattr("gptcli.kernels.cpu.compile_cache.is_kept", lambda what: False)
    tiny_checkpoint(Path("run"))
    Path("empty.txt").touch()
    gptcli("generate", *bad, "-c", "run", "--device", "cpu").assert_user_error()
    good = gptcli("generate", "a", "-c", "run", "--device", "cpu", "-n", 2)
    assert good.code == 0
    assert good.err.splitlines()[0] == "The torch engine is used: numba is not installed."


def test_without_numba_bench_needs_the_kernels_of_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """generate needs those of one, and asks for others once it knows the weights."""
    from gptcli.inference.open import choose_engine, obstacle

    kept = {"float32"}
    monkeypatch.setattr("gptcli.inference.open.numba_reason", lambda: "numba is not installed")
    monkeypatch.setattr("gptcli.kernels.cpu.compile_cache.is_kept", lambda what: what in kept)
    config = GPTConfig(emb_dim=16, n_heads=2, n_layers=1)
    assert obstacle(config) == "numba is not installed"
    assert choose_engine("auto", "cpu", "float32", config).engine == "cpu"
    kept |= {"int8", "int4"}
    assert obstacle(config) is None
