"""Decodes bytes, compressed or not, to text in pieces: encodings, byte-order marks, newlines, binary files."""

import codecs
import gzip
import importlib
import io
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from gptcli.errors import GptcliError, SettingError

READ_BYTES = 2**20
ZSTD_BYTES = 2**14  # input bytes per step; they may decompress to a thousand times as many
PACKED = (".gz", ".zst")
_HEAD = 2_000  # leading bytes of a file that are inspected to identify its type
_SAFETENSORS_HEADER = 100_000_000

# UTF-32 before UTF-16: the little-endian UTF-32 mark begins with the little-endian UTF-16 mark.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# The first bytes of common binary formats.
_BINARY_STARTS = (
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF87a", "a GIF picture"),
    (b"GIF89a", "a GIF picture"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"{\\rtf", "an RTF document"),
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


# What stands at the beginning of zip archives of one kind -> the kind.
_ZIPS = (
    (b"epub+zip", "an EPUB book"),
    (b"opendocument.text", "an OpenDocument text (.odt)"),
    (b"word/", "a Word document (.docx)"),
    (b"xl/", "an Excel workbook (.xlsx)"),
    (b"ppt/", "a PowerPoint presentation (.pptx)"),
    (b".npy", "a NumPy archive (.npz)"),
    (b"data.pkl", "PyTorch weights"),
)
_OFFICE = {".docx": _ZIPS[2][1], ".epub": _ZIPS[0][1], ".odt": _ZIPS[1][1]}
_CONVERTERS = {
    "a PDF document": "pdftotext {name} {text}",
    "an EPUB book": "pandoc {name} -t plain -o {text}",
    "an OpenDocument text (.odt)": "pandoc {name} -t plain -o {text}",
    "a Word document (.docx)": "pandoc {name} -t plain -o {text}",
    "an RTF document": "pandoc {name} -t plain -o {text}",
    "an old Office document (.doc, .xls, .ppt)": "libreoffice --headless --convert-to txt {name}",
    "a zip archive": "unzip {name} -d {folder}",
    "a gzip archive": "gunzip -c {name} > {text}",
    "an xz archive": "xz -dc {name} > {text}",
    "a zstd archive": "zstd -dc {name} > {text}",
}


def chunks(path: Path, report: Callable[[int], None] = lambda count: None) -> Iterator[bytes]:
    """The bytes of a file in pieces; a .gz or .zst file is decompressed.

    Args:
        path: the file.
        report: called with the number of bytes read so far from the file, before decompression.

    Raises:
        GptcliError: a compressed file is damaged or truncated, or no module for .zst is installed.
        OSError: the file cannot be opened or read.
    """
    unpack = {".gz": _gunzip, ".zst": _unzstd}.get(path.suffix.lower(), _plain)
    with path.open("rb") as file:
        for chunk in unpack(path, file):
            report(file.tell())
            if chunk:
                yield chunk


def _plain(path: Path, file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(READ_BYTES):
        yield chunk


def _gunzip(path: Path, file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as stream:
        while True:
            try:
                chunk = stream.read(READ_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise _damaged(path, str(error)) from error
            if not chunk:
                return
            yield chunk


def _unzstd(path: Path, file: BinaryIO) -> Iterator[bytes]:
    make = _zstd_unpacker(path)
    frame = make()
    while data := file.read(ZSTD_BYTES):
        while data:
            if frame.eof:
                frame = make()
            try:
                yield frame.decompress(data)
            except Exception as error:  # the two libraries raise different exceptions
                raise _damaged(path, str(error)) from error
            data = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise _damaged(path, "its last frame has no end")


def _zstd_unpacker(path: Path) -> Callable[[], Any]:
    """A factory of decompressors for one frame: of the standard library (Python 3.14) or of the package zstandard."""
    with suppress(ImportError):
        made: Callable[[], Any] = importlib.import_module("compression.zstd").ZstdDecompressor
        return made
    with suppress(ImportError):
        unpacker = importlib.import_module("zstandard").ZstdDecompressor
        return lambda: unpacker().decompressobj()
    raise GptcliError(
        f"{path} is packed with zstd, which takes a package that is not installed: zstandard.",
        "Install it (pip install zstandard), or unpack the file first (zstd -d).",
    )


def _damaged(path: Path, reason: str) -> GptcliError:
    return GptcliError(
        f"{path} cannot be unpacked: it is damaged or cut short ({reason.rstrip('.')}).",
        "Get the file again from where it came, or unpack it yourself to see how far it goes.",
    )


def decoded(name: str, data: Iterable[bytes], encoding: str | None, errors: str) -> Iterator[str]:
    """The text of ``data`` in pieces, with ``\\n`` as its only newline; the sizes of the pieces do not change the text.

    Args:
        name: name of the text, for messages.
        data: the bytes, in pieces of any size.
        encoding: Python's name of the encoding; None is UTF-8. A byte-order mark (UTF-8, UTF-16, UTF-32) overrides
            ``encoding`` and is removed.
        errors: how undecodable bytes are handled: ``strict``, ``replace`` or ``ignore``.

    Raises:
        GptcliError: the bytes are binary, or not in the encoding.
    """
    source = iter(data)
    head = b""
    while len(head) < _HEAD and (chunk := next(source, b"")):
        head += chunk
    mark, chosen = next((row for row in _BYTE_ORDER_MARKS if head.startswith(row[0])), (b"", encoding or "utf-8"))
    wide = codecs.lookup(chosen).name.startswith(("utf-16", "utf-32"))
    # UTF-16 and UTF-32 without a mark are read as little-endian, whatever the byte order of this machine.
    codec = (
        chosen if mark or codecs.lookup(chosen).name not in ("utf-16", "utf-32") else f"{codecs.lookup(chosen).name}-le"
    )
    decoder = codecs.getincrementaldecoder(codec)(errors)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    start = head[:_HEAD]
    offset, lines, chunk = 0, 0, head  # offset of the first byte of chunk; newlines before it
    if not wide:
        _refuse_known(name, head, start)
    while True:
        mark_here = len(mark) if offset == 0 else 0
        try:
            text = decoder.decode(chunk[mark_here:], final=not chunk)
        except UnicodeDecodeError as error:
            good = newlines.decode(error.object[: error.start].decode(codec), final=True)
            # error.object begins with the incomplete character that the decoder kept from the previous chunk.
            at = offset + mark_here + error.start - (len(error.object) - len(chunk[mark_here:]))
            line = 1 + lines + good.count("\n")
            if "\0" in good and not wide:
                line = 1 + lines + good.partition("\0")[0].count("\n")
                raise _binary(name, offset + chunk.find(b"\0"), line, start) from None
            if not wide:
                _refuse_zeros(name, error.object[error.start :], source, at, line, start)
            raise SettingError(
                f"{name} is not {_label(chosen)}: byte 0x{error.object[error.start]:02X} at offset {at:,} "
                f"(line {line:,})",
                _other_encoding(chosen),
            ) from None
        except UnicodeError as error:
            raise SettingError(f"{name} is not {_label(chosen)}: {error}", _other_encoding(chosen)) from None
        zero = -1 if wide else chunk.find(b"\0")
        if zero >= 0:
            before = newlines.decode(text.partition("\0")[0], final=True)
            raise _binary(name, offset + zero, 1 + lines + before.count("\n"), start)
        text = newlines.decode(text, final=not chunk)
        if text:
            yield text
        if not chunk:
            return
        offset, lines, chunk = offset + len(chunk), lines + text.count("\n"), next(source, b"")


def plain_newlines(text: str) -> str:
    """``text`` with ``\\n`` as its only newline."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _label(encoding: str) -> str:
    return encoding.upper() if encoding.lower().startswith("utf") else encoding


def _other_encoding(tried: str) -> str:
    if tried == "utf-8":
        return "Give its {encoding} (latin-1 or cp1252 for most Western texts), or {errors} replace to read on."
    return "Give another {encoding} (UTF-8 is the default), or {errors} replace to read on."


def _kind_of_zip(name: str, head: bytes) -> str:
    by_name = _OFFICE.get(Path(name).suffix.lower(), "a zip archive")
    return next((what for mark, what in _ZIPS if mark in head), by_name)


def _conversion(name: str, what: str) -> str:
    if what not in _CONVERTERS:
        return "Give a plain-text file."
    path = Path(name if name != "stdin" else "FILE")
    names = {"name": path, "text": path.with_suffix(".txt"), "folder": path.with_suffix("")}
    command = _CONVERTERS[what].format(**{key: shlex.quote(str(value)) for key, value in names.items()})
    return f"Make a text of it first: {command}"


def _refuse_known(name: str, data: bytes, head: bytes) -> None:
    """Raise GptcliError where a file with the first bytes ``data`` is of a known binary format."""
    for beginning, what in _BINARY_STARTS:
        if data.startswith(beginning):
            what = _kind_of_zip(name, head) if what == "a zip archive" else what
            raise GptcliError(f"{name} is not text: it looks like {what}", _conversion(name, what))


def _refuse_zeros(name: str, data: bytes, source: Iterator[bytes], offset: int, line: int, head: bytes) -> None:
    """Raise the error of a binary file where a byte 0x00 follows soon after bytes that do not decode.

    Args:
        name: name of the text, for messages.
        data: the bytes from the first that does not decode on, at ``offset`` and in ``line`` of the file.
        source: the bytes after ``data``.
        head: the first bytes of the file.
    """
    while len(data) < _HEAD and (chunk := next(source, b"")):
        data += chunk
    at = data[:_HEAD].find(b"\0")
    if at >= 0:
        raise _binary(name, offset + at, line + len(re.findall(rb"\r\n?|\n", data[:at])), head)


def _binary(name: str, offset: int, line: int, head: bytes) -> GptcliError:
    """The error for a byte 0x00, which plain text does not have.

    Args:
        name: name of the text, for messages.
        offset: of the byte in the file.
        line: the one that it stands in.
        head: the first bytes of the file.
    """
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _SAFETENSORS_HEADER:
        return GptcliError(f"{name} is not text: it looks like safetensors weights", "Give a plain-text file.")
    for order, zeros, others in (("le", head[1::2], head[::2]), ("be", head[::2], head[1::2])):
        if zeros.count(0) > 0.5 * len(zeros) and others.count(0) == 0:
            return SettingError(
                f"{name} looks like UTF-16 without a byte-order mark: byte 0x00 at offset {offset:,}",
                f"Give {{encoding}} utf-16-{order}.",
            )
    return GptcliError(
        f"{name} looks like a binary file: byte 0x00 at offset {offset:,} (line {line:,})",
        "Give a plain-text file; text has no such byte.",
    )
