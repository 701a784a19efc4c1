"""Two plots of an evaluation: loss by position in the context, and calibration (reliability)."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptcli.evaluation.perplexity import CALIBRATION_BINS, Measured
from gptcli.inspection import pictures

COLOURS = ("#1f5fa8", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#525252")


def draw(results: Mapping[str, Measured], file: Path, title: str) -> None:
    """Plot loss by position in the context, and reliability, of one or several models.

    Args:
        results: name -> result of `perplexity.measure` with ``for_plot``.
        file: the picture to write, of the kind that its suffix says.
        title: over the picture.
    """
    figure = pictures.new_figure(11, 4.6)
    loss, reliability = figure.subplots(1, 2)
    for number, (name, measured) in enumerate(results.items()):
        colour = COLOURS[number % len(COLOURS)]
        _draw_loss(loss, measured, colour, name)
        _draw_reliability(reliability, measured, colour, name)
    loss.set_xscale("log", base=2)
    loss.xaxis.set_major_formatter("{x:,.0f}")
    loss.set_xlabel("tokens of context")
    loss.set_ylabel("negative log-likelihood (nats a token)")
    loss.set_title("Loss by position in the context")
    reliability.plot([0, 1], [0, 1], "--", color="#a3a3a3", linewidth=1, label="perfectly calibrated")
    reliability.set_xlabel("probability of the likeliest token")
    reliability.set_ylabel("share of times that this token followed")
    reliability.set_title("Calibration of its probabilities")
    for axes in (loss, reliability):
        axes.grid(alpha=0.25)
        axes.spines[["right", "top"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(pictures.in_lines(title, 100))
    pictures.save(figure, file, pictures.kind_of(file))


def loss_by_position(measured: Measured) -> list[tuple[int, float, int]]:
    """(tokens of context at a bin's geometric middle, mean nats, tokens); each bin is √2 times as wide as the last."""
    counts, nats = measured.position_counts, measured.position_nats
    edges = sorted({round(2 ** (half / 2)) for half in range(2 * len(counts).bit_length() + 1)})
    edges = [edge for edge in edges if edge <= len(counts)] + [len(counts) + 1]
    points = []
    for low, high in pairwise(edges):
        count = int(counts[low - 1 : high - 1].sum())
        if count:
            points.append((round((low * (high - 1)) ** 0.5), float(nats[low - 1 : high - 1].sum()) / count, count))
    return points


def reliability_bins(measured: Measured) -> list[tuple[float, float, int]]:
    """(mean probability of the likeliest token, share of hits, tokens) of every bin that is not empty."""
    return [
        (float(measured.bin_confidence[i] / count), float(measured.bin_hits[i] / count), int(count))
        for i, count in enumerate(measured.bin_counts.tolist()[:CALIBRATION_BINS])
        if count
    ]


def _draw_loss(axes: Any, measured: Measured, colour: str, name: str) -> None:
    points = loss_by_position(measured)
    axes.plot(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        "o-",
        color=colour,
        markersize=4,
        label=pictures.in_lines(name, 40),
    )


def _draw_reliability(axes: Any, measured: Measured, colour: str, name: str) -> None:
    bins = reliability_bins(measured)
    label = pictures.in_lines(f"{name} (expected calibration error {measured.calibration_error():.3f})", 40)
    axes.plot([x for x, _, _ in bins], [y for _, y, _ in bins], "-", color=colour, label=label)
    largest = max(count for _, _, count in bins)
    sizes = [12 + 140 * count / largest for _, _, count in bins]
    axes.scatter([x for x, _, _ in bins], [y for _, y, _ in bins], s=sizes, color=colour, alpha=0.6)
