"""A file of the rows of scored items (JSON lines), from which an interrupted evaluation resumes."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptcli.errors import SettingError


def run_id(identity: Mapping[str, Any]) -> str:
    """A hash (16 hex digits of SHA-256) of all values that determine a result."""
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def read(path: Path, run: str) -> list[dict[str, Any]]:
    """The rows of ``run`` in ``path``; none where there is no such file. A last line without newline is ignored.

    Raises:
        GptcliError: the file cannot be read, or was not written by `Journal`.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingError(f"Cannot read {path}: {error.strerror}.", "Give another file with {out}.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row.pop("run") == run:
                rows.append(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingError(
                f"{path}, line {number}: this file was not written by gptcli evaluate --out.",
                "Give a new file with {out}, or one of an earlier run to continue it.",
            ) from error
    return rows


@contextmanager
def opened(path: Path, run: str) -> Iterator["Journal"]:
    """A journal to append rows of ``run`` to; a last line without newline, cut off by a crash, is removed.

    Raises:
        GptcliError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            yield Journal(file, run)
    except OSError as error:
        raise SettingError(
            f"Cannot write {path}: {error.strerror}.", "Give {out} a file in a folder with room."
        ) from error


class Journal:
    """Appends the rows of one measurement to a file; see `opened`."""

    def __init__(self, file: Any, run: str) -> None:
        self._file = file
        self._run = run

    def append(self, row: Mapping[str, Any]) -> None:
        """Write and flush one row: a crash of this process does not lose it."""
        self._file.write(json.dumps({"run": self._run, **row}).encode("ascii") + b"\n")
        self._file.flush()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_writable(path: Path) -> bool:
    """Whether the permissions allow writing ``path``; nothing is written."""
    if path.exists():
        return path.is_file() and os.access(path, os.W_OK)
    return path.parent.is_dir() and os.access(path.parent, os.W_OK)
