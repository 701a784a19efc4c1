"""gptcli plot: the losses of runs over one another."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.cli import options, render
from gptcli.errors import GptcliError

MOST_RUNS = 26


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs of gptcli train, or their names under checkpoints/.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("plot.png"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Draw the losses of runs over one another, as a PNG and in the terminal.

    Each run is judged by its validation loss, or by its training loss where it has no other.
    """
    if len(runs) > MOST_RUNS:
        raise GptcliError(f"There are {len(runs)} runs, but only {MOST_RUNS} letters.", "Draw fewer at once.")
    if out.exists() and not force:
        raise GptcliError(f"{out} exists already.", "Choose another --out, or replace it with --force.")
    from gptcli import checkpoint_config, curves

    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        path = checkpoint_config.find(run)
        found[str(path) if path.name in found else path.name] = _rows(path)
    try:
        curves.draw_runs(found, out)
    except OSError as error:
        raise GptcliError(f"{out} cannot be written: {error.strerror}.", "Choose another --out.") from error
    for line in curves.text_chart(found):
        render.print_text(line.rstrip())
    for letter, (name, rows) in zip("abcdefghijklmnopqrstuvwxyz", found.items(), strict=False):
        best = min(rows, key=curves.loss_of)
        render.print_text(
            f"{letter}  {name}: best {curves.loss_of(best):.3f} at step {best['step']}, "
            f"last {curves.loss_of(rows[-1]):.3f} at step {rows[-1]['step']}"
        )
    render.note(f"The picture is {out}.")


def _rows(run: Path) -> list[dict[str, Any]]:
    import json

    file = run / "metrics.jsonl"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise GptcliError(
            f"{file} cannot be read: {error.strerror}.", "Only what gptcli train has written can be drawn."
        ) from error
    rows = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):  # a run that was cut short while it wrote
            break
        try:
            row = json.loads(line)
            losses = [float(row[name]) for name in ("step", "tokens_seen", "train_loss")]
            losses += [] if row["val_loss"] is None else [float(row["val_loss"])]
            if not all(map(math.isfinite, losses)):
                raise ValueError("a loss is not finite")
        except (ValueError, KeyError, TypeError) as error:
            raise GptcliError(f"{file}, line {number}: not a row of metrics: {error}.", "Remove the line.") from error
        rows.append(row)
    if not rows:
        raise GptcliError(f"{file} has no row yet.", "The first one comes with the first evaluation of the run.")
    return rows
