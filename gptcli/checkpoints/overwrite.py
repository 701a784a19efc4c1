"""Rules for replacing a directory: only a complete checkpoint or token folder of gptcli, without foreign files.

Every command that makes a directory calls `check_output` before the work; `put_in_place` calls it again just before the
old directory is removed.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gptcli.checkpoints import run_lock
from gptcli.checkpoints.atomic import sync_directory
from gptcli.checkpoints.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BEST_WEIGHTS,
    CONFIG,
    EVENT_FILES,
    LOSS_PICTURE,
    METRICS,
    OPTIMIZER,
    SETTINGS,
    SNAPSHOTS,
    STATE,
    TEXTS,
    TOKENIZER_FILES,
    WEIGHTS,
    read_config,
    weights_file,
)
from gptcli.checkpoints.safetensors_file import read_header
from gptcli.errors import GptcliError, SettingError

_NAMED = 5  # number of files that a message lists
_JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT: a Windows junction, a link to a directory
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:[ .].*)?", re.IGNORECASE)
_STEP = r"\.?step-\d{8}(?:\.\d+)?(?:\.partial|\.old)?"


@dataclass(frozen=True)
class Kind:
    """A kind of directory that gptcli writes.

    Attributes:
        called: its name in messages.
        ours: matches the relative paths that gptcli writes, with / as separator and at the end of a folder.
        mark: a file that every directory of this kind has.
        check: raises GptcliError if a directory is damaged.
    """

    called: str
    ours: re.Pattern[str]
    mark: str
    check: Callable[[Path], object]


def written(*names: str) -> str:
    """A pattern that matches these files and the temporary files of interrupted writes."""
    either = "|".join(map(re.escape, names))
    return rf"(?:{either})|\.(?:{either})(?:\.\d+)?\.(?:partial|link)"


def _check_checkpoint(path: Path) -> None:
    read_config(path)
    read_header(weights_file(path))


LOCKS = rf"{re.escape(run_lock.LOCK)}|{re.escape(run_lock.OWNER)}"
# safetensors writes under a name of its own and renames at the end; a killed process leaves that file.
_HALF_WRITTEN = r"\.tmp[A-Za-z0-9]{6}"
_MODEL = (CONFIG, WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER_FILES)
OF_A_SNAPSHOT = re.compile(rf"{written(*_MODEL, OPTIMIZER, BEST_WEIGHTS, STATE)}|{_HALF_WRITTEN}")
CHECKPOINT = Kind(
    "a checkpoint of gptcli's",
    re.compile(
        rf"{written(*_MODEL, METRICS, LOSS_PICTURE, SETTINGS, TEXTS)}|{LOCKS}"
        rf"|{SNAPSHOTS}/(?:{_STEP}/(?:{OF_A_SNAPSHOT.pattern})?)?"
        rf"|{EVENT_FILES}/(?:events\.out\.tfevents\.[^/]+)?"
    ),
    CONFIG,
    _check_checkpoint,
)


def check_output(
    path: Path, kind: Kind = CHECKPOINT, *, force: bool = False, inputs: Iterable[Path] = (), instead: str = ""
) -> None:
    """Raise GptcliError if a new directory of ``kind`` may not be made at ``path``.

    Args:
        path: the path of the new directory.
        kind: the kind of the new directory, and of a directory that it may replace.
        force: whether it may replace an existing directory.
        inputs: paths that the command reads.
        instead: what else can be done with what is there, the beginning of the hint.

    Raises:
        GptcliError: ``path`` holds what may not be replaced (see `check_replaceable`), or holds anything and ``force``
            is not given; or the parent folder cannot be written to.
    """
    check_replaceable(path, kind, inputs)
    if not force and _holds_something(path):
        hint = f"{instead}, choose another folder" if instead else "Choose another folder"
        raise SettingError(f"{path} exists already.", hint + ", or replace it with {force}.")
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        what = "cannot be written to" if ancestor.is_dir() else "is a file, not a folder"
        raise GptcliError(f"Cannot make {path}: {ancestor} {what}.", "Choose another folder.")


def check_replaceable(path: Path, kind: Kind, inputs: Iterable[Path] = ()) -> None:
    """Raise GptcliError if ``path`` may not be replaced, whatever ``force`` is.

    Raises:
        GptcliError: ``path`` is the working directory or above it, a link, a file, or holds an input; it is a directory
            that is not empty and not of ``kind``, is damaged, or holds files that gptcli did not write; or another
            process has its lock.
    """
    if _is_or_holds(path, Path.cwd()):
        raise GptcliError(f"{path} is the working directory, or a folder above it.", "Choose another folder.")
    if sys.platform == "win32" and _RESERVED.fullmatch(path.name):
        raise GptcliError(f"{path}: Windows keeps the name {path.name} for a device.", "Choose another name.")
    if path.name in ("", ".."):
        raise GptcliError(f"{path} does not end in the name of a folder.", "Choose a folder by its name.")
    if _is_link(path):
        raise GptcliError(f"{path} is a link to {path.resolve()}.", "Choose another folder, or name that one itself.")
    if path.exists() and not path.is_dir():
        raise GptcliError(f"{path} exists already, and is a file.", "Choose another folder.")
    for source in inputs:
        if _is_or_holds(path, source):
            what = "is" if source.exists() and path.samefile(source) else f"holds {source},"
            raise GptcliError(f"{path} {what} what this command reads.", "Choose another folder.")
    if not _holds_something(path):
        return
    _recognise(path, kind)
    run_lock.refuse_held(path)  # before the files, which a running process adds and removes
    others = foreign(path, kind.ours)
    if others:
        raise GptcliError(
            f"{path} exists already, and holds what gptcli did not write: {_listed(others)}.",
            "Choose another folder, or move these elsewhere first.",
        )


def put_in_place(partial: Path, path: Path, kind: Kind = CHECKPOINT, *, force: bool = False) -> None:
    """Rename the complete directory ``partial`` to ``path``, and then remove the directory that it replaces.

    Raises:
        GptcliError: from `check_output`, called again because another process may have changed ``path`` meanwhile.
        OSError: a rename failed; the old directory is still at ``path``.
    """
    check_output(path, kind, force=force)
    if not _holds_something(path):
        if path.exists():
            path.rmdir()
        partial.rename(path)
        sync_directory(path.parent)
        return
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    with run_lock.held_to_rename(path):
        path.rename(replaced)
        try:
            partial.rename(path)
        except OSError:
            replaced.rename(path)
            raise
        sync_directory(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def foreign(folder: Path, ours: re.Pattern[str]) -> list[str]:
    """Relative paths in ``folder`` that ``ours`` does not match; a foreign folder is one entry, without its content."""
    return sorted(_foreign(folder, "", ours))


def check_file(path: Path, beginning: bytes, called: str, force: bool) -> None:
    """Raise GptcliError if a new file may not be made at ``path``.

    Args:
        path: the path of the new file.
        beginning: the first bytes of a file that it may replace.
        called: the name of that kind of file in messages.
        force: whether it may replace such a file.

    Raises:
        GptcliError: ``path`` is something else, or such a file and ``force`` is not given.
    """
    if not path.exists() and not _is_link(path):
        return
    if _is_link(path) or not path.is_file() or not _begins_with(path, beginning):
        raise GptcliError(f"{path} exists already, and is not {called}.", "Choose another place.")
    if not force:
        raise SettingError(f"{path} exists already.", "Choose another place, or replace it with {force}.")


# What a file that gptcli draws or writes begins with, and what its first kilobyte holds beside that.
RESULTS: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "png": ((b"\x89PNG\r\n\x1a\n",), b"Software\0Matplotlib"),
    "svg": ((b"<?xml",), b"Matplotlib"),
    "pdf": ((b"%PDF-1.4\n%\xac\xdc \xab\xba",), b""),  # the second line is matplotlib's own
    "jpg": ((b"\xff\xd8\xff",), b"Matplotlib"),
    "html": ((b"<!doctype html>",), b"default-src 'none'"),
    "json": ((b'{\n "checkpoint": ', b'{\n "demo": '), b""),
    "jsonl": ((b'{"file": ',), b'"predicted": '),
    "npz": ((b"PK\x03\x04",), b".npy"),
}


def check_result(path: Path, kind: str) -> None:
    """Refuse to write a picture, a page or figures over a file that gptcli did not make; an empty file may go.

    Args:
        path: where the result is to be.
        kind: a key of `RESULTS`.

    Raises:
        GptcliError: there is another file.
    """
    if not path.is_file():  # nothing there, or a device
        return
    beginnings, mark = RESULTS[kind]
    try:
        with path.open("rb") as file:
            held = file.read(1024)
    except OSError as error:
        raise GptcliError(f"Cannot read {path}: {error.strerror or error}.", "Choose another place.") from error
    if held and not (held.startswith(beginnings) and mark in held):
        raise GptcliError(f"{path} exists already, and gptcli did not make it.", "Choose another place.")


def _recognise(path: Path, kind: Kind) -> None:
    if not (path / kind.mark).is_file():
        held = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
        raise GptcliError(
            f"{path} exists already, and is not {kind.called}: it holds {_listed(held)}.", "Choose another folder."
        )
    try:
        kind.check(path)
    except GptcliError as error:
        raise GptcliError(
            f"{path} exists already, and is not {kind.called}, or not whole: {error.message}",
            "Choose another folder, or remove this one yourself.",
        ) from error


def _foreign(folder: Path, within: str, ours: re.Pattern[str]) -> Iterator[str]:
    for entry in folder.iterdir():
        is_folder = entry.is_dir() and not _is_link(entry)
        name = f"{within}{entry.name}{'/' if is_folder else ''}"
        if _is_link(entry) or not ours.fullmatch(name):
            yield name
        elif is_folder:
            yield from _foreign(entry, name, ours)


def _is_or_holds(path: Path, other: Path) -> bool:
    """Compares device and inode, not names: some file systems ignore case."""
    inner = other.resolve()
    return path.exists() and any(path.samefile(place) for place in (inner, *inner.parents) if place.exists())


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink() or getattr(path.lstat(), "st_reparse_tag", 0) == _JUNCTION
    except OSError:
        return False


def _holds_something(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _begins_with(path: Path, beginning: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(islice(names, _NAMED)) + more
