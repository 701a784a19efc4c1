"""One picture of a classifier's scores: the confusion matrix, and reliability before and after calibration."""

from pathlib import Path
from typing import Any

from gptcli.evaluation.classification import LabelScores
from gptcli.inference.calibration import Calibration
from gptcli.inspection import pictures

MOST_NUMBERS = 12  # labels up to which every cell of the matrix shows its number
NAME = 24  # characters of a label


def draw(scores: LabelScores, file: Path, title: str) -> None:
    """Draw ``scores`` into ``file``, of the kind that its suffix says."""
    size = min(9.0, 3.2 + 0.45 * len(scores.labels))
    figure = pictures.new_figure(size + 5.4, max(4.6, size))
    matrix, reliability = figure.subplots(1, 2, width_ratios=[size, 4.6])
    _draw_matrix(matrix, scores)
    reliability.plot([0, 1], [0, 1], "--", color="#a3a3a3", linewidth=1, label="perfectly calibrated")
    if scores.after is None:
        _draw_reliability(reliability, scores.before, "#1f5fa8", "not calibrated")
    else:
        _draw_reliability(reliability, scores.before, "#c2410c", "before")
        _draw_reliability(reliability, scores.after, "#1f5fa8", f"at temperature {scores.after.temperature:.2f}")
    reliability.set_xlabel("probability of the likeliest label")
    reliability.set_ylabel("share of rows where it is right")
    reliability.set_title("Calibration of its probabilities")
    reliability.grid(alpha=0.25)
    reliability.spines[["right", "top"]].set_visible(False)
    # Below the axes: no place inside them is free of lines for every classifier.
    reliability.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    figure.suptitle(pictures.in_lines(title, 100))
    pictures.save(figure, file, pictures.kind_of(file))


def _draw_matrix(axes: Any, scores: LabelScores) -> None:
    shares = [[count / max(1, sum(row)) for count in row] for row in scores.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [label if len(label) <= NAME else label[: NAME - 1] + "…" for label in scores.labels]
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right")
    axes.set_yticks(places, names)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("actual label")
    axes.set_title("Rows by actual and predicted label")
    if len(names) <= MOST_NUMBERS:
        for row in places:
            for column in places:
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, f"{scores.confusion[row][column]:,}", ha="center", va="center", color=colour)


def _draw_reliability(axes: Any, calibration: Calibration, colour: str, name: str) -> None:
    sure, right, counts = zip(*calibration.bins, strict=True)
    axes.plot(sure, right, "-", color=colour, label=f"{name}: calibration error {calibration.error:.3f}")
    axes.scatter(sure, right, s=[12 + 140 * count / max(counts) for count in counts], color=colour, alpha=0.6)
