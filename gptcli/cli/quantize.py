"""gptcli quantize: the same model in a quarter or a seventh of the space."""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from gptcli.cli import next_steps, options, render


def quantize(
    checkpoint: Annotated[
        Path, typer.Argument(help="A float32 checkpoint: its directory, or name under checkpoints/.")
    ],
    bits: Annotated[int, typer.Option("--bits", help="8 loses almost no quality; 4 is smaller and faster.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", help="The new directory (default: the old name with -int8 or -int4).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Pack a checkpoint's weights in 8 or 4 bits; generate and evaluate open the result like any other."""
    from gptcli import api
    from gptcli.checkpoints import layout

    source = layout.find(checkpoint)
    target = api.quantize(source, out, bits=cast(Literal[8, 4], bits), force=force)
    sizes = [layout.weights_file(path).stat().st_size for path in (source, target)]
    old, new = (render.human_bytes(size) for size in sizes)
    if layout.is_adapter(source):
        render.print_text(f"{target}: {new}, {source} is merged into it.")
    else:
        render.print_text(f"{target}: {new}, {sizes[0] / sizes[1]:.1f} times smaller than {old}.")
    next_steps.suggest_generate(target)
