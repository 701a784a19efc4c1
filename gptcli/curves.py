"""metrics.jsonl -> loss.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAIN_COLOUR, VALIDATION_COLOUR = "#1f5fa8", "#c2410c"


def draw_losses(rows: Sequence[Mapping[str, Any]], tokens_per_epoch: int, file: Path, title: str) -> None:
    """Train and validation loss over epochs, tokens seen on a second axis.

    Args:
        rows: of metrics.jsonl, at least one.
        tokens_per_epoch: tokens that one epoch sees.
        file: the PNG to write.
        title: over the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(7.5, 4.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    epochs = [row["tokens_seen"] / tokens_per_epoch for row in rows]
    _line(axes, epochs, [row["train_loss"] for row in rows], TRAIN_COLOUR, "-", "training")
    if all(row["val_loss"] is not None for row in rows):
        _line(axes, epochs, [row["val_loss"] for row in rows], VALIDATION_COLOUR, "--", "validation")
    axes.set_xlabel("epochs")
    axes.set_ylabel("cross-entropy (nats a token)")
    axes.set_title(f"Loss of {title}")
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
    figure.savefig(file, dpi=150)


def _line(axes: Any, x: Sequence[float], y: Sequence[float], colour: str, style: str, name: str) -> None:
    axes.plot(x, y, style, color=colour, linewidth=2, label=f"{name} (last {y[-1]:.3f})", marker="o", markersize=3)
