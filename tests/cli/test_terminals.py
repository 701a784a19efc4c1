"""What commands print at 40, 80, 140 and 200 columns: no cell is cut, and nothing is wider than the terminal."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint
from rich.cells import cell_len
from rich.console import Console
from runs import TEXT, TINY

from gptcli.cli import heatmap, render, tables, training_view

WIDTHS = (40, 80, 140, 200)
LONG = "a-run-with-a-long-name-2026"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminals")
    for name in ("one", LONG, "run [bold]x[b] $y^2$"):
        tiny_checkpoint(path / "checkpoints" / name, context_length=32)
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def screen(gptcli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The lines of a command on stdout, as on a terminal of so many columns, without colours."""

    def run(width: int, *words: object) -> list[str]:
        monkeypatch.chdir(folder)
        for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
            monkeypatch.setenv(name, value)
        result = gptcli(*words)
        assert result.code == 0, result.err
        text = re.sub(r"\x1b\[[0-9;]*m", "", result.out)
        return [line.rstrip() for line in text.splitlines()]

    return run


COMMANDS = {
    "checkpoints": (LONG, "one", "run [bold]x[b] $y^2$"),
    "checkpoints one": ("model.safetensors", "context_length"),
    f"evaluate text.txt -c one -c {LONG} -q": (LONG, "one", "bits a byte", "less the first", "+0.000000 ± 0.000000"),
    "evaluate text.txt -c one -q": ("perplexity", "character"),
    "count-params": ("124,439,808", "38,597,376", "497.76 MB", "position embedding"),
    "count-params --size gpt3": ("174,604,259,328", "12,288 × 36,864", "3.14e+23"),
    "generate the -c one --steps -n 3 --seed 1 -q": ("likeliest",),
    "tokenize the --scheme char --scheme gpt2 -q": ("50,257",),
    "inspect-gradients the -c one -q": (),
    "inspect-attn the -c one -q": ("attention weight:", " 0.05", " 0.75"),
    "inspect-attn the -c one --layer 0 --head 1 -q": ("attends to", " 0.05", " 0.75"),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_screen_is_whole(screen: Callable[..., list[str]], command: str, width: int) -> None:
    lines = screen(width, *command.split())
    wide = [line for line in lines if cell_len(line) > width and len(line.split()) > 1]
    assert not wide
    # A cut cell ends in an ellipsis; that of a hash in the line to quote does not stand for a cell.
    assert not [line for line in lines if "…" in re.sub(r"[0-9a-f]{12}…", "", line)]
    whole = " ".join(" ".join(lines).split())
    for word in COMMANDS[command]:
        assert word in whole, whole


def table(width: int, columns: Any, rows: Any, spare: int = 0) -> str:
    console = Console(width=width, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(tables.table(console, "A title of some words", columns, rows, "", spare), crop=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def test_a_table_leaves_out_spare_columns_before_it_becomes_records() -> None:
    columns = [("step", "left"), *((f"rank {n}", "left") for n in range(5))]
    rows = [["1", *("'word' 12.3%" for _ in range(5))]]
    assert "rank 4" in table(100, columns, rows, spare=4)
    assert "rank 1" in table(40, columns, rows, spare=4)
    assert "rank 2" not in table(40, columns, rows, spare=4)
    assert table(20, columns, rows, spare=4).count("12.3%") == 5


def test_records_begin_with_the_first_cell_and_leave_out_what_is_empty() -> None:
    columns = [("name", "left"), ("first", "right"), ("second", "right"), ("third", "left")]
    rows = [["alpha", "1,234,567", "", "x"], ["[beta]", "2", "3", "y y"]]
    assert "alpha" in table(80, columns, rows).splitlines()[4]
    assert table(22, columns, rows).splitlines() == [
        "A title of some words", "", "alpha", "  first   1,234,567", "  third   x", "",
        "[beta]", "  first   2", "  second  3", "  third   y y",
    ]  # fmt: skip
    many = table(30, columns, [["n", "1", "2", "3"]] * 11).splitlines()
    assert many[:3] == ["A title of some words", "", "n"] or "first" in many[2]


def test_words_break_between_words_and_nothing_else_does() -> None:
    columns = [("weights", "left"), ("how", "words")]
    rows = [["int8", "one byte a weight, a scale for each output channel"]]
    text = table(40, columns, rows)
    assert max(map(len, text.splitlines())) <= 40
    assert "a weight, a" in text
    assert "channel" in text


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 40, ["one two three"]),
        ("one two three", 8, ["one two", "three"]),
        ("  one two three", 9, ["  one two", "  three"]),
        ("a 0123456789abcdef b", 8, ["a", "0123456789abcdef", "b"]),
        ("first\n\nsecond", 40, ["first", "", "second"]),
        ("日本 語語 x", 5, ["日本", "語語", "x"]),
        ("", 10, [""]),
    ],
)
def test_lines_break_between_words(text: str, width: int, lines: list[str]) -> None:
    assert tables.folded(text, width) == lines


