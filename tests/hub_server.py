"""A hub on 127.0.0.1: the two requests that a download takes (HEAD and GET of /REPO/resolve/REVISION/FILE)."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""

    def etag(self, name: str) -> str:
        """As the hub has it: git's SHA-1 for small files, SHA-256 for large ones."""
        if name not in self.etags:
            content = (self.folder / name).read_bytes()
            blob = b"blob %d\0" % len(content) + content
            large = name.endswith((".safetensors", ".bin"))
            self.etags[name] = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(blob).hexdigest()
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
        prefix = f"/{hub.repo}/resolve/"
        revision, _, name = self.path.removeprefix(prefix).partition("/")
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
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
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hub.etag(name)}"')
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if body:
            self.send_file(hub.folder / name, start, size)
        return None

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
