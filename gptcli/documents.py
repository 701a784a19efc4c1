"""The texts a user names on the command line, read and decoded.

A source is a file, a folder (every .txt and .md file below it), a glob such as ``texts/*.txt`` (quoted, or on a shell
that does not expand it), or ``-`` for stdin.
"""

import codecs
import glob
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, NoReturn

from gptcli.errors import GptcliError, nearest

SUFFIXES = (".txt", ".md")
ERRORS = ("strict", "replace", "ignore")

# The longest mark first: UTF-32's little-endian one begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_COMMON_ENCODINGS = (
    *("utf-8", "utf-16", "utf-32", "ascii", "latin-1", "iso-8859-15", "cp437", "cp850", "cp1250", "cp1251", "cp1252"),
    *("mac-roman", "koi8-r", "shift_jis", "euc-jp", "euc-kr", "gb18030", "big5"),
)

# How files that people mistake for text begin.
_BINARY_STARTS = (
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF87a", "a GIF picture"),
    (b"GIF89a", "a GIF picture"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive (.docx, .epub, .npz and .pt files are zip archives, too)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.doc, .xls, .ppt)"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"GGUF\x03\x00", "GGUF weights"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
)


@dataclass(frozen=True)
class Document:
    """One text: ``name`` is the path it came from (``stdin`` for ``-``), ``text`` has ``\\n`` as its only newline."""

    name: str
    text: str


def read_documents(
    sources: Sequence[str], *, encoding: str | None = None, errors: str = "strict", stdin: BinaryIO | None = None
) -> list[Document]:
    """Read every source, in the order given; the same file named twice is read twice.

    - A folder stands for the .txt and .md files below it, sorted by path; hidden files and folders, symbolic links to
      folders, and files without any text are passed over.
    - A glob stands for the files that match it, sorted; ``**`` goes down into folders. A name such as ``[draft].txt``
      that is there as it stands is no glob.
    - A byte-order mark (UTF-8, UTF-16, UTF-32) decides the encoding and is removed; else ``encoding`` does; else UTF-8.
    - ``\\r\\n`` and ``\\r`` become ``\\n``.

    Args:
        sources: files, folders, globs and ``-``, which stands for stdin and may come once.
        encoding: any text encoding that Python knows; None is UTF-8.
        errors: what becomes of bytes that cannot be decoded: ``strict`` (an error), ``replace`` (U+FFFD) or ``ignore``.
        stdin: where ``-`` reads from; None is the process's own.

    Raises:
        GptcliError: a source that is missing, unreadable, empty, binary or not in the encoding; a folder or a glob with
            no text; an unknown encoding or error rule.
    """
    if errors not in ERRORS:
        raise GptcliError(f"Unknown value for --errors: {errors}", nearest(errors, ERRORS))
    if encoding is not None:
        _check_encoding(encoding)
    if list(sources).count("-") > 1:
        raise GptcliError("- is given twice, and stdin can be read only once", "Give - once.")
    return [document for source in sources for document in _read_source(source, encoding, errors, stdin)]


def _check_encoding(encoding: str) -> None:
    try:
        # Unlike codecs.lookup, this also refuses codecs that are not for text, such as hex and rot13.
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except (LookupError, ValueError):
        raise GptcliError(f"Unknown encoding: {encoding}", nearest(encoding.lower(), _COMMON_ENCODINGS)) from None


def _read_source(source: str, encoding: str | None, errors: str, stdin: BinaryIO | None) -> Iterator[Document]:
    if source == "-":
        yield _document("stdin", (stdin or sys.stdin.buffer).read(), encoding, errors)
        return
    path = Path(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        _cannot_read(error, path)
    if is_folder:
        yield from _read_folder(path, encoding, errors)
    elif glob.has_magic(source) and not exists:
        # Path.glob takes no absolute pattern, and in Python 3.11 and 3.12 its ** finds folders alone.
        found = glob.glob(source, recursive=True)  # noqa: PTH207
        matches = sorted(path for path in map(Path, found) if path.is_file())
        if not matches:
            raise GptcliError(
                f"No file matches {source}", f"Check the folder and the ending; this was looked up in {Path.cwd()}."
            )
        for match in matches:
            yield _document(str(match), _read_bytes(match), encoding, errors)
    else:
        yield _document(str(path), _read_bytes(path), encoding, errors)


def _read_folder(folder: Path, encoding: str | None, errors: str) -> Iterator[Document]:
    paths = sorted(_texts_below(folder))
    if not paths:
        raise GptcliError(
            f"No text in {folder}: it holds no {' or '.join(SUFFIXES)} file",
            f"Name the files themselves to read other endings, such as {folder / '*.text'}.",
        )
    found = False
    for path in paths:
        data = _read_bytes(path)
        text = _decode(str(path), data, encoding, errors)
        if text and not text.isspace():
            found = True
            yield Document(str(path), text)
    if not found:
        raise GptcliError(f"No text in {folder}: every one of its {len(paths)} text files is empty", "Give a text.")


def _texts_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_cannot_read):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            # A named pipe would wait for ever.
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and path.is_file():
                yield path


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise GptcliError(f"No such file: {path}", _nearest_file(path)) from None
    except OSError as error:
        _cannot_read(error, path)


