"""Every command line in the README is accounted for: run as it stands, or in a form that a rule here makes of it.

A command of a kind that no rule knows, such as one of another installer, fails the first test below.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import Ticking
from foreign import write_hf
from hub_server import Hub, serve, serve_as_the_hub
from models import tiny_checkpoint

import gptcli as package
from gptcli.checkpoints.formats import hub as hub_module
from gptcli.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
# Code in prose that is more than one word, and yet nothing to type into a shell.
NOT_TYPED = {"import gptcli", "mypy --strict", "--config run.toml"}


def blocks(language: str) -> str:
    """The fenced blocks of ``language``, one after the other."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL))


def typed() -> Iterator[str]:
    """Every line that a reader may type, once: a block of sh, a $ of console, and code of several words in prose."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]
    found = [line for line in blocks("sh").splitlines() if line]
    found += re.findall(r"^\$ (.+)$", blocks("console"), flags=re.MULTILINE)
    found += [span for span in spans if (" " in span and "←" not in span and span not in NOT_TYPED) or "/run" in span]
    yield from dict.fromkeys(found)


TYPED = list(typed())
# How a line is accounted for, by its first word.
OURS = [line for line in TYPED if line.startswith("gptcli ")]  # test_every_command_runs
MAKE = [line for line in TYPED if line.startswith("make ")]  # test_make_does_what_is_said
INSTALLERS = [line for line in TYPED if line.startswith(("pip install ", "pipx install "))]  # test_what_installs
ACTIVATE = ". .venv/bin/activate"  # test_what_installs
CONTINUOUS = ".ci/run"  # test_the_script_that_decides


def test_every_line_is_accounted_for() -> None:
    assert set(TYPED) == {*OURS, *MAKE, *INSTALLERS, ACTIVATE, CONTINUOUS}
    assert len(OURS) >= 22
    assert len(MAKE) >= 7
    assert len(INSTALLERS) >= 2


def test_blocks_of_commands_say_so() -> None:
    """A block without a language would not be looked at."""
    programs = {line.split()[0] for line in TYPED} | {"$", "python", "uv", "git", "pip3"}
    assert not [line for line in blocks("").splitlines() if line and line.split()[0] in programs]
    assert set(re.findall(r"^```(\w+)$", README, flags=re.MULTILINE)) == {"sh", "console", "python"}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1_800


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as the README's reader has it: texts, and checkpoints."""
    shutil.copytree(ROOT / "data", tmp_path / "data")
    for name in ("my.txt", "other.txt"):
        shutil.copy(ROOT / "data" / "story.txt", tmp_path / name)
    rows = '{"prompt": "One and one is", "completion": " two."}\n' * 2
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    shutil.copy(ROOT / "data" / "story.txt", tmp_path / "folder" / "a.txt")
    tiny_checkpoint(tmp_path / "checkpoints" / "letters", kind="gpt2", emb_dim=32, n_heads=2, labels=("bill", "love"))
    for name in ("my", "gpt2-small", "demo"):
        path = tiny_checkpoint(tmp_path / "checkpoints" / name, kind="gpt2", emb_dim=32, n_heads=2)
        rows = (ROOT / "tests" / "metrics.jsonl").read_text(encoding="utf-8")
        (path / "metrics.jsonl").write_text(rows, encoding="utf-8")
    return tmp_path


# A line that begins so -> what is replaced in it, and what is added. All else runs as it stands, the first that fits.
FORMS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    # Ten minutes by a clock that goes on by seconds with every look; a shape of its own is not chosen.
    "gptcli train my.txt --for 10m": ({}, ("--emb-dim", "16", "--n-layers", "1", "--threads", "1", "--force")),
    "gptcli train --resume my": ({}, ("--max-steps", "2")),
    "gptcli train my.txt --init-from": ({}, ("--max-steps", "1", "--force")),
    "gptcli train my.txt": ({}, ("--max-steps", "1", "--force", "--size", "tiny")),
    "gptcli train data/story.txt --for 90s": ({}, ("--emb-dim", "16", "--n-layers", "1", "--threads", "1")),
    "gptcli bench --size small": ({"small": "tiny"}, ("--work", "decode", "--repetitions", "1", "--tokens", "4")),
    "gptcli bench": ({}, ("--size", "tiny", "--work", "decode", "--repetitions", "1", "--tokens", "4")),
    # The story has pairs for 1,300 tokens.
    "gptcli train-tokenizer": ({"4096": "1024"}, ()),
}
NEEDS = {"--against": "transformers", "gguf": "gguf", "train-tokenizer": "tokenizers"}


def short_form(line: str) -> list[str]:
    """The arguments of a line, shortened by ``FORMS``."""
    replaced, added = next((form for start, form in FORMS.items() if line.startswith(start)), ({}, ()))
    return [*(replaced.get(word, word) for word in shlex.split(line)[1:]), *added]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """OpenAI's repository, pinned as it is, of a small model on this machine."""
    repo, commit = hub_module.PINNED["small"]
    with serve(Hub(write_hf(tmp_path / "served"), repo, commit)) as running:
        serve_as_the_hub(running, tmp_path / "cache", monkeypatch)
        monkeypatch.setitem(hub_module.SHA256, (commit, "model.safetensors"), running.etag("model.safetensors"))
        yield running


