"""One process at a time goes on with a run or replaces it: a lock of the operating system, which ends with its process.

The lock is of RUN/.lock, which stays empty. Which process holds it stands beside it, because Windows lets nobody read a
locked file; it serves the message alone.
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
PATIENCE = 0.1  # seconds that another process may take to see whether the lock is free
SAYING = 0.5  # seconds that the process which has it may take to say which it is


@contextmanager
def held(run: Path) -> Iterator[str | None]:
    """Hold the lock of the directory ``run``.

    Yields:
        None; where the disk knows no locks, a line that says so.

    Raises:
        GptcliError: another process holds it, or the directory cannot be written to.
    """
    lock = _acquired(run)
    if lock is None:
        yield f"The disk of {run} knows no locks: make sure that no second process trains or replaces this run."
        return
    owner = run / OWNER
    try:
        with suppress(OSError):  # on a full disk the lock holds without it
            owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield None
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def held_to_rename(run: Path) -> Iterator[None]:
    """As `held`; on Windows, which renames no directory with a file open in it, the lock is only found free."""
    if os.name == "nt":
        refuse_held(run)
        yield
        return
    with held(run):
        yield


def refuse_held(run: Path) -> None:
    """Raise GptcliError where another process holds the lock of ``run``; nothing is written there."""
    if (run / LOCK).exists():
        lock = _acquired(run)
        if lock is not None:
            lock.release()


def _acquired(run: Path) -> "BaseFileLock | None":
    """The lock, taken; None where the disk knows none."""
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
    """Who holds the lock, in words; a process that has only just taken it may not have said so yet."""
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