def _cannot_read(error: OSError, path: Path | None = None) -> NoReturn:
    hint = (
        "Ask its owner for the right to read it, or give another file."
        if isinstance(error, PermissionError)
        else "Give the path of a text file, a folder of them, or - for stdin."
    )
    # A path can be a whole paragraph, when a user gives the text itself.
    shown = str(path or error.filename)
    shown = shown if len(shown) <= 200 else shown[:60] + "…"
    raise GptcliError(f"Cannot read {shown}: {error.strerror}", hint) from error


def _nearest_file(path: Path) -> str:
    """The second line for a missing file: what its folder has instead."""
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder} here; this was looked up in {Path.cwd()}."
    try:
        names = {entry.name.lower(): entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    except OSError:
        names = {}
    close = get_close_matches(path.name.lower(), names, n=1)
    if close:
        return f"Did you mean {folder / names[close[0]]}?"
    return f"No name in {folder.resolve()} comes close; give a file, a folder of texts, a glob, or - for stdin."


def _document(name: str, data: bytes, encoding: str | None, errors: str) -> Document:
    text = _decode(name, data, encoding, errors)
    if not text or text.isspace():
        what = f"nothing but white space ({len(data):,} bytes)" if data else "empty (0 bytes)"
        raise GptcliError(f"{name} is {what}", "Give a file that has some text in it.")
    return Document(name, text)


def _decode(name: str, data: bytes, encoding: str | None, errors: str) -> str:
    mark, chosen = next((row for row in _BYTE_ORDER_MARKS if data.startswith(row[0])), (b"", encoding or "utf-8"))
    if not codecs.lookup(chosen).name.startswith(("utf-16", "utf-32")):
        _refuse_binary(name, data)
    try:
        text = data[len(mark) :].decode(chosen, errors)
    except UnicodeDecodeError as error:
        offset = len(mark) + error.start
        line = 1 + _plain_newlines(data[len(mark) : offset].decode(chosen)).count("\n")
        raise GptcliError(
            f"{name} is not {_label(chosen)}: byte 0x{data[offset]:02X} at offset {offset:,} (line {line:,})",
            _other_encoding(chosen),
        ) from None
    except UnicodeError as error:
        raise GptcliError(f"{name} is not {_label(chosen)}: {error}", _other_encoding(chosen)) from None
    return _plain_newlines(text)


def _label(encoding: str) -> str:
    return encoding.upper() if encoding.lower().startswith("utf") else encoding


def _other_encoding(tried: str) -> str:
    if tried == "utf-8":
        return (
            "Give its encoding (--encoding latin-1 or cp1252 for most Western texts), or --errors replace to read on."
        )
    return "Give another --encoding (UTF-8 is the default), or --errors replace to read on."


def _plain_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_binary(name: str, data: bytes) -> None:
    """Raise GptcliError for bytes that are no text in any encoding of one byte a letter, or in UTF-8."""
    for start, what in _BINARY_STARTS:
        if data.startswith(start):
            raise GptcliError(f"{name} is not text: it looks like {what}", "Give a plain-text file.")
    offset = data.find(b"\0")
    if offset < 0:
        return
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        raise GptcliError(f"{name} is not text: it looks like safetensors weights", "Give a plain-text file.")
    for order, zeros, others in (("le", data[1:2000:2], data[:2000:2]), ("be", data[:2000:2], data[1:2000:2])):
        if zeros.count(0) > 0.5 * len(zeros) and others.count(0) == 0:
            raise GptcliError(
                f"{name} looks like UTF-16 without a byte-order mark: byte 0x00 at offset {offset:,}",
                f"Give --encoding utf-16-{order}.",
            )
    line = 1 + data.count(b"\n", 0, offset)
    raise GptcliError(
        f"{name} looks like a binary file: byte 0x00 at offset {offset:,} (line {line:,})",
        "Give a plain-text file; text has no such byte.",
    )
