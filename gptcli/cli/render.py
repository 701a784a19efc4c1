"""Everything a user sees: results on stdout, and notes, bars and errors on stderr."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptcli.errors import GptcliError


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

_TOKEN_STYLES = ("black on cyan", "black on yellow")


def use_utf8() -> None:
    """Speak UTF-8 on every stream: a Windows console or pipe may start with another encoding."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")


def stderr_console() -> Any:
    """A rich console on today's stderr."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def stdout_console() -> Any:
    """A rich console on today's stdout; piped, it prints plain text and never wraps."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=200)
    return console


def note(text: str) -> None:
    """One line for the user, on stderr; --quiet hides it."""
    if not verbosity.quiet and verbosity.rank == 0:
        stderr_console().print(text, markup=False)


def warn(text: str) -> None:
    """One line that the user should not miss, on stderr; --quiet does not hide it."""
    if verbosity.rank == 0:
        stderr_console().print(text, markup=False, style="yellow")


def detail(text: str) -> None:
    """One line for those who asked with --verbose."""
    if verbosity.verbose:
        stderr_console().print(text, markup=False, style="dim")


def fail(error: GptcliError) -> None:
    """The two lines of an error; with --debug the traceback before them."""
    if verbosity.debug:
        traceback.print_exception(error, file=sys.stderr)
    console = stderr_console()
    who = f"Process {verbosity.rank}: " if verbosity.rank else ""
    console.print(f"{who}Error: {error.message}", markup=False, style="bold red")
    console.print(error.hint, markup=False)


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


def print_table(
    title: str, columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[Any]], caption: str = ""
) -> None:
    """A table on stdout. ``columns`` are (heading, "left" | "right"); a cell is a string or a rich Text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, caption=caption or None, box=box.SIMPLE, title_justify="left", caption_justify="left")
    for heading, justify in columns:
        table.add_column(heading, justify="right" if justify == "right" else "left")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    stdout_console().print(table)


@contextmanager
def progress(
    total: int | None, unit: str, description: str = "", scale: bool = False, bar_format: str | None = None
) -> Iterator[Any]:
    """A tqdm bar on stderr with rate and time left, unless ``bar_format`` has another form in tqdm's words; hidden by
    --quiet and where stderr is no terminal."""
    from tqdm import tqdm

    hidden = verbosity.quiet or verbosity.rank > 0 or not sys.stderr.isatty()
    with tqdm(
        total=total, unit=unit, desc=description or None, unit_scale=scale, bar_format=bar_format, disable=hidden,
        file=sys.stderr, leave=False,
    ) as bar:  # fmt: skip
        yield bar


def quoted(word: str) -> str:
    """One word of a command line, as a shell takes it."""
    import shlex
    import subprocess

    if shlex.quote(word) == word:
        return word
    if not set(word) & set('"$`\\!%'):
        return f'"{word}"'
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)


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
