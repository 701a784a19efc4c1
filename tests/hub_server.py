"""A hub on 127.0.0.1: the two requests that a download takes (HEAD and GET of /REPO/resolve/REVISION/FILE).

As on the real one, a large file is answered with a redirect to another host, which knows nothing of the hub's headers.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

LARGE = (".safetensors", ".bin")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``folder`` as the one repository ``repo``, and can misbehave.

    Attributes:
        cut: bytes of large files after which the connection breaks, once; None never.
        pause: seconds between chunks of 1 MiB.
        wrong: names of files whose content is served with a flipped bit.
        status: answered to everything, if not 200.
        log: (method, file, first byte) of every request.
    """

    daemon_threads = True

    def __init__(self, folder: Path, repo: str = "openai-community/gpt2", commit: str = COMMIT) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.repo, self.commit = folder, repo, commit
        self.cut: int | None = None
        self.pause = 0.0
        self.wrong: set[str] = set()
        self.status = 200
        self.error_code = ""
        self.log: list[tuple[str, str, int]] = []
        self.etags: dict[str, str] = {}
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def storage_url(self) -> str:
        """The same server under another name, which is another host to a client."""
        return f"http://localhost:{self.server_address[1]}/storage/"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""

    def etag(self, name: str) -> str:
        """As the hub has it: git's SHA-1 for small files, SHA-256 for large ones."""
        if name not in self.etags:
            content = (self.folder / name).read_bytes()
            blob = b"blob %d\0" % len(content) + content
            is_large = name.endswith(LARGE)
            self.etags[name] = hashlib.sha256(content).hexdigest() if is_large else hashlib.sha1(blob).hexdigest()
        return self.etags[name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub = self.server
        if self.path.startswith("/storage/"):
            return self.answer_from_storage(self.path.removeprefix("/storage/"), body)
        hub.tokens |= {self.headers[name] for name in ("authorization",) if name in self.headers}
        prefix = f"/{hub.repo}/resolve/"
        revision, _, name = self.path.removeprefix(prefix).partition("/")
        start = self.first_byte()
        hub.log.append((self.command, name, start))
        if hub.status != 200:
            return self.refuse(hub.status, hub.error_code)
        if not self.path.startswith(prefix):
            return self.refuse(404, "RepoNotFound")
        if revision not in (hub.commit, "main"):
            return self.refuse(404, "RevisionNotFound")
        if not (hub.folder / name).is_file():
            return self.refuse(404, "EntryNotFound")
        size = (hub.folder / name).stat().st_size
        if name.endswith(LARGE):
            self.send_response(302)
            self.send_header("Location", hub.storage_url + name)
            self.send_header("X-Linked-Etag", f'"{hub.etag(name)}"')
            self.send_header("X-Linked-Size", str(size))
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(200)
        self.send_header("ETag", f'"{hub.etag(name)}"')
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if body:
            self.send_file(hub.folder / name, 0, size)
        return None

    def first_byte(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def answer_from_storage(self, name: str, body: bool) -> None:
        assert "authorization" not in self.headers  # a token is the hub's business alone
        hub, start = self.server, self.first_byte()
        size = (hub.folder / name).stat().st_size
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if body:
            self.send_file(hub.folder / name, start, size)

    def send_file(self, file: Path, start: int, size: int) -> None:
        hub, sent = self.server, 0
        with file.open("rb") as opened:
            opened.seek(start)
            while chunk := opened.read(2**20):
                if hub.cut is not None and sent + len(chunk) > hub.cut and size > 10_000:
                    self.wfile.write(chunk[: hub.cut - sent])
                    hub.cut = None
                    self.close_connection = True
                    self.wfile.flush()
                    self.connection.close()
                    return
                if file.name in hub.wrong:
                    chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
                self.wfile.write(chunk)
                sent += len(chunk)
                time.sleep(hub.pause)

    def refuse(self, status: int, error_code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", error_code)
        self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def serve_as_the_hub(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``hub`` the one that huggingface_hub asks in this process, and ``cache`` its cache."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
