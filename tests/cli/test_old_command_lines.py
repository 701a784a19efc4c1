"""What was typed for version 0.1.0 is still understood: its README's lines, its options, its runs' settings.

tests/fixtures/command-lines.txt and options.txt were written from commit f12e4fe, and are never written again.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli import group
from gptcli.config.sources import to_toml

FIXTURES = Path(__file__).parents[1] / "fixtures"
LINES = (FIXTURES / "command-lines.txt").read_text(encoding="utf-8").splitlines()
OPTIONS = [line.split() for line in (FIXTURES / "options.txt").read_text(encoding="utf-8").splitlines()]
RUNS = sorted(path.parent.name for path in FIXTURES.glob("*/training"))


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_understood(gptcli: Any, line: str) -> None:
    _, name, *words = shlex.split(line)
    command = group.commands[name].load()
    command.make_context(name, list(words))
    if any(option.name == "print_config" for option in command.params) and "--resume" not in words:
        result = gptcli(name, *words, "--print-config")  # its settings are checked, and nothing is run
        assert result.code == 0, result.err


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, *options in OPTIONS])
def test_every_option_is_still_there(name: str, options: list[str]) -> None:
    parameters = group.commands[name].load().params
    known = {word for each in parameters for word in (*each.opts, *each.secondary_opts)}
    assert set(options) <= known


@pytest.mark.parametrize("run", RUNS)
def test_the_settings_of_a_run_are_those_of_a_file(gptcli: Any, tmp_path: Path, run: str) -> None:
    state = next((FIXTURES / run / "training").glob("step-*/state.json"))
    recipe = json.loads(state.read_text(encoding="utf-8"))["facts"]["recipe"]
    file = tmp_path / "run.toml"
    file.write_text(to_toml((("", name, value) for name, value in recipe.items()), run), encoding="utf-8")
    result = gptcli("train", "story.txt", "--config", file, "--print-config")
    assert result.code == 0, result.err
    said = {name: value for name, value in recipe.items() if value is not None}
    assert all(line in result.out for line in to_toml((("", *each) for each in said.items()), "").splitlines()[3:])
