"""stdin, stdout and stderr where they are closed, full, or left by their reader: one answer for every command."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from gptcli.errors import GptcliError


class OutputError(Exception):
    """stdout does not take what a command prints. No OSError, which a command would take for one of its files'.

    Args:
        error: what the system says.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        # Windows says that the argument is invalid where the other end of a pipe is closed.
        self.reader_has_gone = error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL)
        self.reason = "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)

    def told(self) -> GptcliError:
        """The same in two lines."""
        return GptcliError(
            f"Cannot write to stdout: {self.reason}.",
            "The result is not whole; send it to a terminal, a pipe, or a file on a disk that has room.",
        )


@contextmanager
def guarded() -> Iterator[None]:
    """Within it stdout raises `OutputError` where it fails, stderr loses what it cannot take, and no stream is absent.

    A stream that is closed when the process starts is None in Python, and its number is given to the next file that is
    opened, which would then get what libraries print. So it is opened again, in a way that refuses what it is for.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = _opened(os.O_WRONLY, "r")
    stdout = _Guarded(sys.stdout or _opened(os.O_RDONLY, "w"), _refuse)
    stderr = _Guarded(sys.stderr or _opened(os.O_WRONLY, "w"), lambda error: None)
    sys.stdout, sys.stderr = cast(TextIO, stdout), cast(TextIO, stderr)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for stream in (stdout, stderr):
            stream.let_go()


class _Guarded:
    """A text stream; what its system refuses is answered by ``failed``.

    Args:
        stream: which one.
        failed: is told each refusal; if it returns, what was to be written is lost.
    """

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed
        self._has_failed = False

    def write(self, text: str) -> int:
        with self._answered():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._answered():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._has_failed = True
            self._failed(error)

    def let_go(self) -> None:
        """Lose what is still held back: Python would try again at its end, and complain."""
        if self._has_failed:
            with suppress(OSError, io.UnsupportedOperation):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)


def _refuse(error: OSError) -> None:
    raise OutputError(error) from error


def _opened(flags: int, mode: str) -> TextIO:
    """The null device under the lowest number that is free, which is the closed stream's."""
    return cast(TextIO, open(os.open(os.devnull, flags), mode, encoding="utf-8", errors="replace", closefd=False))
