"""gptcli export and gptcli checkpoints, on real two-layer checkpoints."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import CONFIG, random_tensors, write_hf
from models import tiny_checkpoint

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.checkpoints.formats import gguf_file, names

GPT2 = CONFIG.with_changes(vocab_size=50_257, emb_dim=64, n_heads=1)


@pytest.fixture
def small(gptcli: Any, tmp_path: Path) -> Path:
    """checkpoints/small, with GPT-2's tokenizer."""
    write_hf(tmp_path / "small", random_tensors(GPT2), GPT2)
    assert gptcli("load-gpt2", "--from", "small").code == 0
    return Path("checkpoints/small")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_another_dtype_opens_in_transformers(gptcli: Any, small: Path, tmp_path: Path, dtype: str) -> None:
    transformers = pytest.importorskip("transformers")
    assert "read back" in gptcli("export", small, "out", "--dtype", dtype).out
    opened = transformers.AutoModelForCausalLM.from_pretrained("out")
    assert opened.dtype == getattr(torch, dtype)
    expected = random_tensors(GPT2)["h.1.mlp.c_fc.weight"].to(opened.dtype)
    assert torch.equal(opened.transformer.h[1].mlp.c_fc.weight, expected)
    assert Path("out/vocab.json").read_bytes() == (small / "vocab.json").read_bytes()


def test_an_exported_checkpoint_is_a_checkpoint(gptcli: Any, tmp_path: Path) -> None:
    """A model without qkv bias writes zeros there, and keeps its tokenizer and what it knows of its training."""
    made = tiny_checkpoint(tmp_path / "checkpoints" / "tiny", "char", "abcde", qkv_bias=False, tie_weights=False)
    assert gptcli("export", "tiny", "out", "--dtype", "float32").code == 0
    one, other = checkpoint.load(made), checkpoint.load(tmp_path / "out")
    assert one.config == other.config
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in one.tensors.items())


class Fields:
    """What a GGUF file says of itself, each field parsed when asked for: the vocabulary is long."""

    def __init__(self, reader: Any) -> None:
        self.fields = reader.fields

    def __getitem__(self, name: str) -> Any:
        return self.fields[name].contents()


