"""Texts on the command line: bytes that are no UTF-8, white space alone, and the command that train prints."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint
from runs import TEXT, TINY

from gptcli.cli import render

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
posix = pytest.mark.skipif(os.name == "nt", reason="arguments are no bytes there")
BYTES = b"caf\xe9 of"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoints" / "run", context_length=32)


def process(folder: Path, *args: str | bytes, stdin: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "gptcli", *args]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, input=stdin, capture_output=True, timeout=300)


@posix
@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("generate", BYTES), "The prompt"),
        (("generate", "hi", "--stop", BYTES), "--stop"),
        (("tokenize", BYTES), "The text"),
        (("tokenize", "-s", "byte", BYTES), "The text"),
        (("inspect-logits", BYTES), "The text"),
        (("inspect-embeddings", "a", BYTES), "The word"),
        (("train", "x.txt", "--sample-prompt", BYTES), "--sample-prompt"),
    ],
    ids=str,
)
def test_a_text_whose_bytes_are_no_utf8_is_refused_with_the_byte(
    run: Path, args: tuple[str | bytes, ...], name: str
) -> None:
    result = process(run.parent.parent, *args)
    assert result.returncode == 2
    lines = result.stderr.decode().splitlines()
    assert lines[0] == f"Error: {name} is not UTF-8: byte 0xE9 at offset 3."
    assert len(lines) == 2
    assert result.stdout == b""


@posix
def test_the_offset_counts_bytes(run: Path) -> None:
    result = process(run.parent.parent, "generate", "é€".encode() + b"\xff")
    assert b"byte 0xFF at offset 5." in result.stderr


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_file_s_name_may_have_any_bytes(run: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (run.parent.parent / name).write_text("hi", encoding="utf-8")
    assert process(run.parent.parent, "generate", "-f", b"caf\xe9.txt", "-n", "2").returncode == 0


@pytest.mark.parametrize("command", [("generate", "--seed", "1", "-n", "5", "-q"), ("tokenize",), ("inspect-logits",)])
@pytest.mark.parametrize("text", [" ", "\n", " \t\n"])
def test_white_space_is_a_text_wherever_it_comes_from(run: Path, command: tuple[str, ...], text: str) -> None:
    folder = run.parent.parent
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="\n")
    given = process(folder, *command, text)
    assert given.returncode == 0, given.stderr
    for result in (
        process(folder, *command, "-", stdin=text.encode()),
        process(folder, *command, stdin=text.encode()),
        process(folder, *command, "--file", "text.txt"),
    ):
        assert (result.returncode, result.stdout, result.stderr) == (0, given.stdout, given.stderr)


def test_nothing_is_no_text(gptcli: Any, run: Path) -> None:
    (run.parent.parent / "text.txt").write_bytes(b"")
    gptcli("generate", "-f", "text.txt").assert_user_error("text.txt is empty (0 bytes)")
    gptcli("generate", "").assert_user_error("The prompt is empty")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (TEXT, ()),
        ("--- ~~ $x `y` \"z\" 'w' \\ !\n" * 20, ()),
        ("$(touch hacked)\n" * 20, ()),
        (TEXT, ("--sample-prompt", 'the $cat\'s "mat"')),
        (TEXT, ("--sample-prompt", "", "--sample-every", 0)),
        (TEXT, ("--tokenizer", "byte")),
    ],
)
def test_the_command_that_train_prints_works(gptcli: Any, tmp_path: Path, text: str, options: tuple[Any, ...]) -> None:
    (tmp_path / "story.txt").write_text(text, encoding="utf-8", newline="\n")
    short = ("--max-steps", 2, "--dtype", "float32", "--sample-every", 0)
    trained = gptcli("train", "story.txt", *TINY, *short, "--out", "a run", *options)
    assert trained.code == 0, trained.err
    (line,) = (line for line in trained.err.splitlines() if line.startswith("  gptcli generate"))
    _, *words = shlex.split(line)
    result = gptcli(*words, "--dtype", "float32", "-n", 3)
    assert result.code == 0, result.err
    assert result.out.startswith(words[1])
    assert "a run" in words


def test_the_usual_prompt_is_printed_as_people_write_it() -> None:
    assert render.quoted("Every effort moves you") == '"Every effort moves you"'
    assert render.quoted("checkpoints/run") == "checkpoints/run"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_line_of_prompts_ends_at_a_newline_alone(gptcli: Any, run: Path, tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "prompts.JSONL"
    file.write_bytes('{"prompt": "one\u2028two"}\n{"prompt": "three\x85"}\n'.encode(encoding))
    result = gptcli("generate", "--prompts", file, "-c", run, "-n", 1, "--json", "-q")
    assert result.code == 0, result.err
    assert "one\u2028two" in result.out
    assert len([line for line in result.out.split("\n") if line]) == 2
