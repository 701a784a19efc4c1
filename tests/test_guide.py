"""The guide: its short commands run, the longer ones have options that exist, its reference is what --help says."""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

from gptcli.cli import COMMANDS, SETTINGS
from gptcli.cli.guide import FOLDER, PAGES
from gptcli.cli.lazy import LazyCommand
from gptcli.cli.reference import page as reference

ROOT = Path(__file__).parents[1]
NAMES = [name for panel in COMMANDS.values() for name in panel]
TEXTS = {name: (FOLDER / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}


def blocks(language: str, *pages: str) -> list[tuple[str, str]]:
    """(page, text) of the fenced blocks of ``language``, on these pages or on all."""
    found = []
    for name in pages or PAGES:
        found += [(name, text) for text in re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], flags=re.M | re.S)]
    return found


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """(command, the lines shown below it) of a console block."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(part.splitlines()[0], part.splitlines()[1:]) for part in parts]


SHORT = [
    pytest.param(line, shown, id=f"{name}: {line}")
    for name, text in blocks("console")
    for line, shown in commands_of(text)
]
LONG = sorted({line for _, text in blocks("sh") for line in text.splitlines() if "gptcli " in line})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the guide's reader has it: the bundled story, and a small checkpoint with GPT-2's tokenizer."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "story.txt", folder / "data")
    shutil.copytree(ROOT / "tests" / "checkpoints" / "formats" / "tf-gpt2-tiny", folder / "tf-gpt2-tiny")
    path = tiny_checkpoint(folder / "checkpoints" / "demo", kind="gpt2", emb_dim=12, n_heads=3)
    shutil.copy(ROOT / "tests" / "metrics.jsonl", path)
    return folder


@pytest.mark.parametrize(("line", "shown"), SHORT)
def test_every_short_command_runs_and_prints_what_is_shown(
    gptcli: Any, made: Path, tmp_path: Path, line: str, shown: list[str]
) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    result = gptcli(*shlex.split(line)[1:])
    assert result.code == 0, result.err
    printed = [text.rstrip() for text in (result.out + result.err).splitlines()]
    if "…" in shown:
        shown, printed = shown[: shown.index("…")], printed[: shown.index("…")]
    assert not shown or printed == shown


@pytest.mark.parametrize("line", LONG)
def test_every_long_command_has_options_that_exist(line: str) -> None:
    words = shlex.split(line)
    words = words[words.index("gptcli") + 1 :]
    command = LazyCommand(words[0], "", "", SETTINGS).load()
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known | {"--help"}


@pytest.mark.parametrize("text", [text for _, text in blocks("python")])
def test_every_python_block_runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "guide/python.md", "exec"), {})


def test_the_guide_names_every_page_and_every_page_has_a_title(gptcli: Any) -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} == set(PAGES)
    assert all(text.startswith("# ") for text in TEXTS.values())
    listed = [line.split()[0] for line in gptcli("guide").out.splitlines()]
    assert listed == list(PAGES)


def test_what_a_page_names_exists() -> None:
    for text in TEXTS.values():
        assert set(re.findall(r"`gptcli guide ([a-z-]+)`", text)) <= set(PAGES)
        assert set(re.findall(r"`gptcli ([a-z0-9-]+)", text)) <= {*NAMES, "generat"}


@pytest.mark.parametrize("name", PAGES)
def test_piped_a_page_is_its_markdown(gptcli: Any, name: str) -> None:
    result = gptcli("guide", name)
    assert (result.code, result.out, result.err) == (0, TEXTS[name], "")


@pytest.mark.parametrize("name", PAGES)
def test_a_terminal_gets_a_page_in_its_width(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.cli import main

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["guide", name]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", screen.getvalue()).splitlines()
    assert "```" not in screen.getvalue()
    assert max(map(len, lines)) <= 80


def test_an_unknown_page_names_the_nearest(gptcli: Any) -> None:
    gptcli("guide", "trainin").assert_user_error("'trainin'", "Did you mean training?")


def test_the_reference_is_what_help_says() -> None:
    assert TEXTS["commands"] == reference(), "make reference writes it anew"


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_option_of_the_reference(gptcli: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    section = TEXTS["commands"].split(f"### gptcli {name}\n")[1].split("\n### ")[0]
    shown = gptcli(name, "--help-all" if "--help-all" in section else "--help").out
    for record in re.findall(r"^- `([^`]+)`:", section, flags=re.MULTILINE):
        for option in re.findall(r"--[a-z0-9-]+", record):
            assert option in shown
