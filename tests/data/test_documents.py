"""What people give as a text: files, folders, globs, stdin, their encodings, and everything that is none of these."""

import codecs
import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.data.documents import Document, read_documents
from gptcli.errors import GptcliError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, data: bytes | str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return path


def refuse(*sources: str, encoding: str | None = None, errors: str = "strict", stdin: bytes = b"") -> GptcliError:
    """The error that reading ``sources`` ends in: one line and one line."""
    with pytest.raises(GptcliError) as caught:
        read_documents(sources, encoding=encoding, errors=errors, stdin=io.BytesIO(stdin))
    error = caught.value
    assert "\n" not in error.message
    assert "\n" not in error.hint
    assert error.hint
    return error


def test_the_bundled_story_reads_as_it_is(bundled_story: Path) -> None:
    [story] = read_documents([str(bundled_story)])
    assert story.text.encode("utf-8") == bundled_story.read_bytes()
    assert 20_000 <= bundled_story.stat().st_size <= 25_000
    assert {"é", "ï", "—"} <= set(story.text)


def test_a_file_keeps_its_name_and_text() -> None:
    assert read_documents([write("a.txt", "Café — naïve\n")]) == [Document("a.txt", "Café — naïve\n")]


def test_sources_keep_their_order_and_repeats() -> None:
    write("b/one.txt", "1"), write("a.txt", "2")
    names = [document.name for document in read_documents(["b", "a.txt", "b/one.txt", "a.txt"])]
    assert [Path(name).as_posix() for name in names] == ["b/one.txt", "a.txt", "b/one.txt", "a.txt"]


def test_a_folder_is_every_text_below_it_sorted() -> None:
    for name in ("z.txt", "a.md", "sub/deep/B.TXT", "sub/c.md"):
        write(f"texts/{name}", name)
    for name in ("code.py", "picture.png", ".hidden.txt", ".git/notes.txt", "sub/.cache/x.md", "empty.txt"):
        write(f"texts/{name}", "" if name == "empty.txt" else "not this one")
    documents = read_documents(["texts"])
    assert [document.text for document in documents] == ["a.md", "sub/c.md", "sub/deep/B.TXT", "z.txt"]
    assert Path(documents[2].name) == Path("texts/sub/deep/B.TXT")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_folder_with_a_named_pipe_or_a_loop_does_not_hang() -> None:
    write("texts/a.txt", "a")
    os.mkfifo("texts/pipe.txt")
    Path("texts/loop").symlink_to("..", target_is_directory=True)
    assert [document.text for document in read_documents(["texts"])] == ["a"]


def test_globs_are_sorted_and_go_down_with_two_stars(folder: Path) -> None:
    write("t/b.txt", "b"), write("t/a.txt", "a"), write("t/sub/c.txt", "c"), write("t/d.md", "d")
    assert [document.text for document in read_documents(["t/*.txt"])] == ["a", "b"]
    assert [document.text for document in read_documents(["t/**/*.txt"])] == ["a", "b", "c"]
    assert [document.text for document in read_documents([str(folder / "t" / "?.md")])] == ["d"]


def test_a_name_with_brackets_that_is_there_is_no_glob() -> None:
    assert read_documents([write("[ab].txt", "draft")])[0].text == "draft"


def test_a_dash_is_stdin() -> None:
    write("a.txt", "a")
    documents = read_documents(["a.txt", "-"], stdin=io.BytesIO("é\r\n".encode("utf-8-sig")))
    assert documents[1] == Document("stdin", "é\n")


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_decides_and_is_removed(mark: bytes, encoding: str) -> None:
    source = write("a.txt", mark + "Café — 漢字\r\n".encode(encoding))
    assert read_documents([source])[0].text == "Café — 漢字\n"
    assert read_documents([source], encoding="latin-1")[0].text == "Café — 漢字\n"


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text), st.sampled_from(["utf-8", "utf-16"]))
def test_any_text_comes_back_with_one_kind_of_newline(text: str, encoding: str) -> None:
    [document] = read_documents(
        ["-"], stdin=io.BytesIO(b"\xef\xbb\xbf" * (encoding == "utf-8") + text.encode(encoding))
    )
    assert document.text == io.StringIO(text, newline=None).read()


def test_newlines_of_every_system_become_one() -> None:
    assert read_documents([write("a.txt", "a\r\nb\rc\nd\r\r\n")])[0].text == "a\nb\nc\nd\n\n"


def test_encoding_and_error_rules() -> None:
    source = write("a.txt", b"caf\xe9 \x97")
    assert read_documents([source], encoding="latin-1")[0].text == "café \x97"
    assert read_documents([source], encoding="cp1252")[0].text == "café —"
    assert read_documents([source], errors="replace")[0].text == "caf\ufffd \ufffd"
    assert read_documents([source], errors="ignore")[0].text == "caf "
    assert read_documents([write("b.txt", "hé".encode("utf-16-le"))], encoding="utf-16-le")[0].text == "hé"


# Bad input, one test a kind.


def test_missing_file_names_the_nearest() -> None:
    write("texts/Story.txt", "x")
    error = refuse("texts/storry.txt")
    assert "No such file" in error.message
    assert Path("texts/storry.txt").name in error.message
    assert error.hint == f"Did you mean {Path('texts/Story.txt')}?"