def run_line(gptcli: Any, line: str, request: pytest.FixtureRequest) -> Any:
    """The result of a line of gptcli's, with what it needs: a clock, a hub, a run that was stopped."""
    words = short_form(line)
    for word in NEEDS.keys() & set(words):
        pytest.importorskip(NEEDS[word])
    if "--for" in words:
        request.getfixturevalue("ticking").seconds = 5.0
    if words[:2] == ["load-gpt2", "--size"]:
        request.getfixturevalue("hub")
        shutil.rmtree("checkpoints")
    if "--resume" in words:
        first = gptcli("train", "my.txt", "--size", "tiny", "--max-steps", 1, "--sample-every", 0, "--force")
        assert first.code == 0, first.err
    return gptcli(*words)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    return Ticking.replacing(monkeypatch)


def every_command() -> Iterator[str]:
    """The lines of gptcli's; the one with the placeholder COMMAND for each command."""
    names = [name for panel in COMMANDS.values() for name in panel]
    for line in OURS:
        yield from (line.replace("COMMAND", name) for name in (names if "COMMAND" in line else [""]))


@pytest.mark.parametrize("line", [*every_command()])
def test_every_command_runs(gptcli: Any, workplace: Path, request: pytest.FixtureRequest, line: str) -> None:
    result = run_line(gptcli, line, request)
    if "1.5" in line:  # the mistake that the README shows
        result.assert_user_error(*README.split(f"$ {line}\n")[1].splitlines()[:2])
        return
    assert result.code == 0, result.err
    if "--for" in line.split():
        settings = tomllib.loads(Path("checkpoints/my/config.toml").read_text(encoding="utf-8"))
        assert settings["max_steps"] > 10
    if "load-gpt2 --size" in line:
        assert Path("checkpoints/gpt2-small/model.safetensors").exists()


def recipe_of(line: str, folder: Path) -> list[str]:
    """What a line of make's would run where nothing is installed yet."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    words = [*shlex.split(line), "--dry-run", f"VENV={folder / '.venv'}"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "does"),
    [
        ("make demo", ("pip install", "gptcli train data/story.txt --for 90s", "gptcli generate")),
        ("make test", ("-m pytest",)),
        ("make test-slow", ("-m pytest -m slow",)),
        ("make test-gpu PYTHON=python3.12", ("python3.12 -m pytest -m gpu",)),
        ("make lint", ("ruff check", "mypy", "lint-imports")),
        ("make package", ("-m build",)),
        ('make install TORCH="torch>=2.6"', ('"torch>=2.6"', "pip install")),
    ],
)
def test_make_does_what_is_said(tmp_path: Path, line: str, does: tuple[str, ...]) -> None:
    assert line in MAKE
    shown = "\n".join(recipe_of(line, tmp_path))
    assert all(each in shown for each in does), shown


def test_no_other_make_is_in_the_readme() -> None:
    (mark,) = (mark for mark in test_make_does_what_is_said.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {line for line, _ in mark.args[1]} == set(MAKE)


def test_what_make_demo_runs_runs(gptcli: Any, workplace: Path, request: pytest.FixtureRequest) -> None:
    lines = [line for line in recipe_of("make demo", workplace) if "/gptcli " in line]
    assert len(lines) == 2
    for line in lines:
        result = run_line(gptcli, re.sub(r"^\S+/gptcli", "gptcli", line), request)
        assert result.code == 0, result.err


def test_the_script_that_decides() -> None:
    script = ROOT / CONTINUOUS
    lines = script.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make lint", "make test"]
    assert os.name == "nt" or os.access(script, os.X_OK)


def test_the_names_that_installers_are_given_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in INSTALLERS:
        for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.+?)\]", line))):
            assert extra in project["optional-dependencies"]
        for wheel in re.findall(r"dist/\S+\.whl", line):
            assert wheel == f"dist/{package.__name__}-{package.__version__}-py3-none-any.whl"


@pytest.mark.slow
@pytest.mark.parametrize("line", INSTALLERS)
def test_what_installs(tmp_path: Path, line: str) -> None:
    """An installer's line in a fresh environment, without a network: what gptcli requires is this environment's.

    pipx makes an environment and calls pip, as is done here. The wheel's backend is the one that `make package` calls.
    """
    pytest.importorskip("hatchling", reason="it builds the wheel; the extra dev has it")
    clone, venv = tmp_path / "clone", tmp_path / ".venv"
    clone.mkdir()
    for name in ("gptcli", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (site,) = venv.glob("**/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP"))}
    options = "--no-index --no-build-isolation --disable-pip-version-check"
    build = f"python -m pip wheel . --no-deps {options} --wheel-dir dist" if ".whl" in line else "true"
    options += " --no-deps --force-reinstall"  # one of this version may be among the others
    install = re.sub(r"^(pip|pipx) install", f"python -m pip install {options}", line)
    script = f"{ACTIVATE.replace('.venv', str(venv))} && {build} && {install} && cd / && gptcli --version"
    shown = subprocess.run(["sh", "-c", script], cwd=clone, env=clean, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert f"gptcli {package.__version__}\n" in shown.stdout
    assert (site / "gptcli" / "guide" / "commands.md").is_file()


def test_the_layout_in_the_readme_is_the_tree() -> None:
    section = README.split("## How the code is laid out")[1].split("\n## ")[0]
    named = set(re.findall(r"^  (\w+(?:\.py|/))", section.split("```")[1], flags=re.MULTILINE))
    package_folder = ROOT / "gptcli"
    there = {p.name for p in package_folder.glob("[!_]*.py")}
    there |= {f"{p.name}/" for p in package_folder.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert named == there
    for path in re.findall(r"`((?:gptcli/)?[a-z_]+/[a-z_0-9/]+(?:\.py|/))`", section):
        assert (ROOT / path).exists() or (package_folder / path).exists(), path


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
