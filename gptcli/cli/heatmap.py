"""Attention maps in the terminal: coloured cells, or characters of growing darkness where there is no colour.

On a dark background a weight of 0 is nearly black, on a light one nearly white. A cell sets its own background,
so that it can be told from its neighbours on either.
"""

import os
from collections.abc import Sequence
from typing import Any

from gptcli.cli.looking import label
from gptcli.inspection import palette

Rows = Sequence[Sequence[float]]


def has_colour(console: Any) -> bool:
    """Whether the console shows enough colours for a scale of them."""
    return bool(console.is_terminal and not console.no_color and console.color_system in ("truecolor", "256"))


def triangle(rows: Rows, labels: Sequence[str], width: int, coloured: bool) -> list[Any] | None:
    """The lower-triangular map (T, T), a line a token; None where ``width`` columns are too few for it."""
    from rich.text import Text

    length = len(rows)
    digits = len(str(length - 1))
    room = max((len(text) for text in labels), default=1)
    name_width = max(4, min(room, 14, width - digits - 2 - 2 * length))
    cell = 2 if digits + name_width + 2 + 2 * length <= width else 1
    if digits + name_width + 2 + cell * length > width:
        return None
    margin = " " * (digits + name_width + 2)
    lines = []
    for power in range(digits - 1, -1, -1):  # the number of each column, read from top to bottom
        numbers = "".join(
            str(n // 10**power % 10 if n >= 10**power or power == 0 else " ").rjust(cell) for n in range(length)
        )
        lines.append(Text(margin + numbers, style="dim"))
    for number, row in enumerate(rows):
        name = label(labels[number], name_width)
        line = Text(f"{number:>{digits}} {_padded(name, name_width)} ")
        for weight in row[: number + 1]:
            line.append(*_cell(weight, cell, coloured))
        lines.append(line)
    return lines


def grid(maps: Sequence[Sequence[Rows]], width: int, coloured: bool) -> list[Any]:
    """Small maps of all heads, layers from top to bottom, heads from left to right; maps[layer][head] is square."""
    from rich.text import Text

    size, heads = len(maps[0][0]), len(maps[0])
    digits = len(str(len(maps) - 1))
    column = max(size, len(str(heads - 1))) + 1
    margin = digits + len("layer ") + 1
    at_once = max(1, (width - margin) // column)
    lines = []
    for first in range(0, heads, at_once):
        shown = range(first, min(first + at_once, heads))
        lines.append(Text("head".ljust(margin) + "".join(str(h).ljust(column) for h in shown), style="dim"))
        for layer, row_of_maps in enumerate(maps):
            for top in range(0, size, 2):
                line = Text((f"layer {layer:>{digits}} " if top == 0 else "").ljust(margin))
                for head in shown:
                    small = row_of_maps[head]
                    for place in range(size):
                        upper = small[top][place] if place <= top else None
                        lower = small[top + 1][place] if top + 1 < size and place <= top + 1 else None
                        line.append(*_half_cells(upper, lower, coloured))
                    line.append(" " * (column - size))
                lines.append(line)
    return lines


def size_of_small_maps(width: int, heads: int, length: int) -> int:
    """How many cells wide a small map can be so that all heads stand side by side, within reason."""
    return min(length, max(5, min(16, (width - 10) // heads - 1)))


def legend(width: int, coloured: bool) -> list[Any]:
    """What the cells mean: attention weight, 0 to 1. No line breaks between a cell and its weight."""
    from rich.text import Text

    lines = [Text("attention weight:")]
    for weight in (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        entry = Text.assemble(_cell(weight, 2, coloured), f" {weight:g}")
        if lines[-1].cell_len + 2 + entry.cell_len > width:
            lines.append(Text())
        lines[-1].append_text(Text("  ") if lines[-1] else Text()).append_text(entry)
    return lines


def _cell(weight: float, width: int, coloured: bool) -> tuple[str, str]:
    if not coloured:
        return palette.shade(weight) * width, ""
    return " " * width, f"on {_hex(weight)}"


def _half_cells(upper: float | None, lower: float | None, coloured: bool) -> tuple[str, str]:
    """Two cells, one above the other, in one character."""
    there = [weight for weight in (upper, lower) if weight is not None]
    if not there:
        return " ", ""
    if not coloured:
        return palette.shade(sum(there) / len(there)), ""
    if upper is None:
        return "▄", _hex(there[0])
    return "▀", _hex(upper) + (f" on {_hex(lower)}" if lower is not None else "")


def _hex(weight: float) -> str:
    place = palette.brightness(weight)
    return "#{:02x}{:02x}{:02x}".format(*palette.colour(1 - place if is_light() else place))


def is_light() -> bool:
    """Whether the terminal says that its background is light, as COLORFGBG=0;15 does: weight 0 is to look like it."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return background in ("7", *map(str, range(9, 16)))


def _padded(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(text, width)
