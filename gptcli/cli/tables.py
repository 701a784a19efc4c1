"""Tables and lines that fit a terminal: no word, name or number is ever cut or broken."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

ENDLESS = 10**6  # columns of what is no terminal
LEAST_PROSE = 16  # columns of a column of words, before a table becomes records
MOST_LINES = 40  # of records with a line for each value


def folded(text: str, width: int) -> list[str]:
    """``text`` as lines of at most ``width`` columns, broken between words; a longer word stays whole.

    The lines after the first one of a line of ``text`` are indented as that one is.
    """
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip(" "))]
        lines += _joined(line.split(), " ", indent, width) or [""]
    return lines


def table(
    console: Console,
    title: str,
    columns: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[str | Text]],
    caption: str,
    spare: int,
) -> Group:
    """A table, or the same as records where ``console`` is too narrow for it.

    Args:
        console: what it is for.
        title, caption: above and below it; empty for none.
        columns: (heading, "left" | "right" | "words" | "pieces"); a column of words may be broken between them, and one
            of pieces anywhere.
        rows: a cell for each column.
        spare: the number of columns at the end that are left out one by one where there is no room for them.
    """
    room = console.width
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    body: Any = None
    for left_out in range(spare + 1):
        kept = len(columns) - left_out
        body = body or _grid(columns[:kept], [row[:kept] for row in cells], room)
    if body is None:
        body = _records([heading for heading, _ in columns], cells, room)
    above = [_line(line, "table.title") for line in folded(title, room)] if title else []
    below = [_line(line, "table.caption") for line in folded(caption, room)] if caption else []
    return Group(*above, body, *below)


def _grid(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Text]], room: int) -> Table | None:
    """The table with its columns as wide as they have to be; None if that is wider than ``room``."""
    from rich import box

    widths = [
        max([cell_len(heading), *(_width(row[at].plain.split("\n")) for row in rows)])
        for at, (heading, _) in enumerate(columns)
    ]
    # A space after each cell, or one on both sides, and one between two columns and at both ends of the line.
    before = 1 if sum(widths) + 3 * len(columns) + 1 <= room else 0
    too_much = sum(widths) + (2 + before) * len(columns) + 1 - room
    for at in sorted(range(len(columns)), key=lambda at: -widths[at]):
        kind = columns[at][1]
        if too_much > 0 and kind in ("words", "pieces"):
            whole = (word for row in rows for word in row[at].plain.split()) if kind == "words" else ()
            longest = _width([columns[at][0], *whole])
            narrow = max(widths[at] - too_much, longest, min(LEAST_PROSE, widths[at]))
            too_much -= widths[at] - narrow
            widths[at] = narrow
    if too_much > 0:
        return None
    grid = Table(box=box.SIMPLE, padding=(0, 1, 0, before), show_header=any(heading for heading, _ in columns))
    for (heading, kind), width in zip(columns, widths, strict=True):
        side: Any = "right" if kind == "right" else "left"
        grid.add_column(heading, justify=side, no_wrap=kind in ("left", "right"), width=width, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _records(headings: Sequence[str], rows: Sequence[Sequence[Text]], room: int) -> Group:
    """The rows below one another, each value after its heading; the first cell begins a record."""
    lines: list[Text] = []
    if len(headings) == 2:
        return Group(*(_line(line) for row in rows for line in folded(f"{row[0]}: {row[1]}", room)), Text())
    each_apart = len(headings) > 3 and len(rows) * len(headings) <= MOST_LINES
    margin = _width(headings[1:]) + 2
    aligned = each_apart and all(2 + margin + cell_len(cell.plain) <= room for row in rows for cell in row[1:])
    for row in rows:
        lines += [Text(), Text(row[0].plain, "bold", no_wrap=True, overflow="ignore")] if row[0] else []
        cells = [(heading, cell) for heading, cell in zip(headings[1:], row[1:], strict=True) if cell.plain]
        named = [(heading, cell.plain) for heading, cell in cells if not cell.spans]
        if aligned:
            lines += [_line(f"  {heading:<{margin}}{value}") for heading, value in named]
        elif each_apart:
            lines += [_line(line) for name, value in named for line in folded(f"  {name} {value}".rstrip(), room)]
        else:
            values = [f"{heading} {value}".strip() for heading, value in named]
            lines += [_line(line) for line in _joined(values, " · ", "  ", room)]
        lines += [Text.assemble(f"  {heading} ", cell, overflow="fold") for heading, cell in cells if cell.spans]
    return Group(*lines, Text())


def _joined(parts: Iterable[str], separator: str, indent: str, width: int) -> list[str]:
    """``parts`` with ``separator`` between them, in lines of at most ``width`` columns broken only between parts."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{separator}{part}" if lines else ""
        if lines and cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(indent + part)
    return lines


def _width(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ignore")
