"""gptcli export: a checkpoint for other programs, in another dtype or as one GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import next_steps, options, render


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint directory, or its name under checkpoints/.")],
    directory: Annotated[Path, typer.Argument(help="The directory to write; it is made if it is absent.")],
    dtype: options.FileDtype = "float16",
    format_name: Annotated[
        str, typer.Option("--format", help="hf: a directory in transformers' layout. gguf: one file for llama.cpp.")
    ] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint or GGUF file.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write a checkpoint in another dtype or format, read it back and compare it."""
    from gptcli.checkpoints import layout
    from gptcli.checkpoints.formats.convert import convert

    done = convert(layout.find(checkpoint), directory, format_name, dtype, force=force)
    size = render.human_bytes(done.file.stat().st_size)
    render.print_text(f"{done.file}: {done.tensors} tensors, {dtype}, {size}, read back")
    if format_name == "hf":
        next_steps.suggest_generate(directory)
    else:
        render.note("Open it with llama.cpp:")
        render.note(f"  llama-cli --model {render.quoted(str(done.file))}")