def test_missing_file_with_nothing_close(folder: Path) -> None:
    assert str(folder) in refuse("zebra.txt").hint
    assert "no folder nowhere" in refuse("nowhere/story.txt").hint


def test_the_text_itself_in_place_of_a_file() -> None:
    error = refuse("Once upon a time there was a ferry. " * 200)
    assert "Cannot read Once upon a time" in error.message
    assert len(error.message) < 200


def test_folder_with_no_text() -> None:
    write("code/a.py", "print()")
    error = refuse("code")
    assert "No text in code" in error.message
    assert ".txt or .md" in error.message


def test_folder_whose_texts_are_all_empty() -> None:
    write("texts/a.txt", ""), write("texts/b.md", " \n")
    assert "every one of its 2 text files is empty" in refuse("texts").message


def test_bad_file_in_a_folder_is_named_not_skipped() -> None:
    write("texts/a.txt", "fine"), write("texts/b.txt", b"\xff")
    assert str(Path("texts/b.txt")) in refuse("texts").message


def test_glob_without_a_match(folder: Path) -> None:
    error = refuse("texts/*.txt")
    assert "No file matches texts/*.txt" in error.message
    assert str(folder) in error.hint


@pytest.mark.parametrize(("data", "words"), [(b"", "empty (0 bytes)"), (b" \r\n\t\n", "white space (5 bytes)")])
def test_empty_file(data: bytes, words: str) -> None:
    error = refuse(write("a.txt", data))
    assert error.message.startswith("a.txt is ")
    assert words in error.message
    assert refuse("-", stdin=data).message.startswith("stdin is ")


def test_not_utf8_names_the_byte_its_offset_and_line() -> None:
    source = write("a.txt", "Zoë\r\nsaid ".encode() + b"caf\xe9 noir")
    error = refuse(source)
    assert error.message == "a.txt is not UTF-8: byte 0xE9 at offset 14 (line 2)"
    assert Path(source).read_bytes()[14] == 0xE9
    assert "Give its encoding (latin-1 or cp1252" in error.hint


def test_offset_counts_the_byte_order_mark() -> None:
    error = refuse(write("a.txt", codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le") + b"\x00\xdc"))
    assert error.message == "a.txt is not UTF-16-LE: byte 0x00 at offset 6 (line 2)"


def test_not_in_the_encoding_asked_for() -> None:
    error = refuse(write("a.txt", "naïve"), encoding="ascii")
    assert error.message == "a.txt is not ascii: byte 0xC3 at offset 2 (line 1)"
    assert "Give another encoding" in error.hint
    assert "a.txt is not idna" in refuse("a.txt", encoding="idna").message
    # This codec's errors carry no position.
    assert "a.txt is not undefined" in refuse("a.txt", encoding="undefined").message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a PNG picture"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (struct.pack("<Q", 2) + b"{}\0\0", "safetensors weights"),
        (b"\x80\x04\x95", "a Python pickle"),
        (b"text\nand\0more", "byte 0x00 at offset 8 (line 2)"),
        (bytes(range(1, 65)) + b"\0", "byte 0x00 at offset 64"),
    ],
)
@pytest.mark.parametrize("encoding", [None, "latin-1"])
def test_binary_file(data: bytes, words: str, encoding: str | None) -> None:
    error = refuse(write("a.txt", data), encoding=encoding, errors="replace")
    assert error.message.startswith("a.txt ")
    assert words in error.message


def test_zip_archive() -> None:
    with zipfile.ZipFile("book.txt", "w") as archive:
        archive.writestr("a", "a")
    assert "zip archive" in refuse("book.txt").message


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf16_without_a_mark_is_told_from_binary(order: str) -> None:
    source = write("a.txt", "Once upon a time".encode(f"utf-16-{order}"))
    error = refuse(source)
    assert "UTF-16 without a byte-order mark" in error.message
    assert f"Give encoding utf-16-{order}" in error.hint
    assert read_documents([source], encoding=f"utf-16-{order}")[0].text == "Once upon a time"


def test_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("a.txt", "secret")
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        Path(source).chmod(0)
    else:
        # Root may read everything, so the system's refusal is put in its place.
        def deny(path: Path, mode: str) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", deny)
    error = refuse(source)
    assert error.message == "Cannot read a.txt: Permission denied"


def test_unreadable_folder_below(monkeypatch: pytest.MonkeyPatch) -> None:
    write("texts/a.txt", "a"), write("texts/sub/b.txt", "b")
    scandir = os.scandir

    def deny(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert refuse("texts").message == f"Cannot read {Path('texts/sub')}: Permission denied"


def test_a_file_in_the_place_of_a_folder() -> None:
    write("a.txt", "a")
    assert "a.txt" in refuse("a.txt/b.txt").message


def test_unknown_encoding_names_the_nearest() -> None:
    write("a.txt", "a")
    error = refuse("a.txt", encoding="latim-1")
    assert "Unknown encoding: latim-1" in error.message
    assert "latin-1" in error.hint
    for codec in ("hex", "rot13", ""):
        assert "Unknown encoding" in refuse("a.txt", encoding=codec).message


def test_unknown_error_rule_names_the_nearest() -> None:
    error = refuse("a.txt", errors="replase")
    assert "replase" in error.message
    assert "Did you mean replace?" in error.hint


def test_stdin_twice() -> None:
    assert "twice" in refuse("-", "-", stdin=b"text").message
