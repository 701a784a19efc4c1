"""Adapters on the command line: merge, --adapter, and every command that opens or lists a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from models import tiny_adapter, tiny_checkpoint

from gptcli.checkpoints import layout, safetensors_file


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """checkpoints/tuned, an adapter on checkpoints/base."""
    root = tmp_path / "checkpoints"
    root.mkdir()
    tiny_adapter(root / "tuned", tiny_checkpoint(root / "base", context_length=40))
    return root / "tuned"


def text(gptcli: Any, *words: object) -> str:
    result = gptcli(*GENERATE, "--temperature", 0, "--max-new-tokens", 12, "--threads", 1, *words)
    assert result.code == 0, result.err
    return str(result.out)


def test_merge_and_the_ways_to_open_an_adapter(gptcli: Any, adapter: Path) -> None:
    result = gptcli("merge", "tuned", "--out", "merged")
    assert result.code == 0, result.err
    assert result.out.startswith("merged: ")
    assert "base with checkpoints" in result.out
    expected = text(gptcli, "-c", "merged")
    assert expected != text(gptcli, "-c", "base")
    assert expected == text(gptcli, "-c", "tuned") == text(gptcli, "--adapter", "tuned")
    assert expected == text(gptcli, "-c", "base", "--adapter", "tuned", "--engine", "torch")
    gptcli("merge", "tuned", "--out", "merged").assert_user_error("merged exists already", "--force")
    again = gptcli("merge", "tuned", "-c", "base", "--out", "merged", "--force")
    assert again.code == 0, again.err


def test_without_a_name_the_new_checkpoint_is_beside_the_adapter(
    gptcli: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = gptcli("merge", "tuned")
    merged = adapter.with_name("tuned-merged")
    assert result.code == 0, result.err
    assert Path(result.out.partition(":")[0]) == merged.relative_to(Path.cwd())
    assert text(gptcli, "-c", "tuned-merged") == text(gptcli, "-c", "tuned")
    gptcli("merge", "tuned").assert_user_error("tuned-merged exists already", "--force")
    monkeypatch.chdir(adapter)
    gptcli("merge", ".").assert_user_error("tuned-merged exists already", "--force")
    assert gptcli("quantize", ".").code == 0
    assert adapter.with_name("tuned-int8").is_dir()


def test_the_newest_checkpoint_may_be_an_adapter(gptcli: Any, adapter: Path) -> None:
    result = gptcli(*GENERATE, "--max-new-tokens", 2)
    assert "Using checkpoints/tuned" in result.err.replace("\\", "/")


def test_what_is_measured_and_looked_at_is_the_merged_model(gptcli: Any, adapter: Path, story: Path) -> None:
    assert gptcli("merge", "tuned", "--out", "merged").code == 0
    found = [gptcli("evaluate", story, *words, "--json").json for words in (("-c", "merged"), ("--adapter", "tuned"))]
    losses = [each["results"][0]["per_token"]["nats"] for each in found]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for command in ("inspect-logits", "inspect-attn", "inspect-flow", "inspect-gradients"):
        merged, put_on = (
            gptcli(command, "abcd", *words, "--json", "-").json for words in (("-c", "merged"), ("--adapter", "tuned"))
        )
        assert put_on["checkpoint"].endswith("tuned")
        assert merged["tokens"] == put_on["tokens"]
    assert gptcli("inspect-embeddings", "ab", "--adapter", "tuned").code == 0
    gptcli("evaluate", story, "-c", "base", "-c", "merged", "--adapter", "tuned").assert_user_error("2 checkpoints")


def test_adapters_are_listed_counted_exported_and_packed(gptcli: Any, adapter: Path) -> None:
    rows = {row["name"]: row for row in gptcli("checkpoints", "--json").json}
    assert rows["base"]["adapter"] is None
    assert rows["tuned"]["adapter"]["rank"] == 3
    assert rows["tuned"]["adapter"]["parameters"] == 2 * 3 * (4 * 42 + 2 * 42 + 5 * 42 + 5 * 42)
    assert Path(rows["tuned"]["adapter"]["base"]) == adapter.parent / "base"
    details = gptcli("checkpoints", "tuned")
    assert "adapter: rank" in details.out
    counted = gptcli("count-params", "tuned")
    assert counted.code == 0
    assert "is an adapter of" in counted.err
    for words in (("export", "tuned", "exported", "--dtype", "float32"), ("quantize", "tuned", "--out", "packed")):
        result = gptcli(*words)
        assert result.code == 0, result.err
    assert text(gptcli, "-c", "exported") == text(gptcli, "-c", "tuned")
    assert not layout.is_adapter(Path("packed"))
    gptcli("quantize", "packed").assert_user_error("packed in 8 bits already")


def test_an_adapter_may_be_replaced_by_force_alone(gptcli: Any, adapter: Path) -> None:
    gptcli("quantize", "base", "--out", adapter).assert_user_error("exists already", "--force")
    assert gptcli("quantize", "base", "--out", adapter, "--force").code == 0
    assert not layout.is_adapter(adapter)


GENERATE = ("generate", "abc", "--engine", "torch")  # without numba, auto says in a line that it takes torch


def test_mistakes(gptcli: Any, adapter: Path) -> None:
    gptcli("merge", "base", "--out", "new").assert_user_error("is no adapter", "adapter_config.json")
    gptcli(*GENERATE, "--adapter", "base").assert_user_error("is no adapter", "-c")
    gptcli(*GENERATE, "--adapter", "nothing").assert_user_error("There is no checkpoint nothing")
    shutil.copytree(adapter.parent / "base", adapter.parent / "other")
    weights = adapter.parent / "other" / layout.WEIGHTS
    tensors = {name: tensor + 1 for name, tensor in safetensors_file.read_tensors(weights).items()}
    safetensors_file.write_tensors(weights, tensors)
    gptcli(*GENERATE, "-c", "other", "--adapter", "tuned").assert_user_error("other weights", "CRC-32")
    shutil.rmtree(adapter.parent / "base")
    for words in ((*GENERATE, "-c", "tuned"), ("inspect-logits", "abc", "-c", "tuned"), ("quantize", "tuned")):
        gptcli(*words).assert_user_error("is an adapter for", "which is not there", "--adapter")
    gptcli("merge", "tuned", "--out", "new").assert_user_error("which is not there")
    assert not Path("new").exists()
    (adapter / layout.CONFIG).unlink()
    tiny_checkpoint(Path("here"))
    gptcli("merge", "checkpoints/here").assert_user_error("no checkpoint checkpoints/here", "Did you mean here?")
    gptcli(*GENERATE, "-c", "tuned").assert_user_error("does not say which checkpoint it changes", "--adapter")
    gptcli("load-gpt2", "--from", adapter, "--out", "new").assert_user_error("is an adapter", "gptcli merge")
