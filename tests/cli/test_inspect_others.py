"""inspect-flow, inspect-logits, inspect-embeddings and inspect-gradients through the real app."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_checkpoint

TEXT = "the ferry"
COMMANDS = {
    "inspect-flow": [TEXT],
    "inspect-logits": [TEXT, "--layers"],
    "inspect-embeddings": ["the", "ferry", "bell", "--analogy", "a", "b", "c", "--within", "the the"],
    "inspect-gradients": [TEXT, "--without-shortcuts"],
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_output(gptcli: Any, checkpoint: Path, command: str) -> None:
    args = [command, *COMMANDS[command], "-c", checkpoint]
    shown = gptcli(*args)
    assert shown.code == 0, shown.err
    files = ["--png", "a.png", "--html", "a.html", "--json", "a.json", "--npz", "a.npz"]
    result = gptcli(*args, *files)
    assert result.code == 0, result.err
    assert result.out == shown.out
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    page = Path("a.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert gptcli(*args, "--json", "-").json == json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert len(np.load("a.npz").files) > 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_of_40_columns(gptcli: Any, checkpoint: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    from rich.text import Text

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    assert gptcli(command, *COMMANDS[command], "-c", checkpoint).code == 0
    tables = [line for line in Text.from_ansi(screen.getvalue()).plain.splitlines() if line.startswith(" ")]
    assert tables
    assert max(map(len, tables)) <= 40


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_be_written(gptcli: Any, checkpoint: Path, command: str) -> None:
    result = gptcli(command, *COMMANDS[command], "-c", checkpoint, "--png", "none/a.png")
    result.assert_user_error("none/a.png")


@pytest.mark.parametrize("command", ["inspect-flow", "inspect-logits", "inspect-gradients"])
def test_text_that_is_empty_too_long_or_unknown(gptcli: Any, tmp_path: Path, command: str) -> None:
    path = tiny_checkpoint(tmp_path / "char", "char", "the ferry", context_length=6)
    gptcli(command, "", "-c", path).assert_user_error("empty")
    gptcli(command, "bell", "-c", path).assert_user_error("'b'")
    result = gptcli(command, "the ferry", "-c", path)
    assert result.code == 0
    assert "9 tokens" in result.err


def test_the_flow_shows_every_shape_and_adds_up(gptcli: Any, checkpoint: Path) -> None:
    args = ["inspect-flow", TEXT, "-c", checkpoint, "--position", 3]
    shown = gptcli(*args).out
    assert "From · (token 3)" in shown
    assert "(9, 42) → 3 × (9, 14) → (9, 42)" in shown
    assert "(9, 42) → (9, 168) → (9, 42)" in shown
    record = gptcli(*args, "--json", "-").json
    votes = sum(stage["vote"] for stage in record["stages"]) + record["final_norm_bias_vote"]
    assert votes == pytest.approx(record["choice"]["logit"], abs=1e-3)
    gptcli("inspect-flow", TEXT, "-c", checkpoint, "--position", 9).assert_user_error("--position 9", "0 to 8")


def test_logits_are_those_that_generate_draws_from(gptcli: Any, checkpoint: Path) -> None:
    record = gptcli("inspect-logits", TEXT, "-c", checkpoint, "--json", "-").json
    generated = gptcli("generate", TEXT, "-c", checkpoint, "-t", 1, "-n", 1, "--steps", "--json").json
    candidates = generated["samples"][0]["steps"][0]["candidates"]
    found = record["positions"][-1]["next"]
    assert [one["id"] for one in found] == [one["id"] for one in candidates]
    ours, theirs = ([one["probability"] for one in some] for some in (found, candidates))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert record["positions"][0]["surprise_bits"] is None
    bits = sum(one["surprise_bits"] for one in record["positions"][1:])
    assert bits == pytest.approx(record["total_bits"], rel=1e-6)
    assert record["perplexity"] == pytest.approx(2 ** (bits / 8), rel=1e-6)


def test_one_token_of_text(gptcli: Any, checkpoint: Path) -> None:
    for command in ("inspect-flow", "inspect-logits"):
        assert gptcli(command, "a", "-c", checkpoint, "--png", "a.png").code == 0
    gptcli("inspect-gradients", "a", "-c", checkpoint).assert_user_error("single token")


def test_embeddings_are_rows_of_the_table(gptcli: Any, checkpoint: Path) -> None:
    from gptcli.checkpoints import checkpoint as checkpoints

    table = checkpoints.load(checkpoint).tensors["wte.weight"]
    record = gptcli("inspect-embeddings", "a", "bc", "-c", checkpoint, "--json", "-").json
    assert record["words"][0]["length"] == pytest.approx(float(table[ord("a")].norm()), rel=1e-5)
    mean = table[[ord("b"), ord("c")]].mean(0)
    similarity = torch.cosine_similarity(table[ord("a")], mean, dim=0).item()
    assert record["cosines"][0][1] == pytest.approx(similarity, abs=1e-5)


def test_words_come_from_a_file_too(gptcli: Any, checkpoint: Path) -> None:
    Path("w.txt").write_text("the ferry\nbell\n", encoding="utf-8")
    direct = gptcli("inspect-embeddings", "the", "ferry", "bell", "-c", checkpoint).out
    assert gptcli("inspect-embeddings", "--file", "w.txt", "-c", checkpoint).out == direct


def test_mistakes_with_embeddings(gptcli: Any, checkpoint: Path, tmp_path: Path) -> None:
    word = tiny_checkpoint(tmp_path / "word", "word", "the ferry and the bell")
    gptcli("inspect-embeddings", "ferry", "boat", "-c", word).assert_user_error("'boat'", "vocabulary")
    char = tiny_checkpoint(tmp_path / "char", "char", "the ferry")
    gptcli("inspect-embeddings", "boat", "-c", char).assert_user_error("'b'")
    gptcli("inspect-embeddings", "the", "--within", "the", "-c", checkpoint).assert_user_error("--within", "twice")
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    gptcli("inspect-embeddings", "--file", "empty.txt", "-c", checkpoint).assert_user_error("no word")
    gptcli("inspect-embeddings", " ", "-c", checkpoint).assert_user_error("no word")


def test_the_courses_demonstration(gptcli: Any, course_numbers: dict[str, Any]) -> None:
    record = gptcli("inspect-gradients", "--demo", "--json", "-", "--png", "a.png").json
    for kind in ("with", "without"):
        exact = course_numbers["gradient_flow"][f"mean_abs_weight_gradient_{kind}_shortcuts"]
        assert list(record["gradients"][f"{kind} shortcuts"].values()) == pytest.approx(exact, rel=1e-5)
    shown = gptcli("inspect-gradients", "--demo").out
    assert all(number in shown for number in ("0.222", "0.207", "0.329", "0.267", "1.33", "0.000202", "0.00505"))
    gptcli("inspect-gradients", TEXT, "--demo").assert_user_error("--demo")
