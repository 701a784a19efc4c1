"""Plots as PNG bytes: dark on white, one perceptually uniform colour scale, units named."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.inspection.pictures import in_lines, new_figure, save

Array = NDArray[np.floating[Any]]
INK, PALE = "#1b1b1f", "#8a8a93"
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#c2410c", "#15803d", "#9ca3af"
MOST_LABELS = 64
TICKS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]


def attention_map(weights: Array, labels: Sequence[str], title: str) -> bytes:
    """One attention map (T, T): the attending token on the y axis, the attended token on the x axis."""
    length = len(labels)
    side = min(max(3.6, 0.13 * min(length, MOST_LABELS) + 2), 11)
    figure = new_figure(side + 1.4, side + 0.4)
    axes = figure.add_subplot()
    shown = np.where(np.tril(np.ones_like(weights, dtype=bool)), weights, np.nan)
    image = axes.imshow(shown, cmap="magma_r", norm=_root_scale(), interpolation="nearest")
    places, names = _ticks(labels)
    size = 9 if length <= 20 else 7.5 if length <= 40 else 6
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(length=2)
    axes.set_xlabel("what it attends to")
    axes.set_ylabel("token")
    axes.set_title(in_lines(title))
    axes.spines[["top", "right"]].set_visible(False)
    _colour_bar(figure, image, axes)
    return _png(figure)


def head_grid(maps: Array, title: str) -> bytes:
    """Attention maps (L, H, n, n) of all heads in a grid: layers from top to bottom, heads from left to right."""
    layers, heads, size, _ = maps.shape
    gap = max(1, round(size / 8))
    canvas = np.full((layers * (size + gap) - gap, heads * (size + gap) - gap), np.nan)
    lower = np.tril(np.ones((size, size), dtype=bool))
    for layer in range(layers):
        for head in range(heads):
            top, left = layer * (size + gap), head * (size + gap)
            canvas[top : top + size, left : left + size] = np.where(lower, maps[layer, head], np.nan)
    inch = max(0.36, min(1.3, 8.6 / max(layers, heads)))
    figure = new_figure(max(4.2, heads * inch + 1.7), max(2.6, layers * inch + 1.0))
    axes = figure.add_subplot()
    image = axes.imshow(canvas, cmap="magma_r", norm=_root_scale(), interpolation="nearest")
    axes.set_xticks([h * (size + gap) + size / 2 - 0.5 for h in range(heads)], [str(h) for h in range(heads)])
    axes.set_yticks([n * (size + gap) + size / 2 - 0.5 for n in range(layers)], [str(n) for n in range(layers)])
    axes.tick_params(length=0)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_title(in_lines(title))
    axes.spines[:].set_visible(False)
    _colour_bar(figure, image, axes)
    return _png(figure)


def surprise(labels: Sequence[str], bits: Sequence[float], title: str) -> bytes:
    """Bars of the surprise (-log2 p, in bits) of each token but the first."""
    length = len(labels)
    figure = new_figure(min(max(4.5, 0.15 * min(length, MOST_LABELS) + 1.5), 11), 3.6)
    axes = figure.add_subplot()
    axes.bar(range(1, length), bits[1:], color=BLUE, width=0.8)
    places, names = _ticks(labels)
    axes.set_xticks(places, names, rotation=90, fontsize=9 if length <= 30 else 6.5)
    axes.set_ylabel("surprise (bits)")
    axes.set_xlim(-0.6, length - 0.4)
    axes.set_title(in_lines(title))
    _plain(axes)
    return _png(figure)


def lens(labels: Sequence[str], layers: Sequence[str], words: Sequence[Sequence[str]], shares: Array) -> bytes:
    """The logit lens: words[layer][position] on a map of their probabilities (layers, T), for the last 32 tokens."""
    first = max(0, len(labels) - 32)
    labels, shares, words = labels[first:], shares[:, first:], [row[first:] for row in words]
    figure = new_figure(1.9 + 0.62 * max(4, len(labels)), 1.9 + 0.3 * len(layers))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="magma_r", vmin=0, vmax=1, aspect="auto", origin="lower")
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            dark = shares[row, column] > 0.45
            text = _drawable(word if len(word) <= 8 else word[:7] + "…")
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else INK,
                parse_math=False,
            )
    axes.set_xticks(range(len(labels)), [_drawable(name) for name in labels], rotation=90, fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.set_xlabel("after this token")
    axes.set_title("The prediction of each layer")
    figure.colorbar(image, ax=axes, label="probability", shrink=0.8, pad=0.01)
    return _png(figure)


def scatter(points: Array, labels: Sequence[str], given: Sequence[bool], explained: tuple[float, float]) -> bytes:
    """A scatter plot of points (N, 2): the given words, and their neighbours in a paler colour."""
    figure = new_figure(7, 5.4)
    axes = figure.add_subplot()
    for chosen, colour, name in ((True, BLUE, "given"), (False, GREY, "nearest neighbours")):
        group = [n for n, one in enumerate(given) if one == chosen]
        if group:
            axes.scatter(points[group, 0], points[group, 1], s=36 if chosen else 16, color=colour, label=name)
    names = [
        axes.annotate(
            _drawable(name),
            (x, y),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=10 if one else 7.5,
            color=INK if one else PALE,
            parse_math=False,
        )
        for (x, y), name, one in zip(points, labels, given, strict=True)
    ]
    axes.margins(0.12)
    axes.set_xlabel(f"first principal component ({explained[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({explained[1]:.0%})")
    axes.set_title("Token vectors in two dimensions")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    _hide_overlaps(figure, names)
    return _png(figure)


def lines(layers: Sequence[str], series: Mapping[str, Sequence[float]], y_label: str, title: str) -> bytes:
    """One line per name over layers, on a log scale; dashed if the name contains "without", one colour per `_kind`."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    colours = {name: (BLUE, ORANGE, GREEN)[n] for n, name in enumerate(dict.fromkeys(map(_kind, series)))}
    for name, values in series.items():
        style = "--" if "without" in name else "-"
        axes.plot(range(len(layers)), values, style, marker="o", markersize=4, color=colours[_kind(name)], label=name)
    axes.set_yscale("log")
    values = [value for line in series.values() for value in line]
    narrow = max(values) < 20 * min(values)  # a log axis would label less than two powers of ten
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if narrow else "")
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlabel("layer")
    axes.set_ylabel(y_label)
    axes.set_title(in_lines(title))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _plain(axes)
    return _png(figure)


