"""Pictures: their kind by their suffix, no markup, no backend from outside, and the same bytes each time."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import GptcliError
from gptcli.inspection import pictures
from gptcli.training import loss_plots

ROWS = [{"step": n, "tokens_seen": 100 * n, "train_loss": 4.0 - n, "val_loss": 4.1 - n} for n in range(3)]
BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "jpg": b"\xff\xd8\xff", "JPEG": b"\xff\xd8\xff"}


@pytest.mark.parametrize("suffix", BEGINNINGS)
def test_the_suffix_decides_and_the_bytes_are_the_same(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for file in (first, second):
        loss_plots.draw_runs({"run $x^2$": ROWS, "a_b \\frac{1}": ROWS}, file)
    assert first.read_bytes().startswith(BEGINNINGS[suffix])
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("unit", ["nats a token", "nats a pair", "nats a text"])
def test_the_axis_of_a_loss_has_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "save", lambda figure, file, kind: drawn.append(figure))
    loss_plots.draw_losses(ROWS, 10, tmp_path / "a.png", "run", unit)
    loss_plots.draw_runs({"run": ROWS}, tmp_path / "b.png", unit=unit)
    assert [figure.axes[0].get_ylabel() for figure in drawn] == [f"cross-entropy ({unit})"] * 2


def test_the_best_evaluation_may_be_the_one_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "save", lambda figure, file, kind: drawn.append(figure))
    rows = [{"step": n, "tokens_seen": n + 1, "train_loss": 1.0, "val_loss": 1.5 + n} for n in (-1, 0)]
    loss_plots.draw_losses(rows, 10, tmp_path / "a.png", "run")
    assert "best 0.500 before the first step" in drawn[0].axes[0].get_legend_handles_labels()[1]


@pytest.mark.parametrize("name", ["a.gif", "a", "a.txt"])
def test_another_suffix_is_refused_before_anything_is_drawn(name: str) -> None:
    with pytest.raises(GptcliError, match=r"\.svg, \.pdf or \.jpg"):
        pictures.kind_of(Path(name))


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "TkAgg"])
def test_no_backend_from_outside_is_loaded(tmp_path: Path, backend: str) -> None:
    code = (
        "import os, sys; from pathlib import Path; from gptcli.training import loss_plots\n"
        f"rows = [dict(step=0, tokens_seen=1, train_loss=2.0, val_loss=None)]\n"
        f"loss_plots.draw_losses(rows, 10, Path({str(tmp_path / 'a.png')!r}), 'run $x^2$')\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}\nassert 'matplotlib.pyplot' not in sys.modules"
    )
    import os

    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert (tmp_path / "a.png").exists()


def test_no_markup_is_read_and_no_title_is_wider_than_the_picture() -> None:
    from matplotlib.text import Text

    title = "a title $x^2$ \\frac of many words, " * 8 + "w" * 150
    figure = pictures.new_figure(7.5, 4.5)
    axes = figure.add_subplot()
    axes.set_title(pictures.in_lines(title))
    axes.plot([0, 1], [0, 1], label="$a$")
    axes.legend()
    made = io.BytesIO()
    pictures.save(figure, made)
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())
    assert axes.title.get_window_extent().width <= 0.85 * 7.5 * 150  # inches of the picture, pixels an inch


def test_a_picture_that_fails_says_so_in_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pictures.new_figure(2, 2)
    figure.add_subplot()
    with pytest.raises(GptcliError, match="cannot be written"):
        pictures.save(figure, tmp_path / "nowhere" / "a.png")

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a\nbroken font")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(GptcliError, match="cannot be drawn: ValueError: a broken font"):
        pictures.save(figure, io.BytesIO())


def test_a_picture_that_fails_does_not_fail_its_run(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runs import TINY

    def fail(*_: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(pictures, "save", fail)
    result = gptcli("train", story, *TINY, "--max-steps", 1, "--sample-every", 0, "--out", "run")
    assert result.code == 0
    assert "no fonts" in result.err
    assert Path("run/model.safetensors").exists()
    assert not Path("run/loss.png").exists()


def test_the_inspectors_draw_png_alone(gptcli: Any) -> None:
    from models import tiny_checkpoint

    tiny_checkpoint(Path("run"))
    gptcli("inspect-logits", "hi", "-c", "run", "--png", "a.svg").assert_user_error("a.svg does not end in .png")
