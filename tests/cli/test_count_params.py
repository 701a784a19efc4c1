"""gptcli count-params through the real app."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.fields import as_dict
from gptcli.config.model import GPTConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """All that the command reads of a checkpoint: its config.json."""
    path = tmp_path / "checkpoints" / "story"
    path.mkdir(parents=True)
    config = GPTConfig(vocab_size=65, context_length=32, emb_dim=48, n_heads=3, n_layers=2, tie_weights=False)
    text = json.dumps({"model_type": "gpt2", "gptcli": {"config": as_dict(config)}})
    (path / "config.json").write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ([], 124_439_808),
        (["--size", "medium"], 354_823_168),
        (["--size", "large"], 774_030_080),
        (["--size", "xl"], 1_557_611_200),
        (["--size", "gpt3"], 174_604_259_328),
        (["--no-tie-weights"], 163_037_184),
        (["--no-tie-weights", "--no-qkv-bias"], 163_009_536),
        (["--emb-dim", 1_024, "--n-heads", 16, "--n-layers", 24], 354_823_168),
        (["--vocab-size", 10, "--context-length", 4, "--emb-dim", 8, "--n-heads", 2, "--n-layers", 1], 1_000),
    ],
)
def test_totals_in_table_and_json(gptcli: Any, options: list[object], total: int) -> None:
    table = gptcli("count-params", *options)
    assert table.code == 0, table.err
    assert f"{total:,} parameters" in table.out
    report = gptcli("count-params", *options, "--json").json
    assert report["parameters"]["total"] == total
    assert sum(part["parameters"] for part in report["components"]) == total
    assert all(part["per_layer"] * part["layers"] == part["parameters"] for part in report["components"])


@pytest.mark.parametrize("size", ["tiny", "small", "xl", "gpt3-2.7b"])
def test_printed_percentages_add_up_to_100(gptcli: Any, size: str) -> None:
    rows = re.findall(r"^ +(\S.*?) .* (\d+\.\d) +$", gptcli("count-params", "--size", size).out, re.MULTILINE)
    tenths = [int(share.replace(".", "")) for name, share in rows if name != "total"]
    assert len(tenths) == 8
    assert sum(tenths) == 1_000
    assert ("total", "100.0") in rows


def test_every_figure_is_in_the_table(gptcli: Any) -> None:
    out = gptcli("count-params").out
    for figure in (
        "163,037,184",
        "497.76 MB",
        "248.88 MB",
        "127.70 MB",
        "73.12 MB",
        "73.73 kB",
        "75.50 MB",
        "0.247",
        "batch 4 × 256",
    ):
        assert figure in out
    assert "V100" not in out
    assert "355.93" in gptcli("count-params", "--size", "gpt3").out


def test_training_options_change_the_activations(gptcli: Any) -> None:
    def activations(*options: object) -> int:
        memory = gptcli("count-params", "--json", *options).json["training_memory"]
        assert memory["recompute"]["activations"] < memory["plain"]["activations"]
        return int(memory["plain"]["activations"])

    assert activations("--batch-size", 8) == pytest.approx(2 * activations(), rel=0.001)
    assert activations("--train-context", 1_024) > 4 * activations()
    assert activations("--drop-rate", 0) < activations()
    assert activations("--context-length", 64) == activations("--train-context", 64)


def test_checkpoint_by_path_by_name_and_as_an_option(gptcli: Any, checkpoint: Path) -> None:
    by_path = gptcli("count-params", checkpoint, "--json").json
    by_name = gptcli("count-params", "story", "--json").json
    by_option = gptcli("count-params", "--checkpoint", "story", "--json").json
    assert by_path["config"] == by_name["config"] == by_option["config"]
    assert by_path["parameters"] == by_name["parameters"] == by_option["parameters"]
    assert by_path["parameters"]["total"] == by_path["parameters"]["untied"] == 64_416
    assert "story: " in gptcli("count-params", "story").out
    wider = gptcli("count-params", "story", "--vocab-size", 100, "--json").json
    assert wider["parameters"]["total"] - by_path["parameters"]["total"] == 2 * 35 * 48


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "smal"], ["smal", "small"]),
        (["--size", "gpt3-14b"], ["gpt3-14b", "gpt3-13b"]),
        (["--emb-dim", 100], ["100", "12"]),
        (["--n-layers", 0], ["--n-layers", "0"]),
        (["--vocab-size", -3], ["--vocab-size", "-3"]),
        (["--context-length", 0], ["--context-length"]),
        (["--n-heads", "many"], ["--n-heads", "whole number", "--help"]),
        (["--drop-rate", "nan"], ["--drop-rate", "nan"]),
        (["--drop-rate", 1], ["--drop-rate", "1"]),
        (["--batch-size", 0], ["--batch-size", "0"]),
        (["--train-context", 0], ["--train-context", "0"]),
        (["--train-context", 1_025], ["1025", "1024"]),
        (["nowhere"], ["nowhere"]),
        (["--checkpoint", "nowhere"], ["nowhere"]),
        (["here", "--checkpoint", "there"], ["here", "there"]),
        (["here", "--size", "small"], ["here", "small"]),
    ],
)
def test_bad_arguments(gptcli: Any, arguments: list[object], words: list[str]) -> None:
    gptcli("count-params", *arguments).assert_user_error(*words)


def test_a_mistyped_checkpoint_names_the_nearest(gptcli: Any, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").touch()
    gptcli("count-params", "stroy").assert_user_error("stroy", "Did you mean story?")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(None, ["is empty"], id="empty directory"),
        pytest.param(b"{", ["config.json"], id="not JSON"),
        pytest.param(b"\xff\xfe\x00", ["config.json"], id="not UTF-8"),
        pytest.param(b'{"n_embd": 768}', ["gptcli"], id="not ours"),
        pytest.param(b'{"gptcli": {"config": {"emb_dim": 7, "n_heads": 2}}}', ["7", "2"], id="impossible shape"),
        pytest.param(b'{"gptcli": {"config": {"emb_dim": "wide"}}}', ["wide"], id="not a number"),
        pytest.param(b'{"gptcli": {"config": [1]}}', ["config.json"], id="not a shape"),
    ],
)
def test_bad_checkpoint(gptcli: Any, tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    path = tmp_path / "broken"
    path.mkdir()
    if content is not None:
        (path / "config.json").write_bytes(content)
    gptcli("count-params", path).assert_user_error(*words)


def test_a_file_is_no_checkpoint(gptcli: Any, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Once", encoding="utf-8")
    gptcli("count-params", "story.txt").assert_user_error("story.txt", "directory")


# Speed


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["count-params", "--size", "xl"], ["count-params", "--json"], ["count-params", "{checkpoint}"]],
)
def test_answers_without_torch(arguments: list[str], checkpoint: Path) -> None:
    program = f"""
import sys
from gptcli.cli import main
assert main({[argument.format(checkpoint=checkpoint) for argument in arguments]!r}) == 0
slow = {{"torch", "numpy", "matplotlib", "tiktoken", "safetensors", "psutil"}} & sys.modules.keys()
assert not slow, slow
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 0.4), (["count-params", "--size", "xl"], 0.6)])
def test_answers_in_a_blink(arguments: list[str], limit: float) -> None:
    """Seconds of processor time: on a quiet machine those of the clock, and on a busy one still this command's own."""

    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "gptcli", *arguments], cwd=ROOT, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < limit
