"""gptcli plot: the losses of runs over one another, or another of their metrics."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.cli import options, render
from gptcli.errors import GptcliError, nearest

MOST_RUNS = 26


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs of gptcli train, or their names under checkpoints/.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: a .png, .svg, .pdf or .jpg.")] = Path(
        "plot.png"
    ),
    metric: Annotated[
        str, typer.Option("--metric", help="loss, learning_rate, grad_norm, tokens_per_second, mfu or memory.")
    ] = "loss",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Draw the losses of several runs in one picture and in the terminal.

    Each run is judged by its validation loss, or by its training loss where it has no other. --metric draws another
    column: mfu is the share of the device's peak rate that training used.
    """
    if len(runs) > MOST_RUNS:
        raise GptcliError(f"There are {len(runs)} runs, but only {MOST_RUNS} letters.", "Draw fewer at once.")
    from gptcli.checkpoints import layout, overwrite
    from gptcli.inspection import pictures
    from gptcli.training import loss_plots

    kind = pictures.kind_of(out)
    overwrite.check_file(out, overwrite.RESULTS[kind][0][0], f"a {kind.upper()} picture", force)

    if metric != "loss" and metric not in loss_plots.METRICS:
        raise GptcliError(f"There is no --metric {metric!r}.", nearest(metric, ["loss", *loss_plots.METRICS]))
    paths: dict[str, Path] = {}
    for run in runs:
        path = layout.find(run)
        paths[str(path) if path.name in paths else path.name] = path
    found = {name: _rows(path, metric) for name, path in paths.items()}
    units = {name: loss_plots.unit_of(path) for name, path in paths.items()}
    unit = ", ".join(sorted(set(units.values())))
    if metric == "loss" and len(set(units.values())) > 1:
        kinds = ", ".join(f"{name} in {each}" for name, each in units.items())
        render.warn(f"The runs have losses of different kinds, which cannot be compared: {kinds}.")
    elif (metric, unit) == ("loss", loss_plots.PER_TOKEN) and len({_tokenizer(path) for path in paths.values()}) > 1:
        ratios = {name: _bytes_per_token(path) for name, path in paths.items()}
        if all(ratios.values()):
            unit = "bits a byte"
            found = {name: loss_plots.in_bits_a_byte(rows, *ratios[name]) for name, rows in found.items()}
        else:
            render.warn(
                "The runs have different tokenizers, and not all say how many bytes a token of theirs stands for: "
                "their losses a token cannot be compared."
            )
    if metric == "loss":
        _warn_of_other_texts(paths)
    loss_plots.draw_runs(found, out, metric, unit)
    if unit == "bits a byte":
        render.note("The runs have different tokenizers: losses are in bits a byte of text.")
    width = max(10, min(60, render.stdout_console().width - 12))  # beside the scale
    for line in loss_plots.text_chart(found, width, metric=metric):
        render.print_text(line.rstrip())
    for letter, (name, rows) in zip("abcdefghijklmnopqrstuvwxyz", found.items(), strict=False):
        ranked = sorted(((loss_plots.value_of(row, metric), row["step"]) for row in rows), key=lambda pair: pair[0])
        marks = {"best": ranked[0]} if metric == "loss" else {"lowest": ranked[0], "highest": ranked[-1]}
        marks["last"] = loss_plots.value_of(rows[-1], metric), rows[-1]["step"]
        form = ".3f" if metric == "loss" else ".4g"
        told = (f"{mark} {format(value, form)} {loss_plots.when(step)}" for mark, (value, step) in marks.items())
        of_training = " (training loss: nothing was validated)" if metric == "loss" and _is_unvalidated(rows) else ""
        render.print_line(f"{letter}  {name}: {', '.join(told)}{of_training}")
    render.note(f"The picture is {out}.")


def _is_unvalidated(rows: list[dict[str, Any]]) -> bool:
    return all(row["val_loss"] is None for row in rows)


def _warn_of_other_texts(runs: dict[str, Path]) -> None:
    """Say where runs were validated on different texts, as far as their records name these."""
    from gptcli.data import text_record

    validated: dict[str, list[str]] = {}
    for name, path in runs.items():
        record = text_record.read(path)
        if record is not None and record.documents:
            validated.setdefault(record.validation.sha256 if record.validation else "", []).append(name)
    if len(validated) > 1:
        told = "; ".join(", ".join(names) for names in validated.values())
        render.warn(f"The runs were validated on different texts or parts, so that losses do not compare: {told}.")


def _tokenizer(run: Path) -> str:
    """The fingerprint of a run's tokenizer; empty where it is not known."""
    from gptcli.checkpoints import layout

    try:
        return str(layout.read_config(run)[1]["tokenizer"]["fingerprint"])
    except (GptcliError, KeyError, TypeError):
        return ""


def _bytes_per_token(run: Path) -> tuple[float, ...]:
    """Of the training and the validation part; empty where it is not known."""
    from gptcli.data import text_record

    record = text_record.read(run)
    if record is None or record.train.bytes_per_token is None:
        return ()
    held_out = record.validation and record.validation.bytes_per_token
    return record.train.bytes_per_token, held_out or record.train.bytes_per_token


def _rows(run: Path, metric: str) -> list[dict[str, Any]]:
    """The rows of a run that have ``metric``."""
    import json

    file = run / "metrics.jsonl"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise GptcliError(
            f"{file} cannot be read: {error.strerror}.", "Only what gptcli train has written can be drawn."
        ) from error
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):  # a run that was cut short has no newline at its end
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
    measured = rows if metric == "loss" else [row for row in rows if row.get(metric) is not None]
    if not measured:
        raise GptcliError(f"{file} says nothing of {metric}.", "The run is of an older version: draw its loss.")
    return measured
