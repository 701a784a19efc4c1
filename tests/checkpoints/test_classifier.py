"""Classifiers on disk: Hugging Face's layout, the start from a language model, and what refuses them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_checkpoint, tiny_config

from gptcli import api, tokenizers
from gptcli.checkpoints import checkpoint, safetensors_file
from gptcli.checkpoints.formats import hf
from gptcli.checkpoints.numpy_weights import WeightFile
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError
from gptcli.model import cost
from gptcli.model.gpt import GPTModel
from gptcli.model.parameters import parameter_shapes
from gptcli.tokenizers import Tokenizer

LABELS = ("ham", "spam", "9")
TEXTS = ("a cab", "bead", "dad faced a cabbage", "a")
ALPHABET = "abcdefg "


def tokenizer_of(kind: str) -> Tokenizer:
    return tokenizers.build(kind, "a cab bead dad faced a cabbage" + ALPHABET)


def classifier(path: Path, kind: str = "byte", **changes: Any) -> Path:
    """A classifier of random weights, made from a language model of random weights."""
    tokenizer = tokenizer_of(kind)
    base = tiny_checkpoint(path.with_name(f"{path.name}-base"), kind, "a cab bead dad faced a cabbage" + ALPHABET)
    started = checkpoint.load(base).as_classifier(LABELS, seed=5)
    config = started.config.with_changes(**changes)
    model = GPTModel(config, init=None)
    model.load_state_dict(dict(started.tensors))
    with torch.no_grad():
        model.score.weight.mul_(50)
    checkpoint.create(path, model, tokenizer, {"step": 3})
    return path


@pytest.mark.parametrize("kind", ["byte", "char", "gpt2", "word"])
def test_a_classifier_is_saved_in_transformers_names_and_opens_as_it_was(tmp_path: Path, kind: str) -> None:
    run = classifier(tmp_path / "run", kind)
    names = set(safetensors_file.read_header(run / "model.safetensors").tensors)
    assert "score.weight" in names
    assert all(name == "score.weight" or name.startswith("transformer.") for name in names)
    assert not any("lm_head" in name for name in names)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert config["id2label"] == {"0": "ham", "1": "spam", "2": "9"}
    assert config["label2id"] == {"ham": 0, "spam": 1, "9": 2}
    loaded = checkpoint.load(run)
    assert loaded.config.labels == LABELS
    model = loaded.model()
    assert model.head is model.score.weight
    assert model.head.shape == (3, loaded.config.emb_dim)
    assert set(WeightFile(run / "model.safetensors", loaded.config)) == set(model.state_dict())
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 3)


def test_the_padding_is_no_token_of_a_text(tmp_path: Path) -> None:
    for kind in ("byte", "char", "gpt2", "word"):
        run = classifier(tmp_path / kind, kind)
        tokenizer = tokenizer_of(kind)
        pad = json.loads((run / "config.json").read_text(encoding="utf-8"))["pad_token_id"]
        assert pad == (tokenizer.vocab_size if kind == "char" else tokenizer.eot_id)
        assert pad < checkpoint.load(run).config.vocab_size
        assert pad not in tokenizer.encode(ALPHABET)
        settings = json.loads((run / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert settings["pad_token"] == ("<|padding|>" if kind == "char" else "<|endoftext|>")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte", "char", "gpt2", "word"])
def test_transformers_opens_it_with_the_same_logits_in_padded_batches(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    run = classifier(tmp_path / "run", kind)
    theirs, words = (
        getattr(transformers, name).from_pretrained(run)
        for name in ("AutoModelForSequenceClassification", "AutoTokenizer")
    )
    assert theirs.eval().config.id2label == dict(enumerate(LABELS))
    loaded = checkpoint.load(run)
    model = loaded.model()
    batch = words(list(TEXTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = theirs(**batch).logits
        for text, row, ids in zip(TEXTS, logits, batch["input_ids"], strict=True):
            own = loaded.tokenizer.encode(text)
            assert ids[: len(own)].tolist() == own
            assert set(ids[len(own) :].tolist()) <= {words.pad_token_id}
            mine = model.next_logits(torch.tensor([own]))[0]
            assert mine.abs().max() > 0.1
            torch.testing.assert_close(mine, row, atol=1e-5, rtol=0)
            alone = theirs(torch.tensor([own])).logits[0]
            torch.testing.assert_close(mine, alone, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_classifier_of_transformers_is_brought_in(gptcli: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = transformers.GPT2Config(n_embd=24, n_head=2, n_layer=2, n_positions=16, id2label={0: "no", 1: "yes"})
    theirs = transformers.GPT2ForSequenceClassification(shape).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    assert gptcli("load-gpt2", "--from", tmp_path / "theirs", "--out", tmp_path / "run").code == 0
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.config.labels == ("no", "yes")
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model().next_logits(ids), theirs(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("id2label", [["a", "b"], {"0": "a", "2": "b"}, {}, {"0": "a"}, 7, "ab"])
def test_a_foreign_classifier_without_labels_by_id_is_refused(tmp_path: Path, id2label: Any) -> None:
    said = {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "id2label": id2label}
    (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(GptcliError, match=r"config\.json.*label"):
        hf.read_config(tmp_path / "config.json")


@pytest.mark.parametrize("architectures", [7, "GPT2ForSequenceClassification", {}, None, True, [7, None, []]])
def test_a_foreign_file_whose_architectures_are_no_names_is_of_a_language_model(
    tmp_path: Path, architectures: Any
) -> None:
    said = {"model_type": "gpt2", "architectures": architectures}
    (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    assert hf.read_config(tmp_path / "config.json").labels == ()


def test_it_begins_with_the_language_models_weights_and_a_head_from_the_seed(tmp_path: Path) -> None:
    base = checkpoint.load(tiny_checkpoint(tmp_path / "base", "char", ALPHABET, tie_weights=False, qkv_bias=False))
    started = base.as_classifier(LABELS, seed=1)
    assert set(started.tensors) == set(parameter_shapes(started.config))
    for name, tensor in base.tensors.items():
        if name not in ("lm_head.weight", "wte.weight"):
            assert torch.equal(started.tensors[name], tensor)
    assert torch.equal(started.tensors["wte.weight"][:-1], base.tensors["wte.weight"])
    assert not started.tensors["wte.weight"][-1].count_nonzero()
    head = started.tensors["score.weight"]
    assert head.shape == (3, 42)
    assert 0.01 < float(head.std()) < 0.03
    assert torch.equal(head, base.as_classifier(LABELS, seed=1).tensors["score.weight"])
    assert not torch.equal(head, base.as_classifier(LABELS, seed=2).tensors["score.weight"])
    assert started.as_classifier(LABELS, seed=9) is started
    others = started.as_classifier(("x", "y"), seed=1)
    assert others.config.labels == ("x", "y")
    assert others.tensors["score.weight"].shape == (2, 42)
    assert others.tensors["wte.weight"].shape == started.tensors["wte.weight"].shape


def test_a_packed_classifier_keeps_its_head_in_float32(gptcli: Any, tmp_path: Path) -> None:
    run = classifier(tmp_path / "run")
    ids = torch.tensor([[1, 2, 3]])
    plain = checkpoint.load(run)
    for bits in (8, 4):
        assert gptcli("quantize", run, "--bits", bits).code == 0
        loaded = checkpoint.load(tmp_path / f"run-int{bits}")
        assert loaded.config.labels == LABELS
        assert torch.equal(loaded.tensors["score.weight"], plain.tensors["score.weight"])
        logits = loaded.runner().next_logits(ids)
        torch.testing.assert_close(logits, loaded.model().next_logits(ids), atol=1e-4, rtol=1e-4)
    assert gptcli("export", run, tmp_path / "half", "--dtype", "bfloat16").code == 0
    assert checkpoint.load(tmp_path / "half").config.labels == LABELS


@pytest.mark.parametrize(
    "labels", [("one",), ("a", "b", "a"), ("a", ""), ("a", 2), "ham", 3, None, ["a", ["b"]]]
)  # fmt: skip
def test_labels_are_at_least_two_different_texts(labels: Any) -> None:
    with pytest.raises(GptcliError, match="labels"):
        GPTConfig(labels=labels)


def test_labels_are_a_tuple_however_they_are_given() -> None:
    config = GPTConfig(labels=["a", "b"])  # type: ignore[arg-type]
    assert config.labels == ("a", "b")
    assert config == GPTConfig(labels=("a", "b"))
    assert hash(config.with_changes(drop_rate=0.0)) == hash(GPTConfig(labels=("a", "b"), drop_rate=0.0))
    assert config.with_changes(drop_rate=0.0).labels == ("a", "b")
    assert not GPTConfig().labels


@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_costs_what_it_has(tied: bool) -> None:
    config = tiny_config(labels=LABELS, tie_weights=tied)
    model = GPTModel(config)
    assert cost.parameter_count(config) == sum(p.numel() for p in model.parameters())
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(config)
    plain = tiny_config(tie_weights=True)
    blocks = cost.flops_per_token(config).matrices - 2 * 3 * 42
    assert blocks == cost.flops_per_token(plain).matrices - 2 * 61 * 42
    assert cost.logits_bytes(config, 1, 8) == 4 * 8 * 3
    assert 0.015 < float(model.score.weight.detach().std()) < 0.025


def test_what_needs_the_next_token_refuses_a_classifier_in_two_lines(gptcli: Any, tmp_path: Path, story: Path) -> None:
    run = classifier(tmp_path / "run", "char")
    said = (f"{run} is a classifier of 3 labels", f"gptcli classify TEXT --checkpoint {run}")
    base = tmp_path / "run-base"
    for command in (
        ("generate", "a", "-c", run, "--engine", "torch"), ("bench", run),
        ("generate", "a", "-c", base, "--draft", run, "--engine", "torch"),
        ("inspect-logits", "a", "-c", run), ("inspect-flow", "a", "-c", run), ("inspect-gradients", "a cab", "-c", run),
        ("train", story, "--init-from", run, "--out", "more"),
    ):  # fmt: skip
        gptcli(*command).assert_user_error(*said)
    with pytest.raises(GptcliError, match="is a classifier of 3 labels"):
        api.load(run)
    for command in (
        ("inspect-attn", "a cab", "-c", run), ("inspect-embeddings", "a", "b", "-c", run), ("checkpoints", run),
        ("count-params", run),
    ):  # fmt: skip
        shown = gptcli(*command)
        assert shown.code == 0, shown.err
    assert "ham, spam, 9" in gptcli("checkpoints", run).out


def test_llama_cpp_has_no_classifiers(gptcli: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    run = classifier(tmp_path / "run", "gpt2")
    gptcli("export", run, tmp_path / "out", "--format", "gguf").assert_user_error("is a classifier", "--format hf")
    assert not (tmp_path / "out").exists()
