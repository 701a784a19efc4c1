"""gptcli merge: an adapter and its base as one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import next_steps, options, render


def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter's directory, or its name under checkpoints/.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new checkpoint's directory.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="The checkpoint that the adapter changes (default: the one that the adapter names).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write a low-rank adapter and the checkpoint that it changes as one checkpoint, which needs neither."""
    from gptcli.checkpoints import layout
    from gptcli.checkpoints.derived import create_merged

    source = layout.find(adapter)
    base = create_merged(out, source, None if checkpoint is None else layout.find(checkpoint), force)
    size = render.human_bytes((out / layout.WEIGHTS).stat().st_size)
    render.print_text(f"{out}: {size}, the weights of {base} with {source} merged into them.")
    next_steps.suggest_generate(out)
