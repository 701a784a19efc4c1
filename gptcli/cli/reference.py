"""The guide's page of every command, made from what --help shows: `make reference` writes gptcli/guide/commands.md."""

from typing import Any

from gptcli.cli import COMMANDS, SETTINGS
from gptcli.cli.lazy import LazyCommand

EVERYWHERE = ("quiet", "verbose", "debug")  # parameters of every command, listed once


def page() -> str:
    """The page as Markdown. Its text does not depend on the terminal."""
    parts = [
        "# Every command",
        "This page is made from the commands' own `--help`.",
        "Every command takes `--quiet` (only warnings and errors on stderr), `--verbose` (more details on stderr), "
        "`--debug` (a traceback when the command fails) and `--help`.",
    ]
    for panel, lines in COMMANDS.items():
        parts.append(f"## {panel}")
        for name, line in lines.items():
            parts += _command(LazyCommand(name, panel, line, SETTINGS).load(), name)
    return "\n\n".join(parts) + "\n"


def _command(command: Any, name: str) -> list[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    pieces = " ".join(command.collect_usage_pieces(context))
    paragraphs = [" ".join(text.split()) for text in (command.help or "").replace("\\[", "[").split("\n\n")]
    parts = [f"### gptcli {name}", f"`gptcli {name} {pieces}`", *paragraphs]
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if parameter.name in getattr(command, "spare", ()):  # --help shows the word that turns it on, and no --no-…
            parameter.secondary_opts = []
        record = parameter.get_help_record(context)
        if record is not None and parameter.name not in EVERYWHERE:
            panel = getattr(parameter, "rich_help_panel", None) or ""
            panels.setdefault(panel, []).append(f"- `{record[0]}`: {' '.join(record[1].split())}")
    for panel, rows in panels.items():
        parts += ([f"{panel}:"] if panel else []) + ["\n".join(rows)]
    return parts
