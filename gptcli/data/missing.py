"""What to say of a text that is not there: the name as it was typed, and the one that was probably meant."""

import os
import re
from collections.abc import Iterator
from difflib import SequenceMatcher, get_close_matches
from itertools import islice
from pathlib import Path

from gptcli.checkpoints import layout
from gptcli.errors import GptcliError, quoted

DEPTH = 2  # how many folders down a file of the same name is looked for
MOST_FOLDERS = 300


def is_address(source: str) -> bool:
    """Whether ``source`` is the address of a page or file on the web."""
    return re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE) is not None


def no_such_file(source: str) -> GptcliError:
    """The error for a ``source`` that does not exist."""
    if is_address(source):
        last = source.split("://")[1].split("?")[0].partition("/")[2].rsplit("/")[-1]
        target = re.sub(r"[^\w.-]", "", last) or "text.txt"
        return GptcliError(
            f"{source} is an address, and texts are read from files.",
            f"Fetch it first: curl -L -o {target} {quoted(source)}",
        )
    shown = source if len(source) <= 200 else source[:60] + "…"
    return GptcliError(f"No such file: {shown}", _hint(Path(source), source))


def _hint(path: Path, source: str) -> str:
    elsewhere = _elsewhere(path)
    if elsewhere is not None:
        return f"Did you mean {elsewhere}?"
    if (layout.ROOT / path / layout.CONFIG).is_file():
        run = layout.ROOT / path
        name = quoted(source)
        return f"{run} is a checkpoint: gptcli evaluate TEXT --checkpoint {name}, or gptcli train --resume {name}"
    if len(source.split()) > 3:
        return "If this is the text itself, put it into a file, or send it and give - as the name."
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder} here; this was looked up in {Path.cwd()}."
    names = _names(folder)
    longer = sorted(name for name in names.values() if name.startswith(f"{path.name} "))
    if longer:
        return f'A name with spaces needs quotes, as in "{folder / longer[0]}"'
    close = get_close_matches(path.name.lower(), names, n=1)
    if close and _is_near(path.stem.lower(), Path(close[0]).stem):
        return f"Did you mean {folder / names[close[0]]}?"
    return f"No name in {folder.resolve()} comes close; give a file, a folder of texts, a glob, or - for stdin."


def _is_near(stem: str, other: str) -> bool:
    """Whether two names are alike without their endings, which alone make short names alike."""
    return len(stem) <= 2 or SequenceMatcher(None, stem, other).ratio() >= 0.5


def _names(folder: Path) -> dict[str, str]:
    try:
        return {entry.name.lower(): entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    except OSError:
        return {}


def _elsewhere(path: Path) -> Path | None:
    """A file of the same name in the working directory or up to `DEPTH` folders below it."""
    for folder in islice(_folders(Path(), DEPTH), MOST_FOLDERS):
        try:
            if path.name and (folder / path.name).is_file():
                return folder / path.name
        except OSError:  # a name that no system takes
            return None
    return None


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    try:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return
    for name in inside if depth else ():
        yield from _folders(folder / name, depth - 1)
