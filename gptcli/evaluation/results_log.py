"""Rows of finished work on disk, so that a long evaluation goes on where it was interrupted."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError


def run_id(identity: Mapping[str, Any]) -> str:
    """A short name for all that decides a result: equal for equal values, else different."""
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def read(path: Path, run: str) -> list[dict[str, Any]]:
    """The rows of ``run`` in ``path``; none where there is no such file. A line cut off by a crash does not count.

    Raises:
        GptcliError: a file that cannot be read, or that is no journal: it must not be written to.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise GptcliError(f"Cannot read {path}: {error.strerror}.", "Give another file with --out.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row.pop("run") == run:
                rows.append(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GptcliError(
                f"{path}, line {number}: this file was not written by gptcli evaluate --out.",
                "Give a new file with --out, or one of an earlier run to go on with it.",
            ) from error
    return rows


@contextmanager
def opened(path: Path, run: str) -> Iterator["Journal"]:
    """A journal to append rows of ``run`` to; a line that a crash cut off is removed.

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
        raise GptcliError(
            f"Cannot write {path}: {error.strerror}.", "Give a file in a folder with room, with --out."
        ) from error


class Journal:
    """See ``opened``."""

    def __init__(self, file: Any, run: str) -> None:
        self._file = file
        self._run = run

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, at once: a crash of this process loses nothing."""
        self._file.write(json.dumps({"run": self._run, **row}).encode("ascii") + b"\n")
        self._file.flush()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_writable(path: Path) -> bool:
    """Whether a file could be written there, without writing it."""
    if path.exists():
        return path.is_file() and os.access(path, os.W_OK)
    return path.parent.is_dir() and os.access(path.parent, os.W_OK)
