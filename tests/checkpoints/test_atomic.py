"""Replacing files: what is synced before what is renamed, and what a failure leaves."""

import os
import stat
from pathlib import Path

import psutil
import pytest

from gptcli.checkpoints.atomic import atomic_write, clear_partials, link_in_place, partial_path, synced_size


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order."""
    done: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(handle: int) -> None:
        done.append("sync directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        real_sync(handle)

    def replace(self: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    return done


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no directories")
def test_a_file_is_synced_then_renamed_then_its_directory_is_synced(tmp_path: Path, done: list[str]) -> None:
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("new", encoding="utf-8")
        assert done == []
    assert done == ["sync file", "rename to file", "sync directory"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no directories")
def test_no_directory_stays_open(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    for _ in range(3):
        with atomic_write(tmp_path / "file") as partial:
            partial.write_text("new", encoding="utf-8")
    assert psutil.Process().num_fds() <= before


def test_a_failure_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old", encoding="utf-8")

    def half() -> None:
        with atomic_write(tmp_path / "file") as partial:
            partial.write_text("new", encoding="utf-8")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        half()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"


def test_a_link_over_the_same_file_leaves_no_other_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text", encoding="utf-8")
    for _ in range(2):
        link_in_place(tmp_path / "a", tmp_path / "b")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
        assert (tmp_path / "b").samefile(tmp_path / "a")


def test_a_link_that_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text", encoding="utf-8")
    (tmp_path / ".b.4194999.link").write_text("older", encoding="utf-8")
    (tmp_path / ".c.4194999.link").write_text("another's", encoding="utf-8")
    link_in_place(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.4194999.link", "a", "b"]


def test_without_links_a_copy_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_text("text", encoding="utf-8")
    link_in_place(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text(encoding="utf-8") == "text"
    assert not (tmp_path / "b").samefile(tmp_path / "a")


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_files_and_folders_of_this_process_and_of_ended_ones_go(tmp_path: Path) -> None:
    own, live = partial_path(tmp_path / "b"), tmp_path / f".b.{os.getppid()}.partial"
    own.mkdir()
    for file in (own / "inside", live, tmp_path / ".b.4194999.partial"):  # above Linux's largest process id
        file.touch()
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "text").touch()
    (tmp_path / ".b.4194998.partial").symlink_to(tmp_path / "users")
    clear_partials(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == [live.name, "users"]
    assert (tmp_path / "users" / "text").exists()
    clear_partials(tmp_path / "absent" / "b")


def test_the_length_of_a_synced_file(tmp_path: Path, done: list[str]) -> None:
    assert synced_size(tmp_path / "absent") == 0
    (tmp_path / "file").write_bytes(b"12345")
    assert synced_size(tmp_path / "file") == 5
    assert done == ["sync file"]
