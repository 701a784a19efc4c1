"""gptcli plot on runs that gptcli train wrote, and on what it could not have written."""

import json
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

from gptcli.training.loss_plots import text_chart


def run(name: str, losses: list[tuple[float, float | None]]) -> Path:
    path = tiny_checkpoint(Path(name))
    rows = [
        {"step": 10 * n, "tokens_seen": 640 * n, "train_loss": train, "val_loss": val}
        for n, (train, val) in enumerate(losses)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_runs_are_drawn_over_one_another(gptcli: Any) -> None:
    run("first", [(4.0, 4.2), (2.0, 3.0), (1.0, 3.5)])
    run("second", [(4.0, None), (2.5, None)])
    with (Path("first") / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 30, "tok')  # cut while it was written
    result = gptcli("plot", "first", "second")
    assert result.code == 0, result.err
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    assert "a  first: best 3.000 at step 10, last 3.500 at step 20" in result.out
    assert "b  second: best 2.500 at step 10, last 2.500 at step 10" in result.out
    assert "The picture is plot.png" in result.err
    gptcli("plot", "first").assert_user_error("plot.png exists already", "--force")
    assert gptcli("plot", "first", "--force").code == 0


def test_an_evaluation_before_the_first_step_is_named_so(gptcli: Any) -> None:
    path = run("tuned", [(1.0, 1.5), (0.5, 2.0)])
    metrics = path / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8").replace('"step": 0,', '"step": -1,'), encoding="utf-8")
    assert "tuned: best 1.500 before the first step, last 2.000 at step 10" in gptcli("plot", "tuned").out


def test_a_real_run_can_be_drawn(gptcli: Any, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("the cat sat on the mat. " * 20, encoding="utf-8")
    shape = ("--emb-dim", 8, "--n-heads", 1, "--n-layers", 1, "--context-length", 8, "--tokenizer", "char")
    assert gptcli("train", "story.txt", *shape, "--max-steps", 2, "-q").code == 0
    result = gptcli("plot", "story", "--out", "a.png")
    assert result.code == 0, result.err
    assert "a  story: best" in result.out


def test_the_chart_has_every_point_where_it_belongs() -> None:
    rows = [{"tokens_seen": t, "train_loss": 9.0, "val_loss": loss} for t, loss in ((0, 4.0), (50, 3.0), (100, 2.0))]
    lines = text_chart({"one": rows}, width=5, height=3)
    assert lines[:3] == ["  4.000 |a    ", "  3.000 |  a  ", "  2.000 |    a"]
    assert lines[-1].endswith("100 tokens")
    flat = [
        {"tokens_seen": 0, "train_loss": 1.0, "val_loss": None},
        {"tokens_seen": 8, "train_loss": 1.0, "val_loss": None},
    ]
    assert text_chart({"flat": flat}, width=5, height=3)[0] == "  1.000 |a   a"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("metrics.jsonl", "No such file")),
        ("", ("no row yet",)),
        ("{}\n", ("line 1", "not a row")),
        ('{"step": 0, "tokens_seen": 1, "train_loss": NaN, "val_loss": null}\n', ("line 1", "not finite")),
        ("losses\n", ("line 1",)),
    ],
)
def test_metrics_that_cannot_be_drawn(gptcli: Any, content: str | None, words: tuple[str, ...]) -> None:
    path = tiny_checkpoint(Path("run"))
    if content is not None:
        (path / "metrics.jsonl").write_text(content, encoding="utf-8")
    gptcli("plot", "run").assert_user_error(*words)
    gptcli("plot", "nowhere").assert_user_error("nowhere")
    assert not Path("plot.png").exists()


@pytest.mark.parametrize("width", [40, 80])
def test_the_chart_fits_the_terminal(gptcli: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    run("a-run-with-quite-a-long-name-in-2026", [(4.0, 4.2), (2.0, 3.0), (1.0, 3.5)])
    for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    result = gptcli("plot", "a-run-with-quite-a-long-name-in-2026")
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines())) <= width
    assert "best 3.000 at step 10" in " ".join(result.out.split())
