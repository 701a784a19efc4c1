"""Rows of examples: JSON Lines, a JSON list, CSV and TSV, each row with the place where it stands."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any

from gptcli.data import documents
from gptcli.data.documents import Document
from gptcli.data.text_decoding import PACKED, plain_newlines
from gptcli.errors import GptcliError, SettingError, quoted

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
ROW_SUFFIXES = JSON_SUFFIXES + TABLE_SUFFIXES
SUFFIXES = (*documents.SUFFIXES, *ROW_SUFFIXES)
DELIMITERS = (",", ";", "\t", "|")
FINETUNE = "Fine-tune on them: gptcli finetune {file} --init-from CHECKPOINT"
_SHOWN = 10  # names that a message lists
_SPACE = re.compile(r"\s*")


class BadRowError(SettingError):
    """A row that cannot be used; the rows after it can."""


def refuse(error: BadRowError) -> None:
    """Raise ``error``, without the way out of leaving the row out: an ``on_bad`` for a reader that skips none."""
    message, hint = error.templates
    raise BadRowError(message, hint.partition(" {skip_bad}")[0]) from error


@dataclass(frozen=True)
class Row:
    """One row: ``file`` and the ``line`` that it begins in, counted from 1, and its fields by name."""

    file: str
    line: int
    fields: dict[str, Any]

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line:,}"


def is_rows(name: str) -> bool:
    """Whether a file of this name holds rows; it may be compressed."""
    path = Path(name)
    path = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return path.suffix.lower() in ROW_SUFFIXES


def read(document: Document, on_bad: Callable[[BadRowError], None]) -> Iterator[Row]:
    """The rows of a decoded file, in order. Rows without a value in any field are left out.

    The first character decides between JSON Lines and a JSON list; the first line of a table names its columns, and
    the delimiter is the most frequent of ``, ; | `` and the tab in it.

    Args:
        document: the file, whose name ends in one of ROW_SUFFIXES (and .gz or .zst).
        on_bad: called with the error of every row that cannot be read; it may raise it.

    Raises:
        GptcliError: the file as a whole cannot be read: a JSON file is no list, a column has two names, a quote has no
            end.
    """
    path = Path(document.name)
    path = path.with_suffix("") if path.suffix.lower() in PACKED else path
    if path.suffix.lower() in TABLE_SUFFIXES:
        found = _table(document, path.suffix.lower() == ".tsv", on_bad)
    elif document.text.lstrip().startswith("["):
        found = _json_list(document, on_bad)
    else:
        found = _json_lines(document, on_bad)
    for row in found:
        if any(value not in (None, "") for value in row.fields.values()):
            yield row


def refuse_rows(texts: Sequence[str], field: str | None = None, use: str = FINETUNE) -> None:
    """Raise GptcliError for a file of rows, whose braces and commas are no running text; ``field`` reads .jsonl.

    Args:
        use: what can be done with {file} as it is.
    """
    found = next((text for text in texts if is_rows(text) and not Path(text).is_dir()), None)
    if found is None or field is not None:
        return
    name = quoted(found)
    one = f"; one field as running text: gptcli prepare {name} --field NAME --out FOLDER" if ".jsonl" in found else ""
    raise GptcliError(
        f"{found} has rows of examples in it, not running text.",
        f"{use.format(file=name)}{one}",
    )


def read_files(sources: Sequence[str], *, encoding: str | None = None, errors: str = "strict") -> list[Document]:
    """The files of rows and of running text among ``sources``, decoded; see `documents.read_documents`.

    Raises:
        GptcliError: as `documents.read_documents`.
    """
    found = documents.find(sources, SUFFIXES)
    return documents.read_documents(found, encoding=encoding, errors=errors)


class _RepeatedError(ValueError):
    """A JSON object has a field twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedError(next(name for name in names if names.count(name) > 1))
    return {name: plain_newlines(value) if isinstance(value, str) else value for name, value in fields.items()}


_DECODER = JSONDecoder(object_pairs_hook=_object)


def _json_lines(document: Document, on_bad: Callable[[BadRowError], None]) -> Iterator[Row]:
    lines = document.text.split("\n")  # not splitlines: U+2028 may stand in a text
    if _is_one_object(lines):
        raise GptcliError(
            f"{document.name} is one JSON object over several lines, neither a list of objects nor one object a line.",
            "Give a list of the examples: [{...}, {...}], or one {...} a line.",
        )
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            try:
                value = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                on_bad(_no_json(f"{document.name}, line {number:,}", error))
                continue
            row = _row(document.name, number, value, on_bad)
            if row is not None:
                yield row


