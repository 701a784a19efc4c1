"""Texts to train on: the bundled story, and downloads whose size and SHA-256 are checked before a file is written."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptcli.checkpoints.atomic import atomic_write
from gptcli.errors import GptcliError, SettingError, nearest

BASE_URL = "https://raw.githubusercontent.com"
BASE_URL_VARIABLE = "GPTCLI_DATA_URL"
BUNDLED = Path(__file__).parent / "assets"
BUNDLED_STORY = "The bundled story needs no network: gptcli download story"


@dataclass(frozen=True)
class Text:
    """A text: ``size`` in bytes, ``sha256`` in hex, ``path`` relative to the base URL, None for a bundled file."""

    title: str
    filename: str
    size: int
    sha256: str
    path: str | None


TEXTS = {
    "story": Text(
        title='"The Ferry Book", a short story written for gptcli (CC0)',
        filename="story.txt",
        size=21_046,
        sha256="e7c433feb85dd94dc892788dfc5a81c8c4c03e4fbf79013f577874d2c60de1f1",
        path=None,
    ),
    "the-verdict": Text(
        title='Edith Wharton, "The Verdict" (1908)',
        filename="the-verdict.txt",
        size=20_479,
        sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        path="rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
    ),
    "tinyshakespeare": Text(
        title="William Shakespeare, speeches from the plays (40,000 lines)",
        filename="tinyshakespeare.txt",
        size=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        path="karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
}


def find(name: str) -> Text:
    """The text called ``name``.

    Raises:
        GptcliError: there is no such text; the hint has the most similar name.
    """
    if name not in TEXTS:
        raise GptcliError(f"Unknown text: {name}", nearest(name, TEXTS))
    return TEXTS[name]


def address(text: Text) -> str:
    """The URL of ``text``; the environment variable GPTCLI_DATA_URL replaces GitHub's base URL by a mirror's.

    Raises:
        GptcliError: the variable is not an http or https URL.
    """
    base = os.environ.get(BASE_URL_VARIABLE) or BASE_URL
    if not base.startswith(("http://", "https://")):
        raise GptcliError(f"{BASE_URL_VARIABLE} is no http address: {base}", "Give one such as http://127.0.0.1:8000.")
    return f"{base.rstrip('/')}/{text.path}"


def is_there(text: Text, folder: Path, *, force: bool = False) -> bool:
    """Whether ``folder`` has the file already, with the pinned SHA-256.

    Raises:
        GptcliError: a different file has this name and ``force`` is false; or the file cannot be read.
    """
    path = folder / text.filename
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SettingError(f"Cannot read {path}: {error.strerror}", "Give another folder with {out}.") from error
    if digest == text.sha256:
        return True
    if not force:
        raise SettingError(
            f"{path} is another text: its SHA-256 is {digest[:12]}…, that of the download {text.sha256[:12]}…",
            "{force} replaces it; {out} with another folder keeps both.",
        )
    return False


def fetch(text: Text, report: Callable[[int], object] = lambda count: None) -> bytes:
    """Download ``text`` into memory; a bundled one is read from the package.

    Args:
        text: the text to download.
        report: called with the number of bytes of each block received.

    Raises:
        GptcliError: no network, an HTTP error, a broken connection, or bytes with another size or SHA-256.
    """
    if text.path is None:
        return (BUNDLED / text.filename).read_bytes()
    import requests
    from pooch import HTTPDownloader

    url = address(text)
    received = _Received(text.size, report)
    # "identity" turns HTTP compression off, so that the number of bytes received can be compared with text.size.
    downloader = HTTPDownloader(headers={"Accept-Encoding": "identity"})
    try:
        downloader(url, received, None)
    except _TooLongError:
        raise _not_the_text(url, f"more than {text.size:,} bytes") from None
    except requests.RequestException as error:
        count = len(received.data)
        if error.response is not None:
            what = f"HTTP {error.response.status_code} {error.response.reason}"
        else:
            # pooch writes whole blocks of 1024 bytes, so an incomplete last block is not counted.
            cut = count > 0 or isinstance(error, requests.exceptions.ChunkedEncodingError)
            what = f"cut off after about {count:,} of {text.size:,} bytes" if cut else _reason(error)
        raise GptcliError(f"Cannot download {url}: {what}", BUNDLED_STORY) from error
    data = bytes(received.data)
    # Without a Content-Length, pooch does not notice that the server closed the connection early.
    if len(data) != text.size:
        raise _not_the_text(url, f"{len(data):,} bytes where {text.size:,} were expected")
    digest = hashlib.sha256(data).hexdigest()
    if digest != text.sha256:
        raise _not_the_text(url, f"SHA-256 {digest[:12]}… where {text.sha256[:12]}… was expected")
    return data


def place(data: bytes, path: Path) -> None:
    """Make the folder of ``path`` and write the file atomically: after a power cut it is complete or absent.

    Raises:
        GptcliError: the folder cannot be made or written to, or the disk is full; no temporary file is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise SettingError(f"Cannot write {path}: {error.strerror}", "Give another folder with {out}.") from error


class _TooLongError(Exception):
    """The server sent more bytes than the text has."""


class _Received:
    """The file object that pooch writes to: calls ``report`` with each block's size, raises beyond ``limit`` bytes."""

    def __init__(self, limit: int, report: Callable[[int], object]) -> None:
        self.data = bytearray()
        self.limit = limit
        self.report = report

    def write(self, chunk: bytes) -> None:
        self.data += chunk
        self.report(len(chunk))
        if len(self.data) > self.limit:
            raise _TooLongError

    def flush(self) -> None:
        pass


def _not_the_text(url: str, what: str) -> GptcliError:
    return GptcliError(f"{url} sent another file: {what}; nothing was kept", BUNDLED_STORY)


def _reason(error: Exception) -> str:
    """The system's message of the innermost error in a chain of network errors, such as ``Connection refused``."""
    reason = " ".join(str(error).split())
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            reason = "no answer in time"
        elif isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return reason
