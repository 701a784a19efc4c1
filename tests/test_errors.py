"""An error names a setting by its field; a command names its option, and says where else a value came from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

import gptcli
from gptcli.cli import group
from gptcli.errors import GptcliError, SettingError, nearest, with_names


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the checkpoint ``run``, a text that is no UTF-8, and a folder without a model."""
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "run")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "two" / "124M").mkdir(parents=True)
    (tmp_path / "two" / "124M" / "hparams.json").write_text("{}", encoding="utf-8")
    return tmp_path


API: Any = gptcli


@pytest.mark.parametrize(
    ("line", "call", "said"),
    [
        ("train latin.txt --out out", lambda: API.train("latin.txt", "out"), "Give its {encoding} (latin-1"),
        ("train latin.txt --out run", lambda: API.train("latin.txt", "run"), "replace it with {force}"),
        ("generate the -c run --device cuda:99", lambda: API.load("run", device="cuda:99"), "{device} cuda:99: "),
        ("generate the -c run --device tpu", lambda: API.load("run", device="tpu"), "no {device} 'tpu'"),
        ("generate the -c run --threads 0", lambda: API.load("run", threads=0), "{threads} is 0"),
        ("load-gpt2 --from two", lambda: API.convert("two", "out"), "Is it this? {source} two"),
        ("export run out --dtype half", lambda: API.convert("run", "out", dtype="half"), "no {dtype} 'half'"),
        ("evaluate a.txt -c run --limit 1", lambda: API.evaluate("run", "a.txt", limit=1), "{limit} goes with {task}"),
    ],
)
def test_a_command_names_the_option_and_the_api_the_field(
    gptcli: Any, home: Path, line: str, call: Callable[[], Any], said: str
) -> None:
    command, *words = line.split()
    gptcli(command, *words).assert_user_error(with_names(said, group.commands[command].load().flag))
    with pytest.raises(GptcliError) as caught:
        call()
    assert with_names(said, str) in str(caught.value)
    assert "--" not in str(caught.value)


def test_a_way_out_that_a_command_does_not_have_is_not_named(gptcli: Any, home: Path) -> None:
    gptcli("inspect-flow", "--file", "latin.txt", "-c", "run").assert_user_error("0xE9", "Save it as UTF-8 first.")


def test_a_command_calls_a_setting_by_its_option_or_argument() -> None:
    command = group.commands["load-gpt2"].load()
    assert [command.flag(name) for name in ("source", "out", "batch_size")] == ["--from", "--out", "--batch-size"]
    assert group.commands["export"].load().flag("directory") == "DIRECTORY"


def test_fields_become_names_in_both_lines_and_nothing_else_does() -> None:
    error = SettingError("{top_k} is {}, {0} or {A}.", "Leave {top_k} out, or {force}.")
    assert str(error) == "top_k is {}, {0} or {A}.\nLeave top_k out, or force."
    named = error.named(str.upper, lambda name: f"<{name}>")
    assert str(named) == "TOP_K is {}, {0} or {A}.\nLeave <top_k> out, or <force>."


def test_the_nearest_choice_is_offered() -> None:
    assert nearest("cosin", ["constant", "cosine"]) == "Did you mean cosine? There are: constant, cosine."
    assert nearest("", ["a", "b"]) == "Choose one of: a, b."
