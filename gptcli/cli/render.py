"""Everything a user sees: results on stdout, and notes, bars and errors on stderr."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptcli.errors import GptcliError
from gptcli.errors import quoted as quoted


@dataclass
class Verbosity:
    """How much goes to stderr; set by --quiet, --verbose and --debug.

    ``rank`` is this process's number where several work together: only the first one speaks, but every error is told.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    rank: int = 0

    def reset(self) -> None:
        """Back to the default, for the next command of the same process."""
        self.quiet = self.verbose = self.debug = False
        self.rank = 0


verbosity = Verbosity()

WARNING = "dark_orange3"  # plain yellow cannot be read on white

_TOKEN_STYLES = ("black on cyan", "black on yellow")
_bars: list[Any] = []  # those that are shown now


def use_utf8() -> None:
    """Speak UTF-8 on every stream: a Windows console or pipe may start with another encoding."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")


def stderr_console() -> Any:
    """A rich console on today's stderr."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, soft_wrap=True, width=width_of(sys.stderr))


def stdout_console() -> Any:
    """A rich console on today's stdout; piped, it prints plain text and never wraps."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, width=width_of(sys.stdout))
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=200)
    return console


def width_of(stream: Any) -> int:
    """The columns of the terminal that ``stream`` is: as COLUMNS says, or the terminal; 80 where neither is known."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def note(text: str) -> None:
    """A message for the user, on stderr; --quiet hides it."""
    if not verbosity.quiet and verbosity.rank == 0:
        _tell(text)


def warn(text: str) -> None:
    """A message that the user should not miss, on stderr; --quiet does not hide it."""
    if verbosity.rank == 0:
        _tell(text, WARNING)


def detail(text: str) -> None:
    """A message for those who asked with --verbose."""
    if verbosity.verbose:
        _tell(text, "dim")


def _tell(text: str, style: str | None = None) -> None:
    """``text`` on stderr, above the bar if there is one.

    A terminal gets it broken between words. A command stays on one line, so that it can be copied; where there is no
    room for that, it begins a line.
    """
    from rich.cells import cell_len

    from gptcli.cli import tables

    console = stderr_console()
    if console.is_terminal and "gptcli " not in text:
        text = "\n".join(tables.folded(text, console.width))
    elif console.is_terminal and cell_len(text) > console.width:
        before, command, rest = text.partition("gptcli ")
        if before.strip() and "\n" not in text:
            text = "\n".join([*tables.folded(before, console.width), command + rest])
    for bar in _bars:
        bar.clear()
    console.print(text, markup=False, style=style)
    for bar in _bars:
        bar.refresh()


def fail(error: GptcliError) -> None:
    """The two lines of an error; with --debug the traceback before them."""
    if verbosity.debug:
        traceback.print_exception(error, file=sys.stderr)
    who = f"Process {verbosity.rank}: " if verbosity.rank else ""
    _tell(f"{who}Error: {error.message}", "bold red")
    _tell(error.hint)


def print_text(text: str, end: str = "\n") -> None:
    """A result on stdout, as it is."""
    if verbosity.rank:
        return
    sys.stdout.write(text + end)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """A result on stdout as JSON."""
    import json

    print_text(json.dumps(value, indent=2, ensure_ascii=False))


def token_text(pieces: Sequence[str], first: int = 0, separator: str = "") -> Any:
    """A rich Text of one piece after another on two backgrounds in turn, or parted by bars where there are no colours.

    Args:
        pieces: each on one line.
        first: the place of the first one in the whole, which decides its background.
        separator: what parts them instead.
    """
    from rich.text import Text

    if not _has_colours():
        return Text((separator or "|").join(pieces), overflow="fold")
    text = Text(overflow="fold")
    for place, piece in enumerate(pieces, first):
        if place > 0:
            text.append(separator)
        text.append(piece, _TOKEN_STYLES[place % 2])
    return text


def print_tokens(pieces: Sequence[str], separator: str = "") -> None:
    """Pieces on stdout as ``token_text`` shows them, on one line that the terminal may break."""
    if not _has_colours():
        print_text((separator or "|").join(pieces))
        return
    console = stdout_console()
    # rich's time a style grows with the length of the text.
    for first in range(0, len(pieces), 1_000):
        console.print(token_text(pieces[first : first + 1_000], first, separator), soft_wrap=True, end="")
    console.print()


def _has_colours() -> bool:
    """As rich decides, but without importing it."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def print_line(text: str) -> None:
    """A sentence on stdout as a result; a terminal gets it broken between words."""
    from gptcli.cli import tables

    console = stdout_console()
    print_text("\n".join(tables.folded(text, console.width)) if console.is_terminal else text)


def print_table(
    title: str, columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[Any]], caption: str = "", spare: int = 0
) -> None:
    """A table on stdout, or records where the terminal is too narrow for it.

    Args:
        title, caption: above and below it.
        columns: (heading, "left" | "right" | "words" | "pieces"): words may be broken between them, pieces
            anywhere, and the others never.
        rows: a cell for each column, a string or a rich Text.
        spare: the number of columns at the end that are left out one by one where there is no room for them.
    """
    from gptcli.cli import tables

    console = stdout_console()
    if not console.is_terminal:
        console.width = tables.ENDLESS
    made = tables.table(console, title, list(columns), [list(row) for row in rows], caption, spare)
    console.print(made, crop=False)


@contextmanager
def progress(
    total: int | None, unit: str, description: str = "", scale: bool = False, told: bool = True
) -> Iterator[Any]:
    """A tqdm bar on stderr, such as ``35% ━━━━─────── windows: 12 of 34, 5 s left``.

    --quiet hides it, and it is absent where stderr is no terminal or a dumb one.

    Args:
        total: of how many units; None if nobody knows.
        unit: what is counted.
        description: before the count.
        scale: whether to count in k, M and G.
        told: whether to show count, rate and time left; otherwise the caller sets the whole text behind the bar.
    """
    from tqdm import tqdm

    hidden = verbosity.quiet or verbosity.rank > 0 or not _moves(sys.stderr)
    counts = "{n_fmt}/{total_fmt} {unit} · {remaining}" if told else ""
    shape = f"{{percentage:3.0f}}% {{bar}} {{desc}}{counts}"
    fits = len(description) <= width_of(sys.stderr) // 3
    with tqdm(
        total=total, unit=unit, desc=description if fits else None, unit_scale=scale,
        bar_format=shape if total else None,
        disable=hidden, file=sys.stderr, leave=False, dynamic_ncols=True, ascii="─━",
    ) as bar:  # fmt: skip
        if not hidden:
            _bars.append(bar)
        try:
            yield bar
        finally:
            if not hidden:
                _bars.remove(bar)


def _moves(stream: Any) -> bool:
    """Whether ``stream`` is a terminal whose last line can be written again."""
    return bool(stream.isatty()) and os.environ.get("TERM") not in ("dumb", "unknown")


def human_bytes(count: float) -> str:
    """A size with the unit people read: 1.30 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:.0f} bytes"


def human_flops(rate: float) -> str:
    """Floating-point operations a second with the unit people read: 65.5 GFLOP/s."""
    return f"{rate / 1e12:,.0f} TFLOP/s" if rate >= 1e13 else f"{rate / 1e9:,.1f} GFLOP/s"


def human_time(seconds: float) -> str:
    """A duration as people say it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
