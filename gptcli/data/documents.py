"""The texts a user names on the command line, read and decoded.

A source is a file, a folder (every .txt and .md file below it), a glob such as ``texts/*.txt`` (quoted, or in a shell
that does not expand it), or ``-`` for stdin. Any file may be compressed (.gz, .zst).
"""

import errno
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NoReturn

from gptcli.data import missing
from gptcli.data.text_decoding import PACKED, READ_BYTES, chunks, decoded, plain_newlines
from gptcli.errors import GptcliError, SettingError, nearest

SUFFIXES = (".txt", ".md")
RECORD_SUFFIXES = (".jsonl",)
ERRORS = ("strict", "replace", "ignore")

_COMMON_ENCODINGS = (
    *("utf-8", "utf-16", "utf-32", "ascii", "latin-1", "iso-8859-15", "cp437", "cp850", "cp1250", "cp1251", "cp1252"),
    *("mac-roman", "koi8-r", "shift_jis", "euc-jp", "euc-kr", "gb18030", "big5"),
)


@dataclass(frozen=True)
class Document:
    """One text: ``name`` is the path of its file (``stdin`` for ``-``), ``text`` has ``\\n`` as its only newline.

    Of a part of a document, ``cut_from`` is the SHA-256 of the whole and the character at which the part begins.
    """

    name: str
    text: str
    cut_from: tuple[str, int] | None = None


@dataclass(frozen=True)
class Found:
    """The files of one source (None is stdin), and the folder if the source is a folder.

    Attributes:
        left_out: the READMEs of the folder, which describe its texts.
    """

    files: tuple[Path | None, ...]
    folder: Path | None = None
    left_out: tuple[Path, ...] = ()


def read_documents(
    sources: Sequence[str] | Sequence[Found],
    *,
    encoding: str | None = None,
    errors: str = "strict",
    stdin: BinaryIO | None = None,
) -> list[Document]:
    """Read every source, in the order given; the same file named twice is read twice.

    - A folder means the .txt and .md files below it, compressed or not, sorted by path; hidden files and folders,
      symbolic links to folders, files without text and READMEs are skipped.
    - A glob means the files that match it, sorted; ``**`` matches subfolders. The name of an existing file, such as
      ``[draft].txt``, is not a glob.
    - A file whose name ends in .gz or .zst is decompressed.
    - A byte-order mark (UTF-8, UTF-16, UTF-32) sets the encoding and is removed; without one, the encoding is
      ``encoding``, or UTF-8 if that is None.
    - ``\\r\\n`` and ``\\r`` become ``\\n``.

    Args:
        sources: files, folders, globs and ``-``, which means stdin and may be given once; or what `find` found.
        encoding: any text encoding that Python has; None is UTF-8.
        errors: how undecodable bytes are handled: ``strict`` (an error), ``replace`` (U+FFFD) or ``ignore``.
        stdin: the stream that ``-`` reads; None is the process's own.

    Raises:
        GptcliError: a source is missing, unreadable, empty, binary or not in the encoding; a folder or a glob has no
            text; the encoding or ``errors`` is unknown.
    """
    check_decoding(encoding, errors)
    _refuse_two_stdins(sources)
    documents: list[tuple[str, list[str]]] = []
    found = [source if isinstance(source, Found) else find([source])[0] for source in sources]
    for name, begins, text in stream(found, encoding=encoding, errors=errors, stdin=stdin):
        if begins:
            documents.append((name, []))
        documents[-1][1].append(text)
    return [Document(name, "".join(pieces)) for name, pieces in documents]


def read_text(source: str, stdin: BinaryIO | None = None) -> str:
    """The text of one file, or of stdin; unlike `read_documents`, it accepts a text of white space alone.

    Args:
        source: a file or ``-``; the texts of a folder or a glob are joined by ``\\n``.
        stdin: the stream that ``-`` reads; None is the process's own.

    Raises:
        GptcliError: as `read_documents`.
    """
    (found,) = find([source])
    if found.folder is not None or len(found.files) != 1:
        return "\n".join(document.text for document in read_documents([source], stdin=stdin))
    (path,) = found.files
    name, sizes = "stdin" if path is None else str(path), [0]
    data = _counted(_read(path, stdin, lambda count: None), sizes)
    text = "".join(decoded(name, data, None, "strict"))
    if not text:
        raise _no_text(name, sizes[0], None)
    return text


