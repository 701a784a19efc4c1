"""What every --help and --help-all prints at 80 columns; `make reference` writes it to tests/cli/help/."""

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from gptcli.cli import COMMANDS, SETTINGS, main
from gptcli.cli.lazy import LazyCommand

FOLDER = Path(__file__).parent / "cli" / "help"
NAMES = ["gptcli", *(name for panel in COMMANDS.values() for name in panel)]


def screens(name: str) -> str:
    """The help of a command, or of gptcli, as its file holds it: each command line, and what it prints."""
    return "".join(f"$ {' '.join(words)}\n{_printed(words[1:])}\n" for words in _lines(name))


def _lines(name: str) -> Iterator[list[str]]:
    words = ["gptcli"] if name == "gptcli" else ["gptcli", name]
    yield [*words, "--help"]
    if name != "gptcli":
        command = LazyCommand(name, "", "", SETTINGS).load()
        if any("--help-all" in parameter.opts for parameter in command.params):
            yield [*words, "--help-all"]


def _printed(arguments: list[str]) -> str:
    screen = io.StringIO()
    plain = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    kept = {word: value for word, value in os.environ.items() if word not in ("FORCE_COLOR", "TERMINAL_WIDTH")}
    with patch.dict(os.environ, kept | plain, clear=True), redirect_stdout(screen):
        main(arguments)
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for each in NAMES:
        (FOLDER / f"{each}.txt").write_text(screens(each), encoding="utf-8", newline="\n")
