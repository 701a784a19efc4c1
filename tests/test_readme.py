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
MAKE = sorted(set(re.findall(r"^\$ (make .+)$|`(make [a-z-]+)", README, flags=re.MULTILINE)))
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL))
OURS = list(dict.fromkeys(re.findall(r"`(gptcli [^`]+)`", README) + re.findall(r"^gptcli .+$", BLOCKS, re.MULTILINE)))
NOT_RUN = {
    "gptcli COMMAND --help": "a placeholder",
    "gptcli train my.txt --for 10m": "tests/cli/test_for_time.py runs it by a clock of its own",
    "gptcli load-gpt2 --size small": "tests/checkpoints/formats/test_hub.py runs it against a server of its own",
}
# What makes a command short; all else of it is run as it stands.
SHORT = {
    "train": ("--max-steps", "1", "--force"),
    "bench": ("--work", "decode", "--repetitions", "1", "--tokens", "4"),
}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1_800


def test_the_readme_has_commands_and_we_know_each_kind() -> None:
    assert len(OURS) >= 18
    assert set(NOT_RUN) <= set(OURS)
    prompts = re.findall(r"^\$ (\S+)", README, flags=re.MULTILINE)
    assert set(prompts) == {"make"}


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


@pytest.mark.parametrize("command", [command for command in OURS if command not in NOT_RUN])
def test_every_command_runs(gptcli: Any, workplace: Path, command: str) -> None:
    words = shlex.split(command)[1:]
    if "--resume" in words:
        first = gptcli("train", "my.txt", "--size", "tiny", "--max-steps", 1, "--sample-every", 0, "--force")
        assert first.code == 0, first.err
        words += ["--max-steps", "2"]
    else:
        words += SHORT.get(words[0], ())
    if words[0] == "train" and not {"--size", "--init-from", "--resume"} & set(words):
        words += ["--size", "tiny"]
    if words[0] == "bench":
        pytest.importorskip("transformers")
        words = [*(word for word in words if word not in ("--size", "small")), "--size", "tiny"]
    if "gguf" in words:
        pytest.importorskip("gguf")
    if words[0] == "train-tokenizer":
        pytest.importorskip("tokenizers")
        words[words.index("4096")] = "300"
    result = gptcli(*words)
    if "1.5" in words:  # the mistake that the README shows
        shown = README.split(f"{command}\n")[1].splitlines()[:2]
        result.assert_user_error(*shown)
        return
    assert result.code == 0, result.err


@pytest.mark.parametrize("command", [first or second for first, second in MAKE])
def test_every_make_target_exists(command: str) -> None:
    target = command.split()[1]
    result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
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
