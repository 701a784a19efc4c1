"""gptcli load-gpt2: OpenAI's GPT-2, and every model of its kind, into a checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.checkpoints.layout import ROOT
from gptcli.cli import next_steps, options, render
from gptcli.errors import GptcliError
from gptcli.model.cost import parameter_count

if TYPE_CHECKING:
    from gptcli.checkpoints.formats.convert import Converted

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
        str | None,
        typer.Option("--revision", help="A commit, branch or tag of the repository (default: pinned; --repo: main)."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The checkpoint (default: checkpoints/gpt2-SIZE).")] = None,
    dtype: options.FileDtype = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write GPT-2 weights as a checkpoint, from the hub or from files that you have."""
    given = [name for name, value in (("--size", size), ("--from", source), ("--repo", repo)) if value is not None]
    if len(given) > 1:
        raise GptcliError(f"{' and '.join(given)} name two sources.", "Give one of them.")
    if source is not None and revision is not None:
        raise GptcliError("--revision is for the hub, but --from names files.", "Leave one of the two out.")

    from gptcli.checkpoints.formats.convert import HUB, convert

    path = out or ROOT / _name(size, source, repo)
    found, at = _on_hub(size, repo, revision)
    done = convert(
        source or f"{HUB}{found}@{at}", path, dtype=dtype, force=force,
        on_download=lambda name, count: render.note(f"Downloading {found}/{name}, {render.human_bytes(count)}"),
        bar=_bar(),
    )  # fmt: skip
    for line in done.notes:
        render.note(line)
    render.print_text(_summary(done, dtype))
    next_steps.suggest_generate(path)


def _name(size: str | None, source: Path | None, repo: str | None) -> str:
    if repo is not None:
        return repo.rstrip("/").rpartition("/")[2]
    if source is None:
        return f"gpt2-{size or 'small'}"
    resolved = source.resolve()
    if resolved.is_dir():
        return resolved.name
    return resolved.parent.name if resolved.stem in _PLAIN_NAMES else resolved.stem


def _on_hub(size: str | None, repo: str | None, revision: str | None) -> tuple[str, str]:
    """The repository and the revision."""
    from gptcli.checkpoints.formats import hub

    name, pinned = (repo, "main") if repo is not None else hub.pinned(size or "small")
    return name, revision or pinned


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


def _summary(done: "Converted", dtype: str) -> str:
    size = render.human_bytes(done.file.stat().st_size)
    tokenizer = "no tokenizer" if done.tokenizer == "none" else f"{done.tokenizer} tokenizer"
    parameters = parameter_count(done.config)
    return f"{done.path}: {parameters:,} parameters from {done.origin}, {dtype}, {tokenizer}, {size}"
