"""Mistyped commands, options, prompts and names of texts: what was meant comes first."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import TINY

MISTAKES = [
    ("generate Once upon a time", ["no quotes", 'gptcli generate "Once upon a time"']),
    ("generate -c run Once upon a time -n 5", ['gptcli generate -c run "Once upon a time" -n 5']),
    ("generate hi hi hi", ['gptcli generate "hi hi hi"']),
    ("tokenize two words", ["The text has several words", 'gptcli tokenize "two words"']),
    ("inspect-attn two words", ['gptcli inspect-attn "two words"']),
    ("checkpoints one two", ["does not take so many words: two", "gptcli checkpoints --help"]),
    ("fine-tune story.txt", ["no command 'fine-tune'", "gptcli finetune DATA --init-from CHECKPOINT"]),
    ("list", ["no command 'list'", "gptcli checkpoints"]),
    ("ls", ["gptcli checkpoints"]),
    ("chat", ['gptcli generate "PROMPT"']),
    ("version", ["gptcli --version"]),
    ("help", ["gptcli --help"]),
    ("help train", ["gptcli train --help"]),
    ("trian", ["gptcli train?"]),
    ("train --text story.txt", ["no option --text", "gptcli train story.txt"]),
    ("evaluate --file story.txt", ["gptcli evaluate story.txt"]),
    ("generate --prompt hi", ["gptcli generate hi"]),
    ("train --model gpt2 story.txt", ["no option --model", "--size", "--init-from"]),
    ("generate hi --model run", ["Did you mean --checkpoint?"]),
    ("train story.txt --steps 5", ["Did you mean --max-steps?"]),
    ("generate hi --length 5", ["Did you mean --max-new-tokens?"]),
    ("generate hi --temp 1", ["Did you mean --temperature?"]),
    ("train story.txt --sizee tiny", ["Did you mean --size?"]),
    ("--verison", ["Did you mean --version?"]),
    ("--checkpoint run generate hi", ["stands before the command", "gptcli generate --checkpoint"]),
    ("train story.txt --epochs many", ["--epochs is 'many', not a whole number"]),
    ("train story.txt --epochs=many", ["--epochs is 'many', not a whole number"]),
    ("story.txt", ["not a command", "gptcli train story.txt"]),
]
FAR = ["xqzwv", "train --xqzwv story.txt", "generate hi --xqzwv", "-z"]


@pytest.mark.parametrize(("line", "words"), MISTAKES)
def test_a_mistake_is_answered_by_what_was_meant(gptcli: Any, story: Path, line: str, words: list[str]) -> None:
    gptcli(*line.split()).assert_user_error(*words)


@pytest.mark.parametrize("line", FAR)
def test_no_name_is_suggested_where_none_is_near(gptcli: Any, story: Path, line: str) -> None:
    result = gptcli(*line.split())
    result.assert_user_error("See: gptcli", "--help")
    assert "mean" not in result.err


def test_a_prompt_is_no_command(gptcli: Any) -> None:
    gptcli("Once upon a time").assert_user_error("no command", 'gptcli generate "Once upon a time"')


def test_a_missing_text_is_told_before_an_existing_run(gptcli: Any, story: Path) -> None:
    options = (*TINY, "--max-steps", 1, "--sample-every", 0, "--out", "run")
    assert gptcli("train", story, *options).code == 0
    gptcli("train", "stroy.txt", *options).assert_user_error("No such file: stroy.txt", "Did you mean story.txt?")
    Path("empty").mkdir()
    gptcli("train", "empty", *options).assert_user_error("No text in empty")
    again = gptcli("train", story, *options)
    again.assert_user_error("run exists already", "gptcli train --resume run", "--force")
    gptcli("export", "run", "run").assert_user_error("run")
    gptcli("train", "run", *TINY).assert_user_error("run")


def test_training_says_which_files_of_a_folder_it_reads(gptcli: Any, story: Path) -> None:
    folder = Path("texts")
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_text("abc abc abd " * 40, encoding="utf-8")
    (folder / "below" / "b.txt").write_text("abd bad cab " * 40, encoding="utf-8")
    (folder / "README.md").write_text("Not a text.", encoding="utf-8")
    options = (*TINY, "--max-steps", 1, "--sample-every", 0)
    result = gptcli("train", folder, *options, "--out", "run")
    assert f"Reading 2 texts in texts: a.txt, {Path('below') / 'b.txt'} (not README.md)." in result.err
    assert "960 characters" in result.err
    globbed = gptcli("train", "texts/*.txt", *options, "--out", "other")
    assert "Reading 1 text" not in globbed.err
    named = gptcli("train", folder / "README.md", *options, "--context-length", 4, "--out", "third")
    assert "11 characters" in named.err


def test_a_package_that_is_not_installed(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "torch.py").write_text('raise ModuleNotFoundError("No module named \'torch\'", name="torch")', "utf-8")
    (tmp_path / "story.txt").write_text("Once upon a time. " * 40, "utf-8")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "gptcli", "train", "story.txt", "--tokenizer", "char"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(absent), str(root)])},
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "Error: torch is not installed.", "gptcli doctor lists what is missing and how to get it."
    ]  # fmt: skip