def test_gguf_holds_the_model_and_its_vocabulary(gptcli: Any, small: Path) -> None:
    gguf = pytest.importorskip("gguf")
    assert gptcli("export", small, "out", "--format", "gguf").code == 0
    reader = gguf.GGUFReader("out/small-f16.gguf")
    value = Fields(reader)
    assert value["general.architecture"] == "gpt2"
    assert (value["gpt2.block_count"], value["gpt2.attention.head_count"]) == (2, 1)
    assert (value["gpt2.context_length"], value["gpt2.feed_forward_length"]) == (20, 256)
    assert (value["tokenizer.ggml.model"], value["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens = value["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[15496]) == (50_257, "Hello")
    assert value["tokenizer.ggml.merges"][:2] == ["Ġ t", "Ġ a"]
    assert value["tokenizer.ggml.eos_token_id"] == 50_256
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(random_tensors(GPT2))
    ours = random_tensors(GPT2)
    qkv = ours["h.0.attn.c_attn.weight"].t().half().numpy()
    assert np.array_equal(tensors["blk.0.attn_qkv.weight"].data, qkv)
    assert np.array_equal(tensors["blk.1.attn_norm.bias"].data, ours["h.1.ln_1.bias"].numpy())
    assert np.array_equal(tensors["token_embd.weight"].data, ours["wte.weight"].half().numpy())


@pytest.mark.slow
def test_gguf_in_bfloat16_with_spare_rows_and_its_own_head(gptcli: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    config = GPT2.with_changes(vocab_size=50_260, tie_weights=False)
    write_hf(tmp_path / "padded", random_tensors(config), config)
    tokenizers.build("gpt2").save(tmp_path / "padded")
    assert gptcli("load-gpt2", "--from", "padded").code == 0
    assert gptcli("export", "checkpoints/padded", "out", "--format", "gguf", "--dtype", "bfloat16").code == 0
    reader = gguf.GGUFReader("out/padded-bf16.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    head = random_tensors(config)[names.HEAD].bfloat16().view(torch.int16).numpy()
    assert tensors["output.weight"].data.tobytes() == head.tobytes()
    assert reader.fields["tokenizer.ggml.tokens"].contents()[-1] == "[PAD50259]"


def test_what_llama_cpp_cannot_compute_is_refused(gptcli: Any, tmp_path: Path) -> None:
    write_hf(tmp_path / "relu", config=GPT2.with_changes(activation="relu"))
    gptcli("load-gpt2", "--from", "relu")
    gptcli("export", "checkpoints/relu", "out", "--format", "gguf").assert_user_error("activation", "relu", "hf")
    tiny_checkpoint(tmp_path / "checkpoints" / "bytes")
    gptcli("export", "bytes", "out", "--format", "gguf").assert_user_error("kind byte")
    assert not Path("out").exists()


def test_gguf_that_reads_back_differently_is_not_called_done(
    gptcli: Any, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    write = gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", lambda self, array: write(self, array * 0))
    gptcli("export", small, "out", "--format", "gguf").assert_user_error("is not what was written")
    assert list(Path("out").iterdir()) == []


def test_without_the_gguf_package(gptcli: Any, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    gptcli("export", small, "out", "--format", "gguf").assert_user_error("not installed", "gptcli[gguf]")


def test_a_weight_too_large_for_float16(gptcli: Any, tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["ln_f.weight"][0] = 1e5
    write_hf(tmp_path / "large", tensors)
    gptcli("load-gpt2", "--from", "large")
    gptcli("export", "checkpoints/large", "out").assert_user_error("ln_f.weight holds 1e+05", "bfloat16")
    assert gptcli("export", "checkpoints/large", "out", "--dtype", "bfloat16").code == 0


def test_mistakes(gptcli: Any, small: Path) -> None:
    gptcli("export", "smal", "out").assert_user_error("smal", "small")
    gptcli("export", small, "out", "--format", "onnx").assert_user_error("'onnx'", "gguf")
    gptcli("export", small, "out", "--dtype", "int8").assert_user_error("'int8'")
    gptcli("export", small, small, "--force").assert_user_error("is what this command reads")
    gptcli("export", small, "checkpoints", "--force").assert_user_error("checkpoints holds", "what this command reads")
    Path("a-file").write_text("", encoding="utf-8")
    gptcli("export", small, "a-file/x", "--format", "gguf").assert_user_error("a-file")
    Path("out").mkdir()
    Path("out/small-f16.gguf").write_text("", encoding="utf-8")
    result = gptcli("export", small, "out", "--format", "gguf", "--force")
    result.assert_user_error("exists already, and is not a GGUF file")
    assert "--force" not in result.err


def test_the_table_of_checkpoints(gptcli: Any, small: Path, tmp_path: Path) -> None:
    trained = tiny_checkpoint(tmp_path / "checkpoints" / "trained", "char", "abcde")
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    config["gptcli"]["training"] = {"step": 1200, "val_loss": 1.234567, "text": "story.txt"}
    (trained / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tuned = shutil.copytree(trained, tmp_path / "checkpoints" / "tuned")
    config["gptcli"]["training"] |= {"best": {"step": -1, "val_loss": 1.125}}
    (tuned / "config.json").write_text(json.dumps(config), encoding="utf-8")
    os.utime(tuned / "model.safetensors", (1e9, 1e9))
    os.utime(trained / "model.safetensors", (2e9, 2e9))
    broken = shutil.copytree(trained, tmp_path / "checkpoints" / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints" / "not-one").mkdir()

    rows = gptcli("checkpoints", "--json").json
    assert [row["name"] for row in rows] == ["trained", "small", "tuned", "broken"]
    assert (rows[0]["step"], rows[0]["val_loss"], rows[0]["tokenizer"]) == (1200, 1.234567, "char")
    assert rows[1]["parameters"] == sum(tensor.numel() for tensor in random_tensors(GPT2).values())
    assert rows[1]["bytes"] == (small / "model.safetensors").stat().st_size
    assert "holds 0 bytes" in rows[3]["error"]
    result = gptcli("checkpoints")
    lines = result.out.splitlines()
    assert next(line for line in lines if "trained" in line).split()[-3:-1] != []
    assert "1,200" in result.out
    assert "1.235" in result.out
    assert "(1.125 before the first step)" in " ".join(result.out.split())
    assert "damaged" in result.out
    assert "broken" in result.err

    details = gptcli("checkpoints", "trained").out
    for words in ("context_length", "1 200", "training: text", "story.txt", "config.json", "tensors of F32"):
        assert words.replace("1 200", "1200") in details
    gptcli("checkpoints", "traned").assert_user_error("traned", "Did you mean trained?")
    gptcli("checkpoints", "broken").assert_user_error("holds 0 bytes")


def test_no_checkpoints_yet(gptcli: Any) -> None:
    result = gptcli("checkpoints")
    assert (result.code, result.out) == (0, "")
    assert "load-gpt2" in result.err
    assert gptcli("checkpoints", "--json").json == []


@pytest.mark.slow
def test_gguf_leaves_nothing_where_the_disk_refuses(
    small: Path, tmp_path: Path, gptcli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_file.os, "fsync", full)
    gptcli("export", small, "out", "--format", "gguf").assert_user_error("No space left")
    assert list(Path("out").iterdir()) == []
