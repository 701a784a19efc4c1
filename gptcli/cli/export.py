"""gptcli export: a checkpoint for other programs, in another dtype or as one GGUF file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli import options, render
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_FORMATS = ("hf", "gguf")
_LARGEST_FLOAT16 = 65_504.0
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint directory, or its name under checkpoints/.")],
    directory: Annotated[Path, typer.Argument(help="Where to write; made if it is not there.")],
    dtype: options.FileDtype = "float16",
    format_name: Annotated[
        str, typer.Option("--format", help="hf: a directory as transformers keeps it. gguf: one file for llama.cpp.")
    ] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace the checkpoint or GGUF file there.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write a checkpoint in another dtype or format, read it back and compare it."""
    options.check_file_dtype(dtype)
    if format_name not in _FORMATS:
        raise GptcliError(f"There is no --format {format_name!r}.", nearest(format_name, _FORMATS))

    import torch

    from gptcli.checkpoints import checkpoint as checkpoints
    from gptcli.checkpoints import overwrite, safetensors_file
    from gptcli.checkpoints.formats import gguf_file
    from gptcli.checkpoints.layout import WEIGHTS

    path = checkpoints.find(checkpoint)
    if format_name == "hf":
        overwrite.check_output(directory, force=force, inputs=[path])
    loaded = checkpoints.load(path)
    tensors = checkpoints.with_zero_biases(loaded.config, loaded.tensors)
    target: torch.dtype = getattr(torch, dtype)
    if target is torch.float16:
        _check_range(tensors, path)
    if format_name == "gguf":
        gguf_file.check_supported(loaded.config, loaded.tokenizer, str(path))
        name = path.resolve().name
        file = directory / f"{name}-{_SHORT[dtype]}.gguf"
        overwrite.check_file(file, gguf_file.MAGIC, "a GGUF file", force)
        _make_directory(directory)
        gguf_file.write(file, loaded.config, tensors, loaded.tokenizer, target, name)
    else:
        checkpoints.create_from(
            directory, loaded.config, tensors, loaded.tokenizer, loaded.training, dtype=target, force=force,
            inputs=[path],
        )  # fmt: skip
        file = directory / WEIGHTS
        written = safetensors_file.read_tensors(file)
        if not all(torch.equal(written[name], tensor.to(target)) for name, tensor in tensors.items()):
            raise GptcliError(f"{file} is not what was written.", "The disk may be failing; try another one.")
    render.print_text(f"{file}: {len(tensors)} tensors, {dtype}, {render.human_bytes(file.stat().st_size)}, read back")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptcliError(f"{directory} cannot be made: {error.strerror}.", "Choose another directory.") from error


def _check_range(tensors: "Mapping[str, torch.Tensor]", path: Path) -> None:
    for name, tensor in tensors.items():
        largest = float(tensor.abs().max())
        if largest > _LARGEST_FLOAT16:
            raise GptcliError(
                f"{path}: {name} holds {largest:.4g}, and float16 ends at {_LARGEST_FLOAT16:.0f}.",
                "Take --dtype bfloat16, which reaches as far as float32.",
            )
