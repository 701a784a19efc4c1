"""Streams that are full, closed, or left by their reader, for the program in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint
from runs import TEXT, TINY

from gptcli.cli import COMMANDS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "GPTCLI": f"{sys.executable} -m gptcli"}
NAMES = [name for panel in COMMANDS.values() for name in panel]
GENERATE = "generate hi -c run -q --dtype float32 --ignore-eot"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streams")
    tiny_checkpoint(path / "checkpoints" / "run", context_length=32)
    for number in range(30):
        (path / "checkpoints" / f"copy-{number:02d}").symlink_to(path / "checkpoints" / "run")
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    return path


def shell(folder: Path, line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """``line`` in a shell, $GPTCLI being the program."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        timeout=300,
        text=True,
        errors="replace",
    )


def assert_two_lines(result: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("Using ", "Wrote "))]
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in result.stderr


@needs_full
@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_for_a_full_disk(folder: Path, name: str) -> None:
    result = shell(folder, f"$GPTCLI {name} --help > /dev/full")
    assert_two_lines(result, "Cannot write to stdout: No space left on device.")


@needs_full
@pytest.mark.parametrize("name", ["--help", "tokenize The"])
def test_python_may_have_been_told_not_to_buffer(folder: Path, name: str) -> None:
    result = shell(folder, f"$GPTCLI {name} > /dev/full", PYTHONUNBUFFERED="1")
    assert_two_lines(result, "Cannot write to stdout: No space left on device.")
    left = shell(folder, f"$GPTCLI {name} | true; exit ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED="1")
    assert (left.returncode, left.stderr) == (0, "")


RESULTS = {
    "--version": "",
    "tokenize The": "",
    "tokenize The --json": "",
    "tokenize The -s gpt2 -s char -q": "",
    "checkpoints": "",
    "checkpoints run": "",
    "count-params --size xl": "",
    GENERATE: "",
    f"{GENERATE} --json": "",
    f"{GENERATE} --steps": "",
    "generate -c run -q --prompts text.txt -n 5": "",
    "evaluate text.txt -c run -q": "",
    "inspect-logits hi -c run": "",
    "inspect-flow hi -c run": "",
    "inspect-attn hi -c run": "",
    "inspect-embeddings h i -c run": "",
    "inspect-gradients hi -c run": "",
    "inspect-logits hi -c run --json -": "",
    "prepare text.txt --tokenizer char --out tokens -q": "tokens",
    "quantize run --out small": "small/model.safetensors",
    "export run exported -q": "exported/model.safetensors",
}


@needs_full
@pytest.mark.parametrize("command", RESULTS)
def test_a_result_for_a_full_disk_is_told_and_what_was_made_stays(folder: Path, command: str) -> None:
    result = shell(folder, f"$GPTCLI {command} > /dev/full")
    assert_two_lines(result, "Cannot write to stdout: No space left on device.")
    assert (folder / RESULTS[command]).exists()


@needs_full
def test_a_training_run_is_whole_though_its_name_cannot_be_printed(folder: Path) -> None:
    options = " ".join(map(str, (*TINY, "--max-steps", 2, "--dtype", "float32", "-q")))
    result = shell(folder, f"$GPTCLI train text.txt {options} --out full > /dev/full")
    assert_two_lines(result, "Cannot write to stdout")
    assert (folder / "full" / "model.safetensors").exists()
    assert shell(folder, f"$GPTCLI train text.txt {options} --out left | true; exit ${{PIPESTATUS[0]}}").returncode == 0
    assert (folder / "left" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["--help", "--version", "tokenize The", "checkpoints", GENERATE])
def test_a_closed_stdout(folder: Path, name: str) -> None:
    assert_two_lines(shell(folder, f"$GPTCLI {name} >&-"), "Cannot write to stdout: it is closed.")


def test_a_closed_stdout_s_number_goes_to_no_file(folder: Path) -> None:
    """What a library prints by the number would otherwise end up in the middle of a checkpoint."""
    inside = (
        "import sys; from gptcli.cli import streams\n"
        "with streams.guarded():\n    file = open('new.bin', 'w')\nsys.exit(3 if file.fileno() < 3 else 0)"
    )
    assert shell(folder, f'{sys.executable} -c "{inside}" <&- >&- 2>&-').returncode == 0


@pytest.mark.parametrize("where", ["2>&-", pytest.param("2>/dev/full", marks=needs_full)])
@pytest.mark.parametrize("command", ["tokenize The -s char", "checkpoints", f"{GENERATE} -v --seed 1"])
def test_what_stderr_cannot_take_changes_nothing_else(folder: Path, command: str, where: str) -> None:
    expected = shell(folder, f"$GPTCLI {command}")
    result = shell(folder, f"$GPTCLI {command} {where}")
    assert (result.returncode, result.stdout) == (0, expected.stdout)
    failing = shell(folder, f"$GPTCLI generate hi -c nothing {where}")
    assert (failing.returncode, failing.stdout, failing.stderr) == (2, "", "")
    debugged = shell(folder, f"$GPTCLI generate hi -c nothing --debug {where}")
    assert (debugged.returncode, debugged.stdout) == (2, "")


@pytest.mark.parametrize("rest", ["", "-"])
@pytest.mark.parametrize("command", ["generate -c run", "tokenize", "inspect-logits -c run"])
def test_a_closed_stdin_is_refused_where_it_is_read(folder: Path, command: str, rest: str) -> None:
    assert_two_lines(shell(folder, f"$GPTCLI {command} {rest} <&-"), "Cannot read stdin: it is closed")


@pytest.mark.parametrize("command", ["train - -q", "prepare - --out x", "evaluate - -c run"])
def test_and_by_what_reads_whole_texts(folder: Path, command: str) -> None:
    assert_two_lines(shell(folder, f"$GPTCLI {command} <&-"), "Cannot read stdin: it is closed")


@pytest.mark.parametrize("command", [f"{GENERATE} --seed 1", "tokenize The", "checkpoints"])
def test_a_closed_stdin_is_no_hindrance_where_it_is_not_read(folder: Path, command: str) -> None:
    result = shell(folder, f"$GPTCLI {command} <&-")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == shell(folder, f"$GPTCLI {command}").stdout


def test_all_three_closed(folder: Path) -> None:
    assert shell(folder, "$GPTCLI tokenize The <&- >&- 2>&-").returncode == 2
    assert shell(folder, "$GPTCLI quantize run --out three <&- >&- 2>&-").returncode == 2
    assert (folder / "three" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "reader"),
    [
        ("checkpoints", "head -1"),
        ("checkpoints", "true"),
        ("--help", "true"),
        ("train --help", "head -1"),
        ("tokenize The", "true"),
        (f"{GENERATE} -n 20000", "head -c 300"),
        (f"{GENERATE} -n 20000 --no-stream", "true"),
        ("generate -c run -q --prompts text.txt -n 200", "head -1"),
        ("inspect-logits hi -c run", "true"),
    ],
)
def test_a_reader_who_leaves_has_had_enough(folder: Path, command: str, reader: str) -> None:
    result = shell(folder, f"$GPTCLI {command} | {reader}; exit ${{PIPESTATUS[0]}}")
    assert (result.returncode, result.stderr) == (0, "")
    assert bool(result.stdout) == (reader != "true")


def test_a_reader_of_both_streams_who_leaves(folder: Path) -> None:
    result = shell(folder, "$GPTCLI generate hi -v --ignore-eot -n 20000 2>&1 | head -1; exit ${PIPESTATUS[0]}")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1


def test_in_one_process_the_streams_are_left_as_they_were(gptcli: Any) -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    assert gptcli("tokenize", "The").code == 0
    assert gptcli("tokenize").code in (0, 2)
    assert (sys.stdin, sys.stdout, sys.stderr) == before


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_a_command_that_loaded_triton_ends_without_a_word_of_it(folder: Path) -> None:
    """Its library reports on stderr what is left when Python ends."""
    done = shell(folder, f"{sys.executable} -c 'import triton; from gptcli.cli import main; main([\"--version\"])'")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gptcli ")
