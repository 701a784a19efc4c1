"""A checkpoint directory as others see it, and what survives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import write_hf
from models import tiny_checkpoint, tiny_model

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint, safetensors_file
from gptcli.checkpoints.layout import WEIGHTS
from gptcli.checkpoints.numpy_weights import WeightFile
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPTModel


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, tie: bool, bias: bool) -> None:
    tokenizer = tokenizers.build("byte")
    model = tiny_model(vocab_size=257, tie_weights=tie, qkv_bias=bias)
    checkpoint.create(tmp_path / "run", model, tokenizer, {"step": 7})
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.config == model.config
    assert loaded.training == {"step": 7}
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    for name, tensor in loaded.model().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    stored = safetensors_file.read_tensors(tmp_path / "run" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tie
    assert "h.0.attn.c_attn.bias" in stored


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_transformers_opens_it_as_it_is(tmp_path: Path, tie: bool, bias: bool) -> None:
    transformers = pytest.importorskip("transformers")
    path = tiny_checkpoint(tmp_path / "run", kind="gpt2", emb_dim=24, tie_weights=tie, qkv_bias=bias)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    words = transformers.AutoTokenizer.from_pretrained(path)
    loaded = checkpoint.load(path)
    text = "Every effort moves you, naïve café 🤗"
    ids = words(text)["input_ids"]
    assert ids == loaded.tokenizer.encode(text)
    assert words.decode(ids) == text
    batch = torch.tensor([ids])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model()(batch), theirs(batch).logits, atol=1e-4, rtol=1e-4)
        greedy = theirs.generate(batch[:, :4], max_new_tokens=10, min_new_tokens=10, do_sample=False, pad_token_id=0)
    from uncached import continuation

    from gptcli.config.sampling import SamplingConfig

    mine = continuation(loaded.model(), ids[:4], max_new_tokens=10, sampling=SamplingConfig(temperature=0), seed=0)
    assert greedy[0, 4:].tolist() == [token.id for token in mine]


@pytest.mark.parametrize("tie", [True, False])
def test_it_opens_again_after_transformers_has_saved_it(gptcli: Any, tmp_path: Path, tie: bool) -> None:
    transformers = pytest.importorskip("transformers")
    path = tiny_checkpoint(tmp_path / "run", kind="gpt2", emb_dim=24, tie_weights=tie)
    shutil.copytree(path, tmp_path / "again")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    theirs.save_pretrained(tmp_path / "again")
    header = safetensors_file.read_header(tmp_path / "again" / WEIGHTS)
    assert any(name.startswith("transformer.h.0") for name in header.tensors)
    before, again = checkpoint.load(path), checkpoint.load(tmp_path / "again")
    assert before.config == again.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert set(WeightFile(tmp_path / "again" / WEIGHTS, again.config)) == set(before.tensors)
    texts = [
        gptcli("generate", "the", "-c", where, "-n", 4, "--temperature", 0).out for where in (path, tmp_path / "again")
    ]
    assert texts[0] == texts[1] != ""


def test_a_directory_that_is_only_transformers_own_says_how_to_bring_it_in(gptcli: Any, tmp_path: Path) -> None:
    path = write_hf(tmp_path / "model")
    gptcli("generate", "the", "-c", path).assert_user_error("config.json", f"gptcli load-gpt2 --from {path}")


@pytest.mark.parametrize(
    ("field", "value"),
    [("context_length", 99999999999999999999), ("vocab_size", 2**63), ("emb_dim", 2**31), ("n_layers", 10**9),
     ("ffn_dim", 10**12), ("n_heads", 10**6), ("context_length", 9_999_999), ("vocab_size", 99_999_999),
     ("n_layers", 9_999), ("layer_norm_eps", 10**400)],
)  # fmt: skip
def test_a_config_with_sizes_of_no_model_is_refused(gptcli: Any, tmp_path: Path, field: str, value: int) -> None:
    run = tiny_checkpoint(tmp_path / "run")
    file = run / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["gptcli"]["config"][field] = value
    file.write_text(json.dumps(config), encoding="utf-8")
    for command in (("generate", "the", "-c", run), ("export", run, tmp_path / "out"), ("quantize", run)):
        gptcli(*command).assert_user_error(str(run))
    with pytest.raises(GptcliError):
        checkpoint.load(run)


def test_an_error_lists_five_tensors_at_most(tmp_path: Path) -> None:
    run = tiny_checkpoint(tmp_path / "run", n_layers=3)
    file = run / WEIGHTS
    tensors = {f"x{name}": tensor.clone() for name, tensor in safetensors_file.read_tensors(file).items()}
    safetensors_file.write_tensors(file, tensors)
    with pytest.raises(GptcliError, match=r"missing: .* and 35 more; not GPT-2's: .* and 35 more") as caught:
        checkpoint.load(run)
    assert len(caught.value.message) < 700 + len(str(run))


def test_config_json_has_what_converters_ask_for(tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint(tmp_path / "run") / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "gpt2"
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert (config["n_positions"], config["n_ctx"], config["n_embd"]) == (20, 20, 42)
    assert (config["n_head"], config["n_layer"], config["vocab_size"]) == (3, 2, 257)


def test_loading_copies_nothing_and_never_writes_back(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "run")
    before = (path / "model.safetensors").read_bytes()
    loaded = checkpoint.load(path)
    model = loaded.model()
    assert model.wte.weight.data_ptr() == loaded.tensors["wte.weight"].data_ptr()
    with torch.no_grad():
        model.wte.weight.zero_()
    assert (path / "model.safetensors").read_bytes() == before


def test_huge_but_finite_weights_are_finite() -> None:
    assert checkpoint.all_finite(torch.full((1000,), 3e38))
    assert not checkpoint.all_finite(torch.tensor([1.0, torch.inf]))
    assert not checkpoint.all_finite(torch.tensor([torch.nan, 1.0]))


def test_a_qkv_bias_in_a_model_without_one_is_a_contradiction(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "run", qkv_bias=False)
    file = path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in safetensors_file.read_tensors(file).items()}
    tensors["h.1.attn.c_attn.bias"][5] = 0.5
    safetensors_file.write_tensors(file, tensors)
    with pytest.raises(GptcliError, match=r"h\.1\.attn\.c_attn\.bias is not zero"):
        checkpoint.load(path)


def test_a_run_replaced_by_force_is_there_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_checkpoint(tmp_path / "run")
    before = (path / "model.safetensors").read_bytes()

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "_serialize", refuse)
    with pytest.raises(GptcliError):
        checkpoint.create(path, GPTModel(checkpoint.load(path).config), tokenizers.build("byte"), {}, force=True)
    assert (path / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def number_the_format(run: Path, number: object) -> None:
    file = run / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["gptcli"] = {"format": number} if number == 2 else config["gptcli"] | {"format": number}
    file.write_text(json.dumps(config), encoding="utf-8")


def test_a_newer_format_is_refused_whatever_else_it_holds(gptcli: Any, tmp_path: Path, story: Path) -> None:
    options = ("--tokenizer", "char", "--emb-dim", 16, "--n-heads", 2, "--n-layers", 1, "--context-length", 16)
    assert gptcli("train", story, *options, "--max-steps", 1, "--dtype", "float32", "--out", "run").code == 0
    assert "format" not in json.loads(Path("run/config.json").read_text(encoding="utf-8"))["gptcli"]
    number_the_format(Path("run"), 1)
    assert checkpoint.load(Path("run")).training["step"] == 1
    number_the_format(Path("run"), 2)
    for command in (
        ("generate", "the", "-c", "run"), ("evaluate", story, "-c", "run"), ("export", "run", "out"),
        ("quantize", "run"), ("train", "--resume", "run", "--max-steps", 2), ("checkpoints", "run"),
        ("train", story, "--init-from", "run", "--out", "more"),
    ):  # fmt: skip
        gptcli(*command).assert_user_error("config.json is of format 2", "up to 1", "Update gptcli")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "story.txt"]


@pytest.mark.parametrize("number", [0, "2", 1.5, True, None])
def test_a_format_that_is_no_number_is_refused(tmp_path: Path, number: object) -> None:
    run = tiny_checkpoint(tmp_path / "run")
    number_the_format(run, number)
    with pytest.raises(GptcliError, match="format is"):
        checkpoint.load(run)
