"""gptcli download against a real server on 127.0.0.1 that behaves, lies, hangs up or is not there."""

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gptcli.data import download

STORY_HINT = "gptcli download story"
CONTENT = b"Every effort moves you.\n" * 500
TEXT = download.Text("a test text", "test.txt", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "some/test.txt")


class Server(ThreadingHTTPServer):
    """Remembers the paths it was asked for; ``body``, ``declared`` and ``status`` are what it answers."""

    daemon_threads = True
    body: bytes = CONTENT
    declared: int | None = len(CONTENT)
    status: int = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        if self.server.declared is not None:
            self.send_header("Content-Length", str(self.server.declared))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("GPTCLI_DATA_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setitem(download.TEXTS, "test", TEXT)
        yield server
        server.shutdown()
        thread.join()


def left(folder: Path) -> list[str]:
    """Everything that lies below ``folder``, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_good_file_is_placed_and_named(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    result = gptcli("download", "test")
    assert result.code == 0, result.err
    assert result.out == f"{Path('data/test.txt')}\n"
    assert "SHA-256 as expected" in result.err
    assert (tmp_path / "data" / "test.txt").read_bytes() == CONTENT
    assert left(tmp_path) == ["data", "data/test.txt"]
    assert server.asked == ["/some/test.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_others_may_read_what_the_umask_allows(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert gptcli("download", "test", "--quiet").err == ""
    finally:
        os.umask(before)
    assert (tmp_path / "data" / "test.txt").stat().st_mode & 0o777 == 0o644


def test_the_pinned_texts(
    gptcli: Callable[..., Any], server: Server, tmp_path: Path, the_verdict: Path, tinyshakespeare: Path
) -> None:
    for name, source in (("the-verdict", the_verdict), ("tinyshakespeare", tinyshakespeare)):
        server.body = source.read_bytes()
        server.declared = len(server.body)
        result = gptcli("download", name, "--out", "texts")
        assert result.code == 0, result.err
        assert (tmp_path / result.out.strip()).read_bytes() == server.body
    assert server.asked == [f"/{download.TEXTS[name].path}" for name in ("the-verdict", "tinyshakespeare")]


def test_the_story_needs_no_network(gptcli: Callable[..., Any], server: Server, bundled_story: Path) -> None:
    result = gptcli("download", "story", "--out", "texts")
    assert result.code == 0, result.err
    assert Path(result.out.strip()).read_bytes() == bundled_story.read_bytes()
    assert result.err.startswith('Wrote "The Ferry Book"')
    assert server.asked == []


def test_a_file_that_is_there_is_not_fetched_again(gptcli: Callable[..., Any], server: Server) -> None:
    first = gptcli("download", "test")
    again = gptcli("download", "test", "test")
    assert again.code == 0
    assert again.out == first.out
    assert "is there already" in again.err
    assert len(server.asked) == 1


def test_another_file_of_that_name_is_kept_without_force(
    gptcli: Callable[..., Any], server: Server, tmp_path: Path
) -> None:
    mine = tmp_path / "test.txt"
    mine.write_text("mine", encoding="utf-8")
    gptcli("download", "test", "--out", ".").assert_user_error(
        "test.txt", hashlib.sha256(b"mine").hexdigest()[:12], TEXT.sha256[:12], "--force"
    )
    assert mine.read_text(encoding="utf-8") == "mine"
    assert server.asked == []
    assert gptcli("download", "test", "--out", ".", "--force").code == 0
    assert mine.read_bytes() == CONTENT


def test_wrong_checksum(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    server.body = CONTENT.replace(b"effort", b"EFFORT")
    gptcli("download", "test").assert_user_error("/some/test.txt", "SHA-256", TEXT.sha256[:12], STORY_HINT)
    assert left(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_file(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("mine", encoding="utf-8")
    server.body = CONTENT[:-1] + b"?"
    gptcli("download", "test", "--out", ".", "--force").assert_user_error("SHA-256")
    assert (tmp_path / "test.txt").read_text(encoding="utf-8") == "mine"
    assert left(tmp_path) == ["test.txt"]


def test_404(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    server.status = 404
    gptcli("download", "test").assert_user_error("/some/test.txt: HTTP 404 Not Found", STORY_HINT)
    assert left(tmp_path) == []


def test_connection_cut_halfway(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    for arrived, counted in ((5000, "4,096"), (500, "0"), (0, "0")):
        server.body = CONTENT[:arrived]
        gptcli("download", "test").assert_user_error(
            f"cut off after about {counted} of {len(CONTENT):,} bytes", STORY_HINT
        )
    assert left(tmp_path) == []


def test_cut_halfway_with_no_length_declared(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    """Nothing in HTTP tells this from a whole answer, so only the pinned size can."""
    server.body, server.declared = CONTENT[:5000], None
    gptcli("download", "test").assert_user_error(f"5,000 bytes where {len(CONTENT):,} were expected", STORY_HINT)
    assert left(tmp_path) == []


def test_more_than_the_text_is_refused_early(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    server.body = CONTENT * 3
    server.declared = len(server.body)
    gptcli("download", "test").assert_user_error(f"more than {len(CONTENT):,} bytes", STORY_HINT)
    assert left(tmp_path) == []


def test_connection_refused(gptcli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("GPTCLI_DATA_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    gptcli("download", "the-verdict").assert_user_error(
        f"http://127.0.0.1:{port}/{download.TEXTS['the-verdict'].path}", "refused", STORY_HINT
    )
    assert left(tmp_path) == []


def test_a_mirror_that_is_no_address(gptcli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_DATA_URL", "mirror")
    gptcli("download", "the-verdict").assert_user_error("GPTCLI_DATA_URL", "mirror")


def test_one_failure_among_several_places_nothing(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    gptcli("download", "test", "the-verdict").assert_user_error("the-verdict.txt")
    assert len(server.asked) == 2
    assert left(tmp_path) == []


def test_unknown_text_names_the_nearest(gptcli: Callable[..., Any], server: Server) -> None:
    gptcli("download", "test", "the-verdikt").assert_user_error("the-verdikt", "Did you mean the-verdict?")
    assert server.asked == []


def test_a_file_in_the_place_of_the_folder(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file", encoding="utf-8")
    gptcli("download", "test").assert_user_error("Cannot write", "test.txt", "--out")
    assert left(tmp_path) == ["data"]


def test_a_folder_in_the_place_of_the_file(gptcli: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    (tmp_path / "test.txt").mkdir()
    gptcli("download", "test", "--out", ".").assert_user_error("Cannot read test.txt", "--out")


def test_full_disk(gptcli: Callable[..., Any], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    gptcli("download", "test").assert_user_error("Cannot write", "No space left on device")
    assert left(tmp_path) == ["data"]


def test_no_name_lists_the_texts(gptcli: Callable[..., Any], server: Server) -> None:
    gptcli("download", "test")
    result = gptcli("download")
    rows = {line.split()[0]: line.split()[-1] for line in result.out.splitlines() if line.strip()}
    assert rows["test"] == "yes"
    assert rows["story"] == rows["the-verdict"] == rows["tinyshakespeare"] == "no"
    assert "1,115,394" in result.out