def check_decoding(encoding: str | None, errors: str) -> None:
    """Raise GptcliError for an encoding that Python does not have, or a value of ``errors`` outside ERRORS."""
    if errors not in ERRORS:
        raise SettingError(f"{{errors}} is {errors!r}, which is not one of its values.", nearest(errors, ERRORS))
    if encoding is not None:
        _check_encoding(encoding)


def find(sources: Sequence[str], suffixes: Sequence[str] = SUFFIXES, readmes: bool = False) -> list[Found]:
    """The files of ``sources``, one `Found` per source, in the order given; no file is read.

    With ``readmes``, the READMEs of a folder are texts as well, as they were for runs of older versions.

    Raises:
        GptcliError: a source is missing; a folder or a glob has no file; stdin is given twice.
    """
    _refuse_two_stdins(sources)
    return [_find(source, suffixes, readmes) for source in sources]


def _refuse_two_stdins(sources: Sequence[str] | Sequence[Found]) -> None:
    if list(sources).count("-") > 1:
        raise GptcliError("- is given twice, and stdin can be read only once", "Give - once.")


def stream(
    found: Sequence[Found],
    *,
    encoding: str | None,
    errors: str,
    field: str | None = None,
    stdin: BinaryIO | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[str, bool, str]]:
    """Every text in pieces of about 1 MiB: (name of the file, whether a text begins with this piece, piece).

    The rules are those of `read_documents`. No piece is empty; a text of white space alone yields no piece.

    Args:
        found: the result of `find`.
        encoding: see `read_documents`; the caller checks it with `check_decoding`.
        errors: see ``encoding``.
        field: if given, each line of a file is a JSON object, and this field of the object is one text.
        stdin: the stream that ``-`` reads; None is the process's own.
        report: called with the number of bytes read so far, over all files.

    Raises:
        GptcliError: a file is unreadable, damaged, empty, binary or not in the encoding; with ``field``, a line is
            not a JSON object with a string in that field; a folder has no text.
    """
    before = 0
    for source in found:
        any_text = False
        for path in source.files:
            sizes, read = [0], [0]

            def note(count: int, before: int = before, read: list[int] = read) -> None:
                read[0] = count
                report(before + count)

            name = "stdin" if path is None else str(path)
            data = _counted(_read(path, stdin, note), sizes)
            pieces = decoded(name, data, encoding, errors)
            has_text = False
            for begins, text in _records(name, pieces, field) if field is not None else _one_text(pieces):
                has_text = True
                yield name, begins, text
            before += read[0]
            any_text |= has_text
            if not has_text and source.folder is None:
                raise _no_text(name, sizes[0], field)
        if not any_text:
            raise GptcliError(
                f"No text in {source.folder}: every one of its {len(source.files)} text files is empty", "Give a text."
            )


def _counted(data: Iterable[bytes], sizes: list[int]) -> Iterator[bytes]:
    """Yield ``data`` and add the number of its bytes to ``sizes[0]``."""
    for chunk in data:
        sizes[0] += len(chunk)
        yield chunk


def _read(path: Path | None, stdin: BinaryIO | None, report: Callable[[int], None]) -> Iterator[bytes]:
    if path is None:
        source = stdin or sys.stdin.buffer
        try:
            while chunk := source.read(READ_BYTES):
                yield chunk
        except OSError as error:
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise GptcliError(f"Cannot read stdin: {why}", "Give the path of a text file, or send a text.") from error
        return
    try:
        yield from chunks(path, report)
    except FileNotFoundError:
        raise missing.no_such_file(str(path)) from None
    except OSError as error:
        _cannot_read(error, path)


def _one_text(pieces: Iterable[str]) -> Iterator[tuple[bool, str]]:
    """A file as one text: (whether the text begins with this piece, piece); none if it is only white space."""
    held, begins = "", True
    for piece in pieces:
        held += piece
        if not begins or not held.isspace():
            yield begins, held
            held, begins = "", False


