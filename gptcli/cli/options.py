"""Options that several commands share: one name, one meaning, one default everywhere."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import render
from gptcli.cli.settings import RARELY_USED, option_of
from gptcli.config.compute import ComputeConfig
from gptcli.config.text import TextConfig
from gptcli.errors import GptcliError, SettingError


def _set_quiet(value: bool) -> bool:
    render.verbosity.quiet = value
    return value


def _set_verbose(value: bool) -> bool:
    render.verbosity.verbose = value
    return value


def _set_debug(value: bool) -> bool:
    render.verbosity.debug = value
    return value


Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", "-c", help="A checkpoint directory, or its name under checkpoints/ (default: the newest there)."
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        help="A low-rank adapter for the checkpoint; without --checkpoint, for the one that the adapter names.",
    ),
    RARELY_USED,
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Device = Annotated[  # of the inspect commands, which have no --dtype
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps; float32 on each: small differences count here.")
]
AllowSpecial = Annotated[bool, option_of(TextConfig, "allow_special")]
FileDtype = Annotated[str, typer.Option("--dtype", help="Dtype of the weights on disk: float32, float16 or bfloat16.")]
Threads = Annotated[int | None, option_of(ComputeConfig, "threads")]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        rich_help_panel="Saving and resuming",
        help="Continue this run; the result is that of a run that never stopped.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_set_quiet, help="Print only warnings and errors on stderr.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Print more details on stderr.")]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Print a traceback when the command fails.")
]

Text = Annotated[str | None, typer.Argument(help="The text to inspect; - reads stdin.")]
TextFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this file.")]
Png = Annotated[Path | None, typer.Option("--png", help="Draw the result into this .png file.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write the result as one HTML page that works offline.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file; - for stdout.")]
Npz = Annotated[Path | None, typer.Option("--npz", help="Write all numbers as NumPy arrays (.npz).")]


def find_model(checkpoint: Path | None, adapter: Path | None) -> tuple[Path, Path | None]:
    """What --checkpoint and --adapter mean: a checkpoint, and an adapter for it unless the checkpoint names its base.

    Raises:
        GptcliError: one of them is not there, ``adapter`` is no adapter, or it does not say for which checkpoint.
    """
    from gptcli.checkpoints import adapters, layout

    if adapter is None:
        return layout.find(checkpoint), None
    found = layout.find(adapter)
    if not layout.is_adapter(found):
        raise GptcliError(
            f"{found} is no adapter: it has no {layout.ADAPTER_CONFIG}.", "Open a whole checkpoint with -c alone."
        )
    if checkpoint is not None:
        return layout.find(checkpoint), found
    return (found, None) if adapters.is_ours(found) else (adapters.find_base(found), found)


def read_text(text: str | None, file: Path | None, what: str) -> str:
    """The one text a command works on: its argument, ``--file``, or stdin (``-``, or nothing given and stdin piped).

    Raises:
        GptcliError: both or neither, or what is there is not UTF-8.
    """
    if text is not None and file is not None:
        raise GptcliError(f"There are two {what}s: an argument and --file.", "Give one of the two.")
    if file is not None or text == "-" or (text is None and not sys.stdin.isatty()):
        from gptcli.data import documents

        try:
            return documents.read_text("-" if file is None else str(file))
        except SettingError as error:
            if "{encoding}" not in error.templates[1]:
                raise
            raise GptcliError(error.message, "Save it as UTF-8 first.") from error  # there is no --encoding here
    if text is None:
        raise GptcliError(f"There is no {what}.", "Give it in quotes, with --file FILE, or - for stdin.")
    with suppress(OSError, ValueError):  # no name that a file can have
        if Path(text).is_file():
            render.note(f"This {what} is the name of a file; --file {render.quoted(text)} reads the file.")
    return check_text(text, f"The {what}")


def check_text(text: str, name: str) -> str:
    """``text`` as it came on the command line, whose bytes Python hides in surrogates where they are no UTF-8.

    Args:
        text: any.
        name: of it, to begin an error with.

    Raises:
        GptcliError: it holds such a byte.
    """
    for place, letter in enumerate(text):
        if "\udc80" <= letter <= "\udcff":
            offset = len(text[:place].encode("utf-8", "surrogateescape"))
            raise GptcliError(
                f"{name} is not UTF-8: byte 0x{ord(letter) - 0xDC00:02X} at offset {offset:,}.",
                "Set the terminal to UTF-8, or give the text in a file that is saved as UTF-8.",
            )
    return text
