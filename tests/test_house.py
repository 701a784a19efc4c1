"""The rules of the house: imports go down, only cli/ prints, and light commands stay light."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "gptcli"
# From the ground up; a room may import its own floor's neighbours and everything below.
FLOORS: list[set[str]] = [
    {"errors"},
    {"textstream", "filesum", "machine", "run_lock"},
    {"config", "shapes", "accounting", "events", "gpu", "step_graph", "pace"},
    {
        "documents",
        "download",
        "tensorheader",
        "tensorfile",
        "device",
        "autograd",
        "loss",
        "tokenizers",
        "lanes",
        "products",
    }
    | {"integers", "packing", "quantization", "cells", "tiles", "counters", "attention"}
    | {
        "kernels",
        "dropout_bits",
        "training_attention",
        "training_kernels",
        "kernel_cache",
        "team",
        "compiled",
        "helpers",
        "gpu",
    }
    | {"task_files", "journal", "peaks"},
    {"model", "sampling", "checkpoint_config", "program", "matrices"},
    {
        "portions",
        "preparing",
        "weightfile",
        "engine",
        "packed_model",
        "corpus",
        "optim",
        "distributed",
        "curves",
    }
    | {"scoring", "shards", "tensorboard", "overwrite"},
    {"checkpoint", "continuation", "decoding", "weights", "plan"},
    {"snapshots", "stepping", "block_compiler", "row_weights"},
    {"fitting", "step_launches"},
    {"torch_engine", "generation", "speculative", "decoders", "training", "completion", "inspection", "benchmark"}
    | {"evaluation", "evaluation_plots", "tasks", "contenders", "peers", "device_draws", "prompt_launches"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.stem.startswith("__"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "gptcli":
            rooms |= {alias.name for alias in node.names if not alias.name.startswith("_")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptcli."):
            rooms.add((node.module or "").split(".")[1])
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_and_only_cli_speaks(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor yet: put it into FLOORS"
    for other in imported_rooms(tree):
        assert FLOOR_OF[other] <= FLOOR_OF[room], f"{room} imports {other} from above"
    if room != "cli":
        names = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not names & {"typer", "rich", "tqdm"}
        calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert "print" not in calls


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


def test_no_argument_shows_the_help(gptcli: Any) -> None:
    result = gptcli()
    assert (result.code, result.out) == (0, gptcli("--help").out)
    assert "count-params" in result.out


def test_a_command_completes_its_own_options_alone() -> None:
    environment = os.environ | {"_GPTCLI_COMPLETE": "complete_bash", "COMP_WORDS": "gptcli plot --", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "gptcli"]
    shown = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, env=environment).stdout.split()
    assert "--out" in shown
    assert "--install-completion" not in shown
