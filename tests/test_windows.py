"""The branches for Windows, and for disks without links or locks, on any system: what is missing there is taken out."""

import errno
import io
import mmap
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from models import tiny_checkpoint

from gptcli import errors
from gptcli.checkpoints import atomic, checkpoint, overwrite, run_lock
from gptcli.checkpoints.safetensors_file import read_tensors, write_tensors
from gptcli.cli import main, render, stopping, streams
from gptcli.data.dataset import open_prepared
from gptcli.device import allocator, machine, placement
from gptcli.errors import GptcliError
from gptcli.inference.open import gpu_is_possible

posix = pytest.mark.skipif(os.name == "nt", reason="sends itself a signal")


def without(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str) -> None:
    """Give ``module`` an os that is Windows': its name is nt, and it lacks ``names``."""
    other = ModuleType("os")
    other.__dict__.update({name: value for name, value in vars(os).items() if name not in names})
    other.name = "nt"  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "os", other)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(
        errno.EACCES, "The process cannot access the file because it is being used by another process"
    )


def test_no_directory_is_opened_to_be_synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, atomic, "O_RDONLY")
    with atomic.atomic_write(tmp_path / "file") as partial:
        partial.write_text("whole", encoding="utf-8")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "whole"
    assert files(tmp_path) == ["file"]


def test_a_file_is_copied_where_there_are_no_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"weights")
    (tmp_path / "target").write_bytes(b"older")
    monkeypatch.setattr(os, "link", refuse)
    atomic.link_in_place(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"weights"
    assert not (tmp_path / "source").samefile(tmp_path / "target")
    assert files(tmp_path) == ["source", "target"]


def test_a_run_is_saved_where_there_are_no_links(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--size tiny --tokenizer char --context-length 16 --emb-dim 16 --n-heads 2 --n-layers 1 --sample-every 0"
    monkeypatch.setattr(os, "link", refuse)
    assert gptcli("train", story, *options.split(), "--max-steps", 3, "--save-every", 1, "--out", "run").code == 0
    assert gptcli("train", "--resume", "run", "--max-steps", 4).code == 0
    assert checkpoint.load(Path("run")).training["step"] == 4


def test_a_file_that_is_open_elsewhere_is_not_replaced_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    write_tensors(file, {"a": torch.ones(3)})
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(GptcliError, match="cannot be written: The process cannot access the file"):
        write_tensors(file, {"a": torch.zeros(3)})
    assert read_tensors(file)["a"].tolist() == [1, 1, 1]
    assert files(tmp_path) == [file.name]


def test_a_checkpoint_that_is_open_elsewhere_is_not_replaced(
    gptcli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path / "source")
    tiny_checkpoint(tmp_path / "taken", n_layers=1)
    before = (tmp_path / "taken" / "model.safetensors").read_bytes()
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: refuse() if path.name == "taken" else real(path, to))
    result = gptcli("quantize", "source", "--bits", 8, "--out", "taken", "--force", "-q")
    result.assert_user_error("Cannot write the checkpoint taken", "being used by another process")
    assert (tmp_path / "taken" / "model.safetensors").read_bytes() == before


def test_the_lock_of_a_run_is_tested_and_not_held_while_it_is_renamed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without(monkeypatch, run_lock)
    (tmp_path / run_lock.LOCK).touch()
    with run_lock.held_to_rename(tmp_path), run_lock.held(tmp_path):  # a held one could not be taken again
        pass
    with run_lock.held(tmp_path), pytest.raises(GptcliError, match="is in use"), run_lock.held_to_rename(tmp_path):
        pass


@pytest.mark.parametrize("name", ["con", "NUL", "Aux.txt", "com1", "lpt9.tokens", "prn "])
def test_names_of_devices_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    overwrite.check_output(tmp_path / name)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(GptcliError, match="for a device") as error:
        overwrite.check_output(tmp_path / name)
    assert error.value.hint == "Choose another name."
    for other in ("console", "nulls", "com", "lpt10", "a.con"):
        overwrite.check_output(tmp_path / other)


def test_a_console_of_code_page_1252_is_spoken_to_in_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    with pytest.raises(UnicodeEncodeError):
        sys.stdout.write("loss ━━━ 3.27")
    render.use_utf8()
    sys.stdout.write("loss ━━━ 3.27, 世界, \ud800")
    sys.stdout.flush()
    assert raw.getvalue().decode("utf-8") == "loss ━━━ 3.27, 世界, ?"


@pytest.mark.parametrize(("code", "has_gone"), [(errno.EPIPE, True), (errno.EINVAL, True), (errno.ENOSPC, False)])
def test_a_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch, code: int, has_gone: bool) -> None:
    error = OSError(code, os.strerror(code))
    assert streams.OutputError(error).reader_has_gone == (code == errno.EPIPE)
    without(monkeypatch, streams)
    assert streams.OutputError(error).reader_has_gone == has_gone


def test_words_are_quoted_for_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, errors)
    assert render.quoted("a b") == '"a b"'
    assert render.quoted('say "hi"') == r'"say \"hi\""'


@posix
def test_ctrl_break_stops_a_run_as_sigterm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    with stopping.stop_on_signals() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked()
        assert (stop.name, stop.is_urgent) == ("Ctrl-Break", True)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert stopping.Stop(signal.SIGINT).name == "Ctrl-C"
    assert not stopping.Stop(signal.SIGINT).is_urgent
    assert not stopping.Stop().is_urgent


def test_the_cache_of_kernels_has_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gptcli.kernels.cpu import cache_folders

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_folders.cache_directory().parent == tmp_path / "gptcli"


def test_compiling_needs_no_limit_of_core_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    from gptcli.kernels.cpu import compile_cache, first_compilation

    compiled: list[str] = []
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(compile_cache, "compile_into_cache", compiled.append)
    first_compilation.compile_here("training")
    assert compiled == ["training"]


def test_arrays_are_allocated_without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    from gptcli.kernels.cpu import memory_layout

    for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"):
        monkeypatch.delattr(mmap, name, raising=False)
    array = memory_layout.allocate(5, np.float32)
    array[:] = 2.0
    assert array.tolist() == [2.0] * 5


def test_shards_are_read_where_pages_cannot_be_released(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be " * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "text.txt", "--out", "tokens", "--tokenizer", "byte", "-q"]) == 0
    monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    tokens = open_prepared(tmp_path / "tokens", 1.0).train
    rows = [tokens.rows([start], 8)[0] for start in range(100)]
    assert bytes(int(value) for value in rows[0]) == b"to be or"
    assert len(rows) == 100


def test_peak_memory_is_the_working_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(peak_wset=123_456_789)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: info)
    assert placement.peak_memory(torch.device("cpu")) == 123_456_789


@pytest.mark.parametrize("there", [True, False])
def test_a_driver_is_a_library_of_the_system(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "exists", lambda path: bool(asked.append(path.name)) or there)
    assert gpu_is_possible() == there
    assert asked == ["nvcuda.dll"]


def test_nothing_of_linux_is_asked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert machine.cpu_flags() == frozenset()
    assert allocator.reuse_freed_memory(expected=2**30) is False