def _records(name: str, pieces: Iterable[str], field: str) -> Iterator[tuple[bool, str]]:
    """One text per line: ``field`` of the line's JSON object; texts of white space alone are skipped."""
    number, rest = 0, ""
    for piece in chain(pieces, ["\n"]):
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            number += 1
            if line and not line.isspace():
                text = plain_newlines(_field(f"{name}, line {number:,}", line, field))
                if text and not text.isspace():
                    yield True, text


def _field(where: str, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SettingError(
            f"{where} is no JSON: {str(error)[:100]}.",
            f'With {{field}}, every line is an object: {{"{field}": "A text."}}',
        ) from error
    if not isinstance(record, dict) or field not in record:
        has = f"an object with {', '.join(map(repr, [*record][:10])) or 'no field'}" if isinstance(record, dict) else ""
        raise SettingError(
            f"{where} has no field {field!r}; it is {has or f'no object: {line[:40]}'}.",
            "Name the field that holds the text: {field} NAME",
        )
    if not isinstance(record[field], str):
        raise SettingError(
            f"{where}: field {field!r} is {json.dumps(record[field])[:40]}, not a text.",
            "Name the field that holds the text: {field} NAME",
        )
    text: str = record[field]
    return text


def _no_text(name: str, size: int, field: str | None) -> GptcliError:
    if size and field is not None:
        return GptcliError(
            f"{name} has no text in field {field!r} of any line", "Give a file that has some text in it."
        )
    what = f"nothing but white space ({size:,} bytes)" if size else "empty (0 bytes)"
    return GptcliError(f"{name} is {what}", "Give a file that has some text in it.")


def _check_encoding(encoding: str) -> None:
    try:
        # Unlike codecs.lookup, TextIOWrapper also refuses codecs that are not text encodings, such as hex and rot13.
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except (LookupError, ValueError):
        raise GptcliError(f"Unknown encoding: {encoding}", nearest(encoding.lower(), _COMMON_ENCODINGS)) from None


def _find(source: str, suffixes: Sequence[str], readmes: bool) -> Found:
    if source == "-":
        return Found((None,))
    if missing.is_address(source):
        raise missing.no_such_file(source)
    path = Path(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        _cannot_read(error, path)
    if is_folder:
        return _find_in_folder(path, suffixes, readmes)
    if exists:
        return Found((path,))
    if not glob.has_magic(source):
        raise missing.no_such_file(source)
    # Path.glob takes no absolute pattern, and in Python 3.11 and 3.12 its ** matches only folders.
    matches = sorted(path for path in map(Path, glob.glob(source, recursive=True)) if path.is_file())  # noqa: PTH207
    if not matches:
        raise GptcliError(
            f"No file matches {source}", f"Check the folder and the ending; this was looked up in {Path.cwd()}."
        )
    return Found(tuple(matches))


def _find_in_folder(folder: Path, suffixes: Sequence[str], readmes: bool) -> Found:
    paths = sorted(_texts_below(folder, suffixes))
    left_out = tuple(path for path in paths if not readmes and path.name.lower().startswith("readme."))
    texts = tuple(path for path in paths if path not in left_out)
    if not texts:
        but = f" but {left_out[0].name}, which describes a folder" if left_out else ""
        raise GptcliError(
            f"No text in {folder}: it holds no {' or '.join(suffixes)} file{but}",
            f"Name the files themselves to read others, such as {left_out[0] if left_out else folder / '*.text'}.",
        )
    return Found(texts, folder, left_out)


def _texts_below(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_cannot_read):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            plain = path.with_suffix("") if path.suffix.lower() in PACKED else path
            # is_file() excludes named pipes: opening one blocks until a process writes to it.
            if plain.suffix.lower() in suffixes and not name.startswith(".") and path.is_file():
                yield path


def _cannot_read(error: OSError, path: Path | None = None) -> NoReturn:
    hint = (
        "Ask its owner for the right to read it, or give another file."
        if isinstance(error, PermissionError)
        else "Give the path of a text file, a folder of them, or - for stdin."
    )
    # If the user gives a text instead of a path, the path is as long as that text.
    shown = str(path or error.filename)
    shown = shown if len(shown) <= 200 else shown[:60] + "…"
    raise GptcliError(f"Cannot read {shown}: {error.strerror}", hint) from error


def path_names(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """One or several paths as a list of texts."""
    return [os.fspath(paths)] if isinstance(paths, str | os.PathLike) else [os.fspath(path) for path in paths]
