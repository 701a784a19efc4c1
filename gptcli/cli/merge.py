"""gptcli merge: an adapter and its base as one checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import next_steps, options, render


def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter's directory, or its name under checkpoints/.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new directory (default: the adapter's name with -merged).")
    ] = None,
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
    from gptcli import api
    from gptcli.checkpoints import adapters, layout

    source = layout.find(adapter)
    target = api.merge(source, out, base=checkpoint, force=force)
    base = adapters.find_base(source) if checkpoint is None else layout.find(checkpoint)
    size = render.human_bytes((target / layout.WEIGHTS).stat().st_size)
    render.print_text(f"{target}: {size}, the weights of {base} with {source} merged into them.")
    next_steps.suggest_generate(target)
