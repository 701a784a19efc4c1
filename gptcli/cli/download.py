"""``gptcli download``: the bundled story, and the public-domain texts that the course and nanoGPT train on."""

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import next_steps, options, render
from gptcli.data import download as downloads

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT",
        help="story, the-verdict, tinyshakespeare, or several; no name lists them.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="The folder that the texts go to.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file of that name that is another text.")]


def download(
    names: Names = None,
    out: Out = Path("data"),
    force: Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write the bundled story, or fetch a public-domain text to train on and check it."""
    if not names:
        _list(out)
        return
    texts = [downloads.find(name) for name in dict.fromkeys(names)]
    # Everything is checked, then fetched, before the first file is written: an error leaves the folder as it was.
    missing = [text for text in texts if not downloads.is_there(text, out, force=force)]
    fetched = {text: _fetch(text) for text in missing}
    for text in texts:
        path = out / text.filename
        if text in fetched:
            downloads.place(fetched[text], path)
            done = "Wrote" if text.path is None else "Downloaded"
            render.note(f"{done} {text.title}: {text.size:,} bytes, SHA-256 as expected.")
        else:
            render.note(f"{path} is there already, with the right SHA-256; nothing to fetch.")
        render.print_text(str(path))
    next_steps.suggest("Train a small model on it", "train", out / texts[0].filename, "--size", "tiny")


def _fetch(text: downloads.Text) -> bytes:
    if text.path is not None:
        render.detail(f"From {downloads.address(text)}")
    with render.progress(text.size, "B", text.filename, scale=True) as bar:
        return downloads.fetch(text, bar.update)


def _list(folder: Path) -> None:
    rows = [
        (name, text.title, f"{text.size:,}", "yes" if downloads.is_there(text, folder, force=True) else "no")
        for name, text in downloads.TEXTS.items()
    ]
    columns = [("name", "left"), ("text", "left"), ("bytes", "right"), (f"in {folder}", "left")]
    render.print_table(
        "Texts to download", columns, rows, caption="gptcli download NAME writes one; story needs no network."
    )
