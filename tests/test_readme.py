"""Every command line in the README is run, and what it says of the code's layout is the tree."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = list(dict.fromkeys(re.findall(r"^\$ (.+)$", README, flags=re.MULTILINE)))
OURS = [command for command in COMMANDS if command.startswith("gptcli ")]
MAKE = [command for command in COMMANDS if command.startswith("make ")]


def test_the_readme_has_commands_and_we_know_each_kind() -> None:
    assert len(OURS) >= 8
    assert {"make demo", "make test"} <= set(MAKE)
    others = set(COMMANDS) - set(OURS) - set(MAKE)
    assert all(command.startswith(("git clone", "cd ", "source ", ". ")) for command in others), others


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as the README's reader has it: the bundled story, and two checkpoints."""
    shutil.copytree(ROOT / "data", tmp_path / "data")
    shutil.copytree(ROOT / "tests" / "checkpoints" / "formats" / "tf-gpt2-tiny", tmp_path / "tf-gpt2-tiny")
    for name in ("demo", "the-verdict"):
        path = tiny_checkpoint(tmp_path / "checkpoints" / name, kind="gpt2", emb_dim=12, n_heads=3)
        rows = (ROOT / "tests" / "metrics.jsonl").read_text(encoding="utf-8")
        (path / "metrics.jsonl").write_text(rows, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", OURS)
def test_every_command_runs(
    gptcli: Any, workplace: Path, command: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "download":
        from gptcli.data import download

        request.getfixturevalue("the_verdict")
        for text in download.TEXTS.values():
            shutil.copy(request.getfixturevalue(text.filename.split(".")[0].replace("-", "_")), workplace / "data")
    if words[0] == "train":
        # The command as it stands, cut to one step; a small model where the README trains GPT-2 small.
        words += ["--max-steps", "1", "--force"] + ([] if "--size" in words else ["--size", "tiny"])
        if "the-verdict" in command:
            shutil.copy(request.getfixturevalue("the_verdict"), workplace / "data")
        if "tinyshakespeare" in command:
            shutil.copy(request.getfixturevalue("tinyshakespeare"), workplace / "data")
    result = gptcli(*words)
    assert result.code == 0, result.err


@pytest.mark.parametrize("command", MAKE)
def test_every_make_target_exists(command: str) -> None:
    result = subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_layout_in_the_readme_is_the_tree() -> None:
    section = README.split("## How the code is laid out")[1].split("\n## ")[0]
    named = set(re.findall(r"^  (\w+(?:\.py|/))", section.split("```")[1], flags=re.MULTILINE))
    package = ROOT / "gptcli"
    there = {p.name for p in package.glob("[!_]*.py")}
    there |= {f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert named == there
    for path in re.findall(r"`((?:gptcli/)?[a-z_]+/[a-z_0-9/]+(?:\.py|/))`", section):
        assert (ROOT / path).exists() or (package / path).exists(), path


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
