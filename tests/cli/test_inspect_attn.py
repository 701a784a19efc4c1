"""gptcli inspect-attn through the real app."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_checkpoint

TEXT = "the ferry, the bell"


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes stdout a terminal of 40 columns with all colours; during the test, as pytest sets its own before."""

    def make() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        for name, value in {"COLUMNS": "40", "LINES": "20", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
            monkeypatch.setenv(name, value)
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        return stream

    return make


def test_all_heads(gptcli: Any, checkpoint: Path) -> None:
    result = gptcli("inspect-attn", TEXT, "-c", checkpoint)
    assert result.code == 0, result.err
    assert "layer 1" in result.out
    assert "attention weight" in result.out
    table = result.out[result.out.index("The heads") :]
    assert all(f"{layer}.{head}" in table for layer in range(2) for head in range(3))
    assert "\x1b" not in result.out, "no colour where there is no terminal"


def test_one_head_as_a_map_and_in_words(gptcli: Any, checkpoint: Path) -> None:
    gptcli("inspect-attn", TEXT, "-c", checkpoint, "--npz", "a.npz")
    weights = np.load("a.npz")["weights"]
    assert weights.shape == (2, 3, 19, 19)
    result = gptcli("inspect-attn", TEXT, "-c", checkpoint, "--layer", 1, "--head", 2)
    assert "Layer 1, head 2" in result.out
    last = result.out.splitlines()[-1]
    best = int(weights[1, 2, 18].argmax())
    assert last.startswith("18 l")
    assert f"({best}) {weights[1, 2, 18, best]:.0%}" in last.split(",")[0]


def test_the_mean_of_heads_and_the_rollout(gptcli: Any, checkpoint: Path) -> None:
    gptcli("inspect-attn", TEXT, "-c", checkpoint, "--npz", "a.npz", "--rollout")
    arrays = np.load("a.npz")
    result = gptcli("inspect-attn", TEXT, "-c", checkpoint, "--layer", 1, "--json", "-")
    np.testing.assert_allclose(result.json["map"]["weights"][18], arrays["weights"][1].mean(0)[18], atol=1e-6)
    result = gptcli("inspect-attn", TEXT, "-c", checkpoint, "--rollout", "--json", "-")
    np.testing.assert_allclose(result.json["map"]["weights"][18], arrays["rollout"][1][18], atol=1e-6)


def test_files_say_the_same(gptcli: Any, checkpoint: Path) -> None:
    result = gptcli(
        "inspect-attn",
        TEXT,
        "-c",
        checkpoint,
        "--png",
        "a.png",
        "--json",
        "a.json",
        "--npz",
        "a.npz",
        "--html",
        "a.html",
    )
    assert result.code == 0, result.err
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    import json

    record = json.loads(Path("a.json").read_text(encoding="utf-8"))
    arrays = np.load("a.npz")
    assert [token["id"] for token in record["tokens"]] == arrays["ids"].tolist() == list(TEXT.encode())
    assert "".join(token["piece"] for token in record["tokens"]) == "".join(arrays["pieces"]) == TEXT
    weights = arrays["weights"].astype(np.float64)
    itself = weights[:, :, range(1, 19), range(1, 19)].mean(-1)
    np.testing.assert_allclose([head["share_itself"] for head in record["heads"]], itself.flatten(), atol=1e-5)


def test_stdin_and_file_give_the_same(gptcli: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("t.txt").write_text(TEXT, encoding="utf-8")
    direct = gptcli("inspect-attn", TEXT, "-c", checkpoint, "--json", "-").out
    assert gptcli("inspect-attn", "--file", "t.txt", "-c", checkpoint, "--json", "-").out == direct


def test_a_terminal_of_40_columns(gptcli: Any, checkpoint: Path, terminal: Callable[[], Terminal]) -> None:
    from rich.cells import cell_len
    from rich.text import Text

    screen = terminal()
    for more in ([], ["--layer", "0", "--head", "1"]):
        assert gptcli("inspect-attn", "ferry bell", "-c", checkpoint, *more).code == 0
    assert "\x1b[48;2;" in screen.getvalue(), "truecolor"
    plain = Text.from_ansi(screen.getvalue()).plain
    drawn = [line for line in plain.splitlines() if " → " not in line and "row is a token" not in line]
    assert max(map(cell_len, drawn)) <= 40


def test_a_map_too_wide_for_the_terminal_is_said_and_its_links_are_listed(
    gptcli: Any, checkpoint: Path, terminal: Callable[[], Terminal]
) -> None:
    screen = terminal()
    path = tiny_checkpoint(checkpoint.parent / "long", context_length=100)
    result = gptcli("inspect-attn", "a" * 90, "-c", path, "--layer", 0, "--head", 1)
    assert "do not fit" in result.err
    assert screen.getvalue().count(" → ") == 90


def test_no_color_gives_shades(
    gptcli: Any, checkpoint: Path, terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    gptcli("inspect-attn", "ferry bell", "-c", checkpoint, "--layer", 0, "--head", 1)
    assert "38;2" not in screen.getvalue()
    assert "48;2" not in screen.getvalue()
    assert "@@" in screen.getvalue(), "the first token can only look at itself"


def test_a_single_token(gptcli: Any, checkpoint: Path) -> None:
    assert gptcli("inspect-attn", "a", "-c", checkpoint).code == 0
    assert "0 a → a (0) 100%" in gptcli("inspect-attn", "a", "-c", checkpoint, "--layer", 0).out


def test_text_longer_than_the_context_is_cut_and_said(gptcli: Any, checkpoint: Path) -> None:
    result = gptcli("inspect-attn", "a" * 25, "-c", checkpoint, "--json", "-")
    assert len(result.json["tokens"]) == 20
    assert "25 tokens" in result.err
    assert "20" in result.err


def test_text_that_looks_like_markup_is_text(gptcli: Any, checkpoint: Path) -> None:
    result = gptcli("inspect-attn", "[red]$x_1$", "-c", checkpoint, "--layer", 0, "--png", "a.png")
    assert result.code == 0
    assert "0 [" in result.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--layer", "2"], ["--layer 2", "0 to 1"]),
        (["--layer", "-1"], ["--layer -1", "0 to 1"]),
        (["--layer", "0", "--head", "3"], ["--head 3", "0 to 2"]),
        (["--head", "1"], ["--head 1", "--layer"]),
        (["--rollout", "--layer", "1", "--head", "1"], ["--rollout"]),
        (["--png", "none/a.png"], ["none/a.png", "no folder"]),
        (["--html", "tiny"], ["tiny", "folder"]),
        (["--json", "a.out", "--npz", "a.out"], ["a.out", "twice"]),
        (["--png", "-"], ["--json"]),
        (["--file", "x.txt"], ["--file"]),
    ],
)
def test_mistakes(gptcli: Any, checkpoint: Path, args: list[str], words: list[str]) -> None:
    gptcli("inspect-attn", TEXT, "-c", checkpoint, *args).assert_user_error(*words)
    assert sorted(path.name for path in Path().iterdir()) == ["tiny"]


def test_empty_text(gptcli: Any, checkpoint: Path) -> None:
    gptcli("inspect-attn", "", "-c", checkpoint).assert_user_error("empty")


def test_an_unknown_character_of_a_char_tokenizer(gptcli: Any, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "char", "char", "the ferry")
    gptcli("inspect-attn", "the ferrY", "-c", path).assert_user_error("'Y'", "offset 8")


def test_an_unknown_word_of_a_word_tokenizer_is_said(gptcli: Any, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "word", "word", "the ferry and the bell")
    result = gptcli("inspect-attn", "the boat", "-c", path)
    assert result.code == 0
    assert "1 of 2 words" in result.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file on a full disk")
@pytest.mark.parametrize("kind", ["--png", "--npz", "--json", "--html"])
def test_a_full_disk(gptcli: Any, checkpoint: Path, kind: str) -> None:
    gptcli("inspect-attn", TEXT, "-c", checkpoint, kind, "/dev/full").assert_user_error("/dev/full", "No space")


def test_a_page_of_too_many_tokens_is_refused(gptcli: Any, tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "long", context_length=300)
    gptcli("inspect-attn", "a" * 280, "-c", path, "--html", "a.html").assert_user_error("256", "280")
    assert not Path("a.html").exists()
