"""The rules of the house that no linter holds: only cli/ prints, light commands stay light, files stay short."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "gptcli"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST, MODEL_LONGEST = 350, 300  # lines of a file, and of the one to teach from
ENTRIES = 18  # in the package, beside cli


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints_and_no_file_is_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.relative_to(PACKAGE).parts[0] != "cli":
        calls = {
            n.func.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert "print" not in calls
    assert len(text.splitlines()) <= (MODEL_LONGEST if path == PACKAGE / "model" / "gpt.py" else LONGEST)


# Below cli, an option may be named in a whole command, of gptcli or another program; --lr is declared in a field.
COMMAND = re.compile(r"\b(gptcli [A-Za-z]|uv tool |libreoffice )")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_texts_below_the_command_line_name_settings_by_their_fields(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "cli":
        return
    for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
        for option in re.finditer(r"(?<![\w-])--[a-z]", text):
            before = text[: option.start()]
            assert text == "--lr" or COMMAND.search(before), f"{text!r}: write {{field}}"


def _texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a file but docstrings, with … for what an f-string inserts."""
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            parts.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
            yield "".join(str(value.value) if isinstance(value, ast.Constant) else "…" for value in node.values)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def test_the_package_has_few_entries() -> None:
    there = [p for p in PACKAGE.iterdir() if p.name not in ("cli", "__pycache__")]
    assert len(there) <= ENTRIES, sorted(p.name for p in there)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["prepare", "--help"],
        ["generate", "--help"],
        ["evaluate", "--help"],
        ["count-params", "--size", "xl"],
        ["tokenize", "hello"],
        ["load-gpt2", "--help"],
        ["checkpoints"],
        [],
        ["guide"],
        ["guide", "training"],
        ["doctor", "--help"],
        ["download", "--help"],
    ],
)
def test_light_commands_load_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom gptcli.cli import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'transformers', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_command_has_the_one_line_of_help_of_its_function() -> None:
    from gptcli.cli import COMMANDS

    lines = {name: line for panel in COMMANDS.values() for name, line in panel.items()}
    assert lines
    for name, line in lines.items():
        function = name.replace("-", "_")
        docstring = inspect.getdoc(getattr(importlib.import_module(f"gptcli.cli.{function}"), function)) or ""
        assert " ".join(docstring.split("\n\n")[0].split()) == line, name


def test_help_opens_with_three_examples_and_shows_every_command(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.cli import COMMANDS

    monkeypatch.setenv("COLUMNS", "80")
    shown = gptcli("--help").out
    assert [line.split()[1] for line in shown.splitlines() if line.startswith(" gptcli ")] == [
        "download", "train", "generate",
    ]  # fmt: skip
    assert all(f" {name} " in shown for panel in COMMANDS.values() for name in panel)


def test_a_command_completes_its_own_options_alone() -> None:
    environment = os.environ | {"_GPTCLI_COMPLETE": "complete_bash", "COMP_WORDS": "gptcli plot --", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "gptcli"]
    shown = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, env=environment).stdout.split()
    assert "--out" in shown
    assert "--install-completion" not in shown


def test_a_request_and_a_header_are_one_thing_each() -> None:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in FILES)
    classes = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert (classes.count("Request"), classes.count("Header")) == (1, 1)
