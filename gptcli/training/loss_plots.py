"""The losses in metrics.jsonl as loss.png, and the curves of several runs in one PNG or text chart."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptcli.checkpoints import layout
from gptcli.errors import GptcliError
from gptcli.inspection import pictures

# The metrics that `draw_runs` can plot besides the loss: field of metrics.jsonl -> label of the axis.
METRICS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "mfu": "share of the device's peak",
    "memory": "peak memory (bytes)",
}
PER_TOKEN = "nats a token"
TRAIN_COLOUR, VALIDATION_COLOUR = "#1f5fa8", "#c2410c"


FEW = 8  # values that a chart in the terminal shows from the first on
START = 0.25  # of the fall of the loss is left where the chart in the terminal begins


def unit_of(run: Path) -> str:
    """The unit of a run's losses: nats a token, a text (of a classifier) or a pair (of preferences)."""
    try:
        labels = layout.read_config(run)[0].labels
        settings = tomllib.loads((run / layout.SETTINGS).read_text(encoding="utf-8"))
    except (GptcliError, OSError, ValueError):
        return PER_TOKEN
    return "nats a pair" if settings.get("method") == "dpo" else "nats a text" if labels else PER_TOKEN


def when(step: int) -> str:
    """When an evaluation was, that of fine-tuning before its first step (-1) included."""
    return f"at step {step}" if step >= 0 else "before the first step"


def draw_losses(
    rows: Sequence[Mapping[str, Any]], tokens_per_epoch: int, file: Path, title: str, unit: str = PER_TOKEN
) -> None:
    """Plot train and validation loss over epochs, with tokens seen on a second axis.

    Args:
        rows: of metrics.jsonl, at least one.
        tokens_per_epoch: tokens that one epoch trains on.
        file: the picture to write, of the kind that its suffix says.
        title: over the picture.
        unit: of the losses.
    """
    figure = pictures.new_figure(7.5, 4.5)
    from matplotlib.ticker import EngFormatter

    axes = figure.add_subplot()
    epochs = [row["tokens_seen"] / tokens_per_epoch for row in rows]
    _line(axes, epochs, [row["train_loss"] for row in rows], TRAIN_COLOUR, "-", "training")
    if all(row["val_loss"] is not None for row in rows):
        _line(axes, epochs, [row["val_loss"] for row in rows], VALIDATION_COLOUR, "--", "validation")
        best = min(range(len(rows)), key=lambda number: rows[number]["val_loss"])
        label = f"best {rows[best]['val_loss']:.3f} {when(rows[best]['step'])}"
        axes.plot(epochs[best], rows[best]["val_loss"], "*", color=VALIDATION_COLOUR, markersize=12, label=label)
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"cross-entropy ({unit})")
    axes.set_title(pictures.in_lines(f"Loss of {title}"))
    axes.grid(alpha=0.25)
    axes.spines[["right"]].set_visible(False)

    def tokens_of(epoch: Any) -> Any:
        return epoch * tokens_per_epoch

    def epochs_of(tokens: Any) -> Any:
        return tokens / tokens_per_epoch

    tokens_axis = axes.secondary_xaxis("top", functions=(tokens_of, epochs_of))
    tokens_axis.set_xlabel("tokens seen")
    tokens_axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False)
    pictures.save(figure, file, pictures.kind_of(file))


def loss_of(row: Mapping[str, Any]) -> float:
    """The loss by which runs are compared: ``val_loss``, or ``train_loss`` where that is None."""
    found: float = row["train_loss"] if row["val_loss"] is None else row["val_loss"]
    return found


def value_of(row: Mapping[str, Any], metric: str = "loss") -> float:
    """The value of a row that is plotted: `loss_of`, or the field ``metric``."""
    return loss_of(row) if metric == "loss" else float(row[metric])


def in_bits_a_byte(rows: Sequence[Mapping[str, Any]], train: float, validation: float) -> list[dict[str, Any]]:
    """``rows`` with losses in bits a byte, for parts of which a token stands for so many bytes of text."""
    return [
        {**row, "train_loss": row["train_loss"] / math.log(2) / train}
        | {"val_loss": None if row["val_loss"] is None else row["val_loss"] / math.log(2) / validation}
        for row in rows
    ]


def draw_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], file: Path, metric: str = "loss", unit: str = PER_TOKEN
) -> None:
    """Plot the losses of several runs, or another metric, over the tokens that each has trained on.

    Args:
        runs: the rows of each run's metrics.jsonl, at least one each, by the run's name.
        file: the picture to write, of the kind that its suffix says.
        metric: "loss", or one of METRICS.
        unit: of the losses.
    """
    figure = pictures.new_figure(7.5, 4.5)
    from matplotlib.ticker import EngFormatter

    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(runs.items()):
        tokens, colour = [row["tokens_seen"] for row in rows], f"C{number % 10}"
        values = [value_of(row, metric) for row in rows]
        if metric == "loss":
            axes.plot(tokens, [row["train_loss"] for row in rows], ":", color=colour, linewidth=1.2)
        label = pictures.in_lines(f"{name} (last {values[-1]:.4g})", 40)
        axes.plot(tokens, values, "-", color=colour, linewidth=2, label=label)
    axes.set_xlabel("tokens seen")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel(f"cross-entropy ({unit})" if metric == "loss" else METRICS[metric])
    if metric == "loss":
        axes.set_title("Validation loss (dotted: training)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    pictures.save(figure, file, pictures.kind_of(file))


def text_chart(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], width: int = 60, height: int = 12, metric: str = "loss"
) -> list[str]:
    """The chart of `draw_runs` as lines of text; the points of a run are one letter, from a on.

    Args:
        runs, metric: as `draw_runs` takes them.
        width, height: of the area inside the axes, in characters.
    """
    points = {name: [(row["tokens_seen"], value_of(row, metric)) for row in rows] for name, rows in runs.items()}
    if metric == "loss":
        points = {name: row[_interesting([value for _, value in row]) :] for name, row in points.items()}
    first = min(row[0][0] for row in points.values())
    last = max(tokens for row in points.values() for tokens, _ in row)
    values = [value for row in points.values() for _, value in row]
    low, high = min(values), max(values)
    grid = [[" "] * width for _ in range(height)]
    for letter, row in zip(map(chr, range(ord("a"), ord("z") + 1)), points.values(), strict=False):
        for tokens, value in row:
            down = round((high - value) / (high - low or 1) * (height - 1))
            grid[down][round((tokens - first) / (last - first or 1) * (width - 1))] = letter
    form = "7.3f" if metric == "loss" else "9.3g"
    scale = [format(high - (high - low) * down / (height - 1), form) for down in range(height)]
    lines = [f"{mark} |{''.join(row)}" for mark, row in zip(scale, grid, strict=True)]
    margin = len(scale[0]) + 1
    ticks = f"{first:,}".ljust(width // 2) + f"{last:,} tokens".rjust(width - width // 2)
    return [*lines, " " * margin + "+" + "-" * width, " " * (margin + 1) + ticks]


def _interesting(values: Sequence[float]) -> int:
    """The first place where at most `START` of the fall from the first value to the lowest is left; 0 of few values."""
    if len(values) < FEW:
        return 0
    limit = min(values) + START * (values[0] - min(values))
    return next(place for place, value in enumerate(values) if value <= limit)


def _line(axes: Any, x: Sequence[float], y: Sequence[float], colour: str, style: str, name: str) -> None:
    axes.plot(x, y, style, color=colour, linewidth=2, label=f"{name} (last {y[-1]:.3f})", marker="o", markersize=3)