def contributions(stages: Sequence[str], values: Sequence[float], title: str) -> bytes:
    """Horizontal bars, in order from the top: the contribution of each stage to one logit."""
    figure = new_figure(6.5, 1.3 + 0.22 * len(stages))
    axes = figure.add_subplot()
    axes.barh(range(len(stages)), values, color=[BLUE if value >= 0 else ORANGE for value in values], height=0.75)
    axes.set_yticks(range(len(stages)), stages, fontsize=8)
    axes.set_ylim(len(stages) - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("direct contribution to the logit (blue raises it, orange lowers it)")
    axes.set_title(in_lines(title))
    _plain(axes)
    return _png(figure)


def _kind(name: str) -> str:
    return name.partition(",")[0]


def _hide_overlaps(figure: Any, names: Sequence[Any]) -> None:
    """Hide each name that overlaps an earlier visible one."""
    figure.canvas.draw()
    shown: list[Any] = []
    for name in names:
        box = name.get_window_extent()
        name.set_visible(not any(box.overlaps(other) for other in shown))
        if name.get_visible():
            shown.append(box)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    save(figure, buffer)
    return buffer.getvalue()


def _root_scale() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=1)


def _colour_bar(figure: Any, image: Any, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, label="attention weight (a share of 1)", ticks=TICKS, shrink=0.7, pad=0.02)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in TICKS])


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Tick positions and labels: every token up to MOST_LABELS, else every n-th one with its number."""
    step = math.ceil(len(labels) / MOST_LABELS)
    places = list(range(0, len(labels), step))
    cut = [name if len(name) <= 14 else name[:13] + "…" for name in labels]
    return places, [_drawable(cut[n] if step == 1 else f"{n} {cut[n]}") for n in places]


def _drawable(text: str) -> str:
    """``text`` with escapes for characters that the font has no glyph for."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    return "".join(c if font.get_char_index(ord(c)) else f"\\u{ord(c):04x}" for c in text)
