"""gptcli load-gpt2: OpenAI's GPT-2, and every model of its kind, into a checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.checkpoints.layout import ROOT, WEIGHTS
from gptcli.cli import options, render
from gptcli.errors import GptcliError
from gptcli.model.cost import parameter_count

if TYPE_CHECKING:
    from gptcli.checkpoints.formats.source import Source

_PLAIN_NAMES = ("model", "pytorch_model", "ckpt", "model.ckpt", "model.safetensors", "pytorch_model.bin")


def load_gpt2(
    size: Annotated[
        str | None, typer.Option("--size", help="small (default), medium, large or xl, from the Hugging Face hub.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A Hugging Face directory or file of weights, OpenAI's TensorFlow files, or nanoGPT's ckpt.pt.",
        ),
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", help="Another GPT-2 on the hub, such as distilbert/distilgpt2.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A commit, branch or tag of it (default: pinned; --repo: main).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The checkpoint (default: checkpoints/gpt2-SIZE).")] = None,
    dtype: options.FileDtype = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Bring GPT-2 weights into a checkpoint, from the hub or from files that you have."""
    given = [name for name, value in (("--size", size), ("--from", source), ("--repo", repo)) if value is not None]
    if len(given) > 1:
        raise GptcliError(f"{' and '.join(given)} name two sources.", "Give one of them.")
    if source is not None and revision is not None:
        raise GptcliError("--revision is for the hub, but --from names files.", "Leave one of the two out.")
    options.check_file_dtype(dtype)

    import torch

    from gptcli.checkpoints import checkpoint, formats, overwrite

    path = out or ROOT / _name(size, source, repo)
    overwrite.check_output(path, force=force, inputs=[source] if source is not None else [])
    if source is None:
        source = _download(size, repo, revision)
    read = formats.read(source)
    checkpoint.create_from(
        path, read.config, read.tensors, read.tokenizer, {}, dtype=getattr(torch, dtype), force=force, inputs=[source]
    )
    for note in read.notes:
        render.note(note)
    render.print_text(_summary(path, read, dtype))
    if read.tokenizer.kind != "none":
        render.note('Now: gptcli generate "Every effort moves you"' + (f" -c {path}" if out is not None else ""))


def _name(size: str | None, source: Path | None, repo: str | None) -> str:
    if repo is not None:
        return repo.rstrip("/").rpartition("/")[2]
    if source is None:
        return f"gpt2-{size or 'small'}"
    resolved = source.resolve()
    if resolved.is_dir():
        return resolved.name
    return resolved.parent.name if resolved.stem in _PLAIN_NAMES else resolved.stem


def _download(size: str | None, repo: str | None, revision: str | None) -> Path:
    from gptcli.checkpoints.formats import hub

    pinned_repo, pinned_revision = (repo, "main") if repo is not None else hub.pinned(size or "small")
    return hub.fetch(
        pinned_repo,
        revision or pinned_revision,
        on_download=lambda name, count: render.note(f"Downloading {pinned_repo}/{name}, {render.human_bytes(count)}"),
        bar=_bar(),
    )


def _bar() -> type[Any]:
    """The download bar, quiet where ours are."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)
            settings |= {
                "disable": render.verbosity.quiet or not sys.stderr.isatty(),
                "leave": False,
                "file": sys.stderr,
            }
            super().__init__(*args, **settings)

    return Bar


def _summary(path: Path, read: "Source", dtype: str) -> str:
    size = render.human_bytes((path / WEIGHTS).stat().st_size)
    tokenizer = "no tokenizer" if read.tokenizer.kind == "none" else f"{read.tokenizer.kind} tokenizer"
    return f"{path}: {parameter_count(read.config):,} parameters from {read.format}, {dtype}, {tokenizer}, {size}"
