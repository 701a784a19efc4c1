"""How every picture is made: by matplotlib's Agg, without its markup, as the kind of file that its name says."""

import io
import os
import textwrap
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from gptcli.errors import GptcliError

KINDS = {".png": "png", ".svg": "svg", ".pdf": "pdf", ".jpg": "jpg", ".jpeg": "jpg"}
# Nothing in a file says when it was made: the same numbers give the same bytes.
_METADATA: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None, "jpg": None}
TITLE = 60  # characters in a line of a title
TITLE_ROOM = 0.8  # of the picture's width, for its widest line


def kind_of(file: Path) -> str:
    """png, svg, pdf or jpg, as the file's suffix says.

    Raises:
        GptcliError: it is none of them.
    """
    kind = KINDS.get(file.suffix.lower())
    if kind is None:
        ending = f"in {file.suffix}, which is no kind of picture" if file.suffix else "in no kind of picture"
        raise GptcliError(
            f"{file} ends {ending} that can be drawn.", f"Give {file.with_suffix('.png')}, or .svg, .pdf or .jpg."
        )
    return kind


def new_figure(width: float, height: float) -> Any:
    """A white figure of ``width`` × ``height`` inches. MPLBACKEND is not looked at: it may be a notebook's."""
    asked = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if asked is not None:
            os.environ["MPLBACKEND"] = asked
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, file: Path | BinaryIO, kind: str = "png") -> None:
    """Write ``figure``; a $ in any of its texts is a dollar sign.

    Raises:
        GptcliError: it cannot be drawn, or not be written.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    room = TITLE_ROOM * figure.bbox.width
    for title in (figure.axes[0].title, *figure.texts) if figure.axes else ():
        width = title.get_window_extent(figure.canvas.get_renderer()).width
        if width > room:
            title.set_fontsize(title.get_fontsize() * room / width)
    made = io.BytesIO()
    comment = {"pil_kwargs": {"comment": b"Matplotlib"}} if kind == "jpg" else {"metadata": _METADATA[kind]}
    try:
        with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "gptcli"}):
            warnings.simplefilter("ignore")  # a character without a glyph is drawn as a box
            figure.savefig(made, dpi=150, format=kind, **comment)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise GptcliError(
            f"The picture cannot be drawn: {why[:200]}.", "All figures are complete without the picture."
        ) from error
    if not isinstance(file, Path):
        file.write(made.getvalue())
        return
    try:
        file.write_bytes(made.getvalue())
    except OSError as error:
        raise GptcliError(
            f"{file} cannot be written: {error.strerror or error}.", "Choose another file for the picture."
        ) from error


def in_lines(title: str, width: int = TITLE) -> str:
    """``title`` in lines that a picture has room for; a longer word is broken."""
    return textwrap.fill(title, width)