def _is_one_object(lines: list[str]) -> bool:
    first = next((line for line in lines if line and not line.isspace()), "")
    if not first.lstrip().startswith("{"):
        return False
    return not _is_json(first) and _is_json("\n".join(lines))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_list(document: Document, on_bad: Callable[[BadRowError], None]) -> Iterator[Row]:
    """The items of a list, one after the other, so that each has its line."""
    text, name = document.text, document.name
    at, line, counted = _after_space(text, text.index("[") + 1), 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except _RepeatedError as error:
            on_bad(_no_json(f"{name}, line {line:,}", error))
            value, at = JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _damaged_list(name, error) from error
        else:
            row = _row(name, line, value, on_bad)
            if row is not None:
                yield row
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
            closed = text[at : at + 1] != "]"
        else:
            closed = text[at : at + 1] == "]"
        if not closed:
            raise _damaged_list(name, JSONDecodeError("Expecting ',' or ']'", text, at))
    rest = _after_space(text, at + 1)
    if rest < len(text):
        raise _damaged_list(name, JSONDecodeError("Extra data", text, rest))


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _damaged_list(name: str, error: Exception) -> GptcliError:
    return GptcliError(
        f"{name} is no JSON list: {str(error)[:100]}.", "Save the file again, or give one object a line (.jsonl)."
    )


def _no_json(place: str, error: Exception) -> BadRowError:
    if isinstance(error, _RepeatedError):
        return BadRowError(
            f"{place} has the field {str(error)!r} twice.", "Give it once, or leave it out with {skip_bad}."
        )
    what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
    return BadRowError(
        f"{place} is no JSON: {what}.", 'Expected: one object: {"text": "..."}. {skip_bad} leaves such lines out.'
    )


def _row(name: str, line: int, value: Any, on_bad: Callable[[BadRowError], None]) -> Row | None:
    if isinstance(value, dict):
        return Row(name, line, value)
    on_bad(
        BadRowError(
            f"{name}, line {line:,} is {json.dumps(value)[:40]}, not an object with fields.",
            'Expected: an object: {"text": "..."}. {skip_bad} leaves such rows out.',
        )
    )
    return None


def _table(document: Document, is_tsv: bool, on_bad: Callable[[BadRowError], None]) -> Iterator[Row]:
    delimiter = "\t" if is_tsv else _delimiter(document.text)
    limit = csv.field_size_limit(2**31 - 1)
    try:
        rows = [*_cells(document, delimiter)]
    finally:
        csv.field_size_limit(limit)
    if not rows:
        return
    (_, names), *rest = rows
    names = [name.strip() for name in names]
    _check_names(document.name, names)
    for line, cells in rest:
        if len(cells) != len(names):
            shown = {"\t": "tab"}.get(delimiter, delimiter)
            on_bad(
                BadRowError(
                    f"{document.name}, line {line:,} has {len(cells)} fields, but line {rows[0][0]} names "
                    f"{len(names)}: {', '.join(names[:_SHOWN])}.",
                    f'Put a field that has a {shown} in it into quotes: "a{delimiter} b". {{skip_bad}} leaves such '
                    "rows out.",
                )
            )
        else:
            yield Row(document.name, line, {name: cell for name, cell in zip(names, cells, strict=True) if name})


def _delimiter(text: str) -> str:
    """The most frequent candidate in the first line, outside quotes; a comma where there is none."""
    first = re.sub(r'"[^"]*"', "", text.lstrip("\n").split("\n", 1)[0])
    return max(DELIMITERS, key=first.count)


def _cells(document: Document, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the line it begins in."""
    reader = csv.reader(io.StringIO(document.text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quote has no end" if "unexpected end" in str(error) else str(error)
            raise GptcliError(
                f"{document.name}, line {line:,}: {what}.",
                'A field with a quote in it is written "so ""quoted"" here"; save the table again as CSV.',
            ) from error
        if any(cells):
            yield line, cells
        line = reader.line_num + 1


def _check_names(file: str, names: list[str]) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise GptcliError(
            f"{file} has {names.count(twice)} columns of the name {twice!r}.", "Give every column a name of its own."
        )
