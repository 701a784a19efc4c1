"""Allows one process at a time to resume or replace a run: an operating-system lock, released when the process ends.

The lock is on RUN/.lock, which stays empty. RUN/.lock-owner.json has the id and host of the process that holds it, for
the error message; it is a separate file because Windows does not let other processes read a locked file.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, OWNER = ".lock", ".lock-owner.json"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
PATIENCE = 0.1  # seconds to wait for the lock: another process may hold it briefly to test it
SAYING = 0.5  # seconds to wait for the owner file, which is written after the lock is taken


@contextmanager
def held(run: Path) -> Iterator[str | None]:
    """Hold the lock of the directory ``run``.

    Yields:
        None; or, on a file system without locks, a warning line.

    Raises:
        GptcliError: another process holds the lock, or the directory cannot be written to.
    """
    lock = _acquired(run)
    if lock is None:
        yield f"The disk of {run} supports no locks: make sure that no second process trains or replaces this run."
        return
    owner = run / OWNER
    try:
        with suppress(OSError):  # the lock works without the owner file, which a full disk prevents
            owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield None
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def held_to_rename(run: Path) -> Iterator[None]:
    """As `held`; on Windows, which cannot rename a directory that has an open file, the lock is only tested."""
    if os.name == "nt":
        refuse_held(run)
        yield
        return
    with held(run):
        yield


def refuse_held(run: Path) -> None:
    """Raise GptcliError if another process holds the lock of ``run``; no file is created."""
    if (run / LOCK).exists():
        lock = _acquired(run)
        if lock is not None:
            lock.release()


def _acquired(run: Path) -> "BaseFileLock | None":
    """The acquired lock; None on a file system without locks."""
    from filelock import FileLock, Timeout

    lock = FileLock(run / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=PATIENCE, poll_interval=0.02)
    except Timeout:
        raise GptcliError(
            f"{run} is in use: {_owner(run)} trains or replaces it.",
            "Wait until that has ended, or stop it; then give the command again.",
        ) from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise GptcliError(
            f"Cannot lock {run}: {error.strerror or error}.", "Choose a folder that can be written to and has room."
        ) from error
    return lock


def _owner(run: Path) -> str:
    """The process that holds the lock, for a message; waits up to SAYING seconds for the owner file."""
    for _ in range(10):
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            said = json.loads((run / OWNER).read_text(encoding="utf-8"))
            if said["host"] != socket.gethostname() or _is_alive(said["pid"]):
                return f"process {said['pid']} on {said['host']}"
        time.sleep(SAYING / 10)
    return "another process"


def _is_alive(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))