def test_a_command_stays_on_one_line_and_a_sentence_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    render.verbosity.reset()
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    render.note("  gptcli generate 'a prompt' --checkpoint checkpoints/one")
    render.note("Twenty-five characters, and some more words than fit.")
    render.note("Short: gptcli guide speed")
    render.note("Many words that say what comes next: gptcli train --config a-file")
    assert capsys.readouterr().err.splitlines() == [
        "  gptcli generate 'a prompt' --checkpoint checkpoints/one",
        "Twenty-five characters, and",
        "some more words than fit.",
        "Short: gptcli guide speed",
        "Many words that say what comes",
        "next:",
        "gptcli train --config a-file",
    ]


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("coloured", [False, True])
def test_no_line_of_the_legend_breaks_between_a_cell_and_its_weight(width: int, coloured: bool) -> None:
    lines = heatmap.legend(width, coloured)
    assert max(line.cell_len for line in lines) <= width
    weights = ["0", "0.01", "0.05", "0.1", "0.25", "0.5", "0.75", "1"]
    assert re.findall(r".. ([\d.]+)(?:  |$)", "\n".join(line.plain for line in lines), re.MULTILINE) == weights
    if coloured:
        assert sum(str(span.style).startswith("on #") for line in lines for span in line.spans) == len(weights)


def test_a_pipe_gets_lines_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    render.verbosity.reset()
    monkeypatch.setenv("COLUMNS", "30")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    render.note("Twenty-five characters, and some more words than fit.")
    render.print_table("", [("a", "left"), ("b", "left")], [["x" * 150, "y" * 150]])
    captured = capsys.readouterr()
    assert captured.err == "Twenty-five characters, and some more words than fit.\n"
    assert "x" * 150 + "   " + "y" * 150 in captured.out


def test_no_markup_of_a_name_is_read(screen: Callable[..., list[str]]) -> None:
    assert "run [bold]x[b] $y^2$" in " ".join(screen(140, "checkpoints"))
    assert "run [bold]x[b] $y^2$" in " ".join(screen(40, "checkpoints", "run [bold]x[b] $y^2$"))


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (40, "loss 3.270 · 1 min left"),
        (20, "loss 3.270"),
        (80, "loss 3.270 · 1 min left · 1,234 tokens/s · step 7 of 20"),
    ],
)
def test_the_bar_leaves_out_figures_that_have_no_room(monkeypatch: pytest.MonkeyPatch, width: int, shown: str) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert training_view.beside_the_bar("loss 3.270", "1 min left", "1,234 tokens/s", "step 7 of 20") == shown


@pytest.mark.parametrize("width", [40, 80])
def test_lines_stand_above_the_bar(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal: every state of the bar fits, and a line is printed where the bar was, before it is drawn anew."""
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    render.verbosity.reset()
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    for name, value in {"COLUMNS": str(width), "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with render.progress(4, "step", told=False) as bar:
        bar.set_description_str("loss 3.27 · 1 min left", refresh=False)
        bar.update(2)
        bar.refresh()
        render.note("A line above the bar that says something about the run in many words.")
    parts = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[mA]", "", stderr.getvalue()))
    assert max(map(cell_len, parts)) <= width
    assert any(re.fullmatch(r" 50% ━+─+ loss 3\.27 · 1 min left", part) for part in parts)
    line = parts.index(tables.folded("A line above the bar that says something about the run in many words.", width)[0])
    assert not parts[line - 1].strip()
    assert any("loss 3.27" in part for part in parts[line + 1 :])


def test_a_dumb_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch, gptcli: Any, story: Path) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    result = gptcli("train", story, *TINY, "--max-steps", 2, "--sample-every", 0, "--out", "run")
    assert result.code == 0
    assert "━" not in result.err
    assert "\r" not in result.err
    assert "Train loss" in result.err


@pytest.mark.parametrize(("background", "light"), [("0;15", True), ("15;0", False), ("0;default;7", True), ("", False)])
def test_the_map_s_zero_looks_like_the_background(
    monkeypatch: pytest.MonkeyPatch, background: str, light: bool
) -> None:
    monkeypatch.setenv("COLORFGBG", background)
    assert heatmap.is_light() == light
    (line,) = heatmap.grid([[[[0.0]]]], 40, True)[1:]
    assert ("#fcfdbf" if light else "#000004") in str(line.spans)
