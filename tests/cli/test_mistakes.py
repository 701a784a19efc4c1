"""Mistyped commands, options, prompts and names of texts: what was meant comes first."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint
from runs import TINY

from gptcli.cli import render

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
    ("train story.txt -size tiny", ["no option -size", "Did you mean --size?"]),
    ("train story.txt -for 30s", ["no option -for", "Did you mean --for?"]),
    ("generate hi --temperature hot", ["Error: --temperature is 'hot', not a number.", "gptcli generate --help"]),
    ("generate hi --temperature 0,7", ["--temperature is '0,7', not a number", "With a point: --temperature 0.7"]),
    ("train story.txt --lr 1,5", ["--learning-rate is '1,5', not a number", "With a point: --learning-rate 1.5"]),
    ("train story.txt --epochs 1,5", ["not a whole number", "gptcli train --help"]),
    ("generate “The sea” -n 5", ["are typographic", 'Straight ones: gptcli generate "The sea" -n 5']),
    ("load-gpt2 small", ["Did you mean gptcli load-gpt2 --size small?"]),
    ("load-gpt2 gpt2-medium", ["Did you mean gptcli load-gpt2 --size medium?"]),
    ("load-gpt2 story.txt", ["Did you mean gptcli load-gpt2 --from story.txt?"]),
    ("load-gpt2 mine", ["does not take so many words: mine", "gptcli load-gpt2 --help"]),
    ("load-gpt2 --size 124M", ["no GPT-2 of size '124M'", "Did you mean small?"]),
    ("load-gpt2 --size gpt2-xl", ["Did you mean xl?"]),
    ("load-gpt2 --from story.txt", ["story.txt holds text, and no weights", "gptcli train story.txt"]),
    ("train story.txt --init-from gpt2-small", ["no checkpoint gpt2-small", "first: gptcli load-gpt2 --size small"]),
    ("generate hi -c gpt2-medium", ["no checkpoint gpt2-medium", "gptcli load-gpt2 --size medium"]),
    (
        "export run --format gguf",
        ["gptcli export lacks its directory.", "In this order: gptcli export CHECKPOINT DIRECTORY"],
    ),
    ("quantize", ["gptcli quantize lacks its checkpoint.", "In this order: gptcli quantize CHECKPOINT"]),
    ("merge", ["gptcli merge lacks its adapter.", "In this order: gptcli merge ADAPTER"]),
    ("plot", ["gptcli plot lacks its run", "In this order: gptcli plot RUN"]),
    ("train story.txt for 30s", ["for is an option", "no file of that name", "With its dashes: --for 30s"]),
    ("train story.txt for", ["for is an option", "With its dashes: --for"]),
    ("finetune story.txt init-from run", ["init-from is an option", "With its dashes: --init-from run"]),
    ("count-params smal", ["no checkpoint smal", "gptcli count-params --size small"]),
    ("count-params gpt2-xl", ["no checkpoint gpt2-xl", "gptcli count-params --size xl"]),
    ("count-params mine", ["no checkpoint mine"]),
    ("evaluate pairs.jsonl -c run", ["pairs.jsonl has rows", "name the task: --task", "--field NAME"]),
    ("evaluate story.txt pairs.csv -c run", ["pairs.csv has rows", "name the task: --task"]),
    ("train --resume story.txt", ["story.txt is a file, not a run", "gptcli checkpoints lists"]),
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


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """A checkpoint whose name has a space."""
    return tiny_checkpoint(tmp_path / "checkpoints" / "my diary")


def test_a_name_with_a_space_and_no_quotes_after_an_option(gptcli: Any, diary: Path) -> None:
    for prompt in ("On Monday", "Monday"):
        result = gptcli("generate", prompt, "--checkpoint", "my", "diary", "-n", 5)
        line = f'gptcli generate {render.quoted(prompt)} --checkpoint "my diary" -n 5'
        result.assert_user_error("diary follows --checkpoint my, which takes one word", f"Put a name in quotes: {line}")


def test_a_checkpoint_without_its_option(gptcli: Any, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "checkpoints" / "run")
    for prompt in ("Every effort", "Monday"):
        result = gptcli("inspect-attn", prompt, "run")
        line = f"gptcli inspect-attn {render.quoted(prompt)} --checkpoint run"
        result.assert_user_error("takes one text, and run is a second", f"To use the checkpoint: {line}")


def test_a_name_of_gpt2s_means_the_checkpoint_that_is_there(gptcli: Any, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "checkpoints" / "gpt2-small")
    for name in ("gpt2", "124M", "openai-community/gpt2"):
        gptcli("generate", "hi", "-c", name).assert_user_error("Did you mean gpt2-small?")
    gptcli("generate", "hi", "-c", "gpt3").assert_user_error("Choose one of: gpt2-small.")


def test_a_prompt_that_is_the_name_of_a_file_is_noted(gptcli: Any, diary: Path, story: Path) -> None:
    for command in ("generate", "inspect-logits", "tokenize"):
        what = "prompt" if command == "generate" else "text"
        result = gptcli(command, "story.txt", "-c", "my diary")
        assert result.code == 0, result.err
        assert f"This {what} is the name of a file; --file story.txt reads the file." in result.err
        assert "name of a file" not in gptcli(command, "story", "-c", "my diary").err


def test_a_run_whose_text_was_given_to_resume(gptcli: Any, diary: Path, tmp_path: Path) -> None:
    (tmp_path / "my diary.txt").write_text("Monday.", encoding="utf-8")
    result = gptcli("train", "--resume", "my diary.txt")
    result.assert_user_error(
        "my diary.txt is a file, not a run", f'Its run: gptcli train --resume "{diary.relative_to(tmp_path)}"'
    )


@pytest.mark.parametrize("text", ["wörter " * 60, "a" * 300, "ü" * 200])
def test_a_text_that_no_file_can_be_named_is_a_text(gptcli: Any, text: str) -> None:
    assert gptcli("tokenize", text).code == 0
    gptcli("tokenize", "a", *text.split(), "b").assert_user_error("no quotes around them")


def test_a_checkpoint_among_the_texts(gptcli: Any, diary: Path, story: Path) -> None:
    result = gptcli("evaluate", "story.txt", "--checkpoint", "my diary", "my diary")
    result.assert_user_error("No such file: my diary", 'gptcli evaluate TEXT --checkpoint "my diary", or')
