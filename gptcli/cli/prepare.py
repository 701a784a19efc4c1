"""gptcli prepare: texts of any size in, token shards out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli import next_steps, options, render
from gptcli.config.text import PrepareConfig, TextConfig
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.data.prepare import Preparation

WORTH_A_RATE = 10_000_000  # bytes; less is over before the tables are read


def prepare(
    preparing: PrepareConfig,
    text: TextConfig,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="Files (.gz and .zst too), folders (.txt and .md), globs, - for stdin."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to make.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of other texts or settings.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Encode texts of any size into token shards, which gptcli train reads by memory map.

    Stopped or killed, the same command goes on where it was; given again, it checks every shard's checksum. Prints the
    folder on stdout. Texts are separated by end of text, as in training.
    """
    if not texts:
        raise GptcliError(
            "There is no text to prepare.", "Give files, folders, or - for stdin; see gptcli prepare --help."
        )
    if out is None:
        raise GptcliError("There is no folder to put the tokens into.", "Give one with --out FOLDER.")
    from gptcli.checkpoints import layout
    from gptcli.data import rows
    from gptcli.data.prepare import SHARD_TOKENS, Preparation, PreparationRequest
    from gptcli.tokenizers import bpe_training
    from gptcli.tokenizers.choice import choose

    rows.refuse_rows(texts, preparing.field)
    chosen = choose(preparing.tokenizer, layout.ROOT)
    if chosen.vocab_size is not None:
        bpe_training.library()
    tokens = SHARD_TOKENS if preparing.shard_tokens is None else preparing.shard_tokens
    request = PreparationRequest(
        tuple(texts), chosen.kind, text.encoding, text.errors, preparing.field, text.allow_special, tokens,
        chosen.vocab_size, preparing.train_share,
    )  # fmt: skip
    run(Preparation(out, request, chosen.tokenizer, force=force), preparing.workers)
    next_steps.suggest("Train on it", "train", out)
    render.print_text(str(out))


def run(preparation: "Preparation", workers: int | None = None) -> None:
    """Do a preparation under a bar, and say what came of it."""
    import time

    from gptcli.data import token_shards
    from gptcli.device.resources import usable_cpus

    out, started = preparation.out, time.perf_counter()
    if preparation.state == "finished":
        render.note(f"{out} is ready and whole: every checksum is right.")
        return
    if preparation.state == "unfinished":
        render.note(f"Going on with {out} after {preparation.shards_done} whole shards.")
    total = preparation.bytes * preparation.passes
    with render.progress(total or None, "B", out.name, scale=True) as bar:
        try:
            preparation.run(workers or usable_cpus(), lambda count: bar.update(count - bar.n))
        except KeyboardInterrupt:
            render.warn(f"Stopped. The same command continues after the last whole shard in {out}.")
            raise typer.Exit(130) from None
    totals = token_shards.read_manifest(out)["totals"]
    seconds = time.perf_counter() - started
    speed = f", {render.human_bytes(preparation.bytes / seconds)}/s" if preparation.bytes > WORTH_A_RATE else ""
    render.note(
        f"{totals['characters']:,} characters in {totals['documents']:,} text{'s' * (totals['documents'] != 1)}: "
        f"{totals['tokens']:,} tokens in {totals['shards']:,} shard{'s' * (totals['shards'] != 1)} "
        f"({render.human_time(seconds)}{speed})."
    )
