"""Adapters on disk: PEFT's layout, merged weights, their base, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_adapter, tiny_checkpoint

from gptcli.checkpoints import checkpoint, derived, layout, safetensors_file
from gptcli.checkpoints.adapter_file import read
from gptcli.checkpoints.adapters import MergedWeights, open_weights
from gptcli.errors import GptcliError
from gptcli.inference.open import choose_engine, open_scorer

IDS = torch.randint(257, (2, 12), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    tiny_adapter(tmp_path / "adapter", base)
    return tmp_path / "adapter"


def change_config(adapter: Path, **changes: Any) -> None:
    file = adapter / layout.ADAPTER_CONFIG
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in fields.items() if value != "absent"}))


def change_tensors(adapter: Path, changes: dict[str, torch.Tensor | None]) -> None:
    file = adapter / layout.ADAPTER_WEIGHTS
    tensors = {name: tensor.clone() for name, tensor in safetensors_file.read_tensors(file).items()}
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    safetensors_file.write_tensors(file, tensors)


def refused(adapter: Path, *words: str, base: Path | None = None) -> None:
    with pytest.raises(GptcliError) as caught:
        open_weights(base or adapter, adapter if base else None)
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value), str(caught.value)


FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    "targets", [("attn.c_proj",), ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")], ids=["one", "all"]
)
def test_merged_is_unmerged(tmp_path: Path, base: Path, targets: tuple[str, ...]) -> None:
    unmerged = tiny_adapter(tmp_path / "adapter", base, targets=targets)
    loaded = checkpoint.load(tmp_path / "adapter")
    with torch.no_grad():
        expected = unmerged(IDS)
        assert (loaded.model()(IDS) - expected).abs().max() < 1e-5
        assert (checkpoint.load(base).model()(IDS) - expected).abs().max() > 0.1
        derived.create_merged(tmp_path / "merged", tmp_path / "adapter")
        merged = checkpoint.load(tmp_path / "merged")
        assert (merged.model()(IDS) - expected).abs().max() < 1e-5
    assert merged.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    assert not layout.is_adapter(tmp_path / "merged")


@pytest.mark.parametrize(("engine", "bits", "tolerance"), [("cpu", 32, 1e-4), ("torch", 32, 1e-5), ("cpu", 8, 1.0)])
def test_both_engines_open_an_adapter(adapter: Path, engine: str, bits: int, tolerance: float) -> None:
    if engine == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    with torch.no_grad():
        expected = checkpoint.load(adapter).model()(IDS[:1])[0, -1]
    config, ours = layout.read_config(adapter)
    choice, tokenizer = choose_engine(engine, "cpu", "float32", config), layout.tokenizer_of(adapter, ours)
    scorer = open_scorer(adapter, choice, tokenizer, device="cpu", threads=1, bits=bits)
    found = torch.as_tensor(scorer.engine.forward([0], [IDS[0].tolist()], [0]))[0]
    assert (found - expected).abs().max() < tolerance


def test_files_are_pefts(adapter: Path, base: Path) -> None:
    fields = json.loads((adapter / layout.ADAPTER_CONFIG).read_text())
    assert (fields["peft_type"], fields["task_type"], fields["fan_in_fan_out"]) == ("LORA", "CAUSAL_LM", True)
    assert fields["target_modules"] == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert (fields["r"], fields["lora_alpha"], fields["bias"]) == (3, 16, "none")
    assert Path(fields["base_model_name_or_path"]) == base.absolute()
    header = safetensors_file.read_header(adapter / layout.ADAPTER_WEIGHTS).tensors
    assert header[FIRST].shape == (3, 42)
    assert header["base_model.model.transformer.h.1.mlp.c_proj.lora_B.weight"].shape == (42, 3)
    assert len(header) == 2 * 2 * 4
    assert not (adapter / layout.WEIGHTS).exists()
    found = read(adapter)
    assert (found.config.rank, found.config.alpha, len(found.config.targets)) == (3, 16.0, 4)


def test_an_adapter_of_peft_has_no_config_of_ours(adapter: Path, base: Path) -> None:
    expected = checkpoint.load(adapter).model()(IDS)
    for name in ("config.json", "tokenizer_gptcli.json"):
        (adapter / name).unlink(missing_ok=True)
    assert torch.equal(checkpoint.load(base, adapter).model()(IDS), expected)
    change_config(adapter, use_rslora=True, lora_alpha=16 / 3**0.5, target_modules="all-linear", inference_mode=False)
    torch.testing.assert_close(checkpoint.load(base, adapter).model()(IDS), expected)


def test_lower_precision_is_widened(adapter: Path, base: Path) -> None:
    file = adapter / layout.ADAPTER_WEIGHTS
    safetensors_file.write_tensors(file, dict(safetensors_file.read_tensors(file)), dtype=torch.bfloat16)
    assert isinstance(weights := open_weights(adapter), MergedWeights)
    assert str(weights["h.0.attn.c_attn.weight"].dtype) == "float32"  # type: ignore[union-attr]


def test_moved_together_the_base_is_found(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "adapter"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert checkpoint.load(tmp_path / "elsewhere" / "adapter").path.name == "adapter"


def test_a_missing_or_another_base_is_refused(tmp_path: Path, adapter: Path, base: Path) -> None:
    base.rename(tmp_path / "moved")
    refused(adapter, "which is not there", "-c CHECKPOINT --adapter")
    assert checkpoint.load(tmp_path / "moved", adapter).path == adapter
    tiny_checkpoint(base, seed=9)
    refused(adapter, "other weights than those in", "CRC-32")
    refused(adapter, "other weights than those in", base=base)
    (adapter / "config.json").unlink()
    shutil.rmtree(base)
    change_config(adapter, base_model_name_or_path="gpt2")
    refused(adapter, "an adapter for gpt2, which is not there")
    small = tiny_checkpoint(tmp_path / "small", emb_dim=24)
    refused(adapter, "no adapter for", "(3, 42)", "(3, 24)", base=small)
    shallow = tiny_checkpoint(tmp_path / "shallow", n_layers=1)
    refused(adapter, "no adapter for", "h.1.", "which it has not", base=shallow)
    refused(adapter, "is an adapter itself", base=adapter)
    with pytest.raises(GptcliError, match="does not say which checkpoint it changes"):
        checkpoint.load(adapter)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"rank_pattern": {"c_attn": 4}}, "several ranks"),
        ({"init_lora_weights": "pissa"}, "a changed base"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"r": 4}, "says r 4"),
        ({"r": "8"}, "r is '8'"),
        ({"lora_alpha": 0}, "lora_alpha 0"),
        ({"r": "absent"}, "it has no 'r'"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(adapter: Path, changes: dict[str, Any], words: str) -> None:
    change_config(adapter, **changes)
    refused(adapter, words)


def test_damaged_files_are_refused(tmp_path: Path, adapter: Path, base: Path) -> None:
    good = tmp_path / "good"
    shutil.copytree(adapter, good)

    def fresh() -> None:
        shutil.rmtree(adapter)
        shutil.copytree(good, adapter)

    change_tensors(adapter, {FIRST: None})
    refused(adapter, "lora_B.weight without", FIRST)
    fresh()
    change_tensors(adapter, {"base_model.model.transformer.wte.lora_embedding_A": torch.ones(3, 257)})
    refused(adapter, "more than plain LoRA", "lora_embedding_A")
    fresh()
    change_tensors(adapter, {FIRST: torch.full((3, 42), torch.nan)})
    weights = open_weights(adapter)
    with pytest.raises(GptcliError, match="NaN"):
        weights["h.0.attn.c_attn.weight"]
    fresh()
    change_tensors(adapter, {FIRST: torch.ones(3, 42, dtype=torch.int32)})
    refused(adapter, "not plain floats")
    fresh()
    (adapter / layout.ADAPTER_CONFIG).write_text("[")
    refused(adapter, "is damaged")
    fresh()
    (adapter / layout.ADAPTER_WEIGHTS).rename(adapter / "adapter_model.bin")
    refused(adapter, "a pickle")
    with pytest.raises(GptcliError, match="is no adapter"):
        read(base)
    fresh()
    settings = json.loads((adapter / "config.json").read_text())
    del settings["gptcli"]["base"]
    (adapter / "config.json").write_text(json.dumps(settings))
    refused(adapter, "does not say which checkpoint")


def test_a_packed_base_stays_packed_but_for_what_changes(tmp_path: Path, base: Path) -> None:
    packed = tmp_path / "packed"
    derived.create_packed(packed, base, 8)
    unmerged = tiny_adapter(tmp_path / "adapter", packed, targets=("mlp.c_fc",))
    assert layout.packed_bits(tmp_path / "adapter", layout.read_config(tmp_path / "adapter")[1]) == 8
    weights = open_weights(tmp_path / "adapter")
    assert weights.bits == 8
    assert weights["h.0.attn.c_attn.weight"].__class__.__name__ == "Packed"
    loaded = checkpoint.load(tmp_path / "adapter")
    with torch.no_grad():
        assert (loaded.model()(IDS) - unmerged(IDS)).abs().max() < 1e-5
        assert (loaded.runner()(IDS) - unmerged(IDS)).abs().max() < 0.5


@pytest.mark.parametrize("kind", ["byte", "char"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [32, 8])
def test_an_adapter_may_make_a_classifier_of_its_base(tmp_path: Path, kind: str, tied: bool, bits: int) -> None:
    base = tiny_checkpoint(tmp_path / "base", kind, "abc", tie_weights=tied)
    if bits == 8:
        derived.create_packed(tmp_path / "packed", base, 8)
        base = tmp_path / "packed"
    unmerged = tiny_adapter(tmp_path / "adapter", base, labels=("ham", "spam", "eggs"))
    loaded, ids = checkpoint.load(tmp_path / "adapter"), IDS % unmerged.config.vocab_size
    assert loaded.config.labels == ("ham", "spam", "eggs")
    with torch.no_grad():
        expected = unmerged(ids)
        assert expected.shape[-1] == 3
        assert (loaded.model()(ids) - expected).abs().max() < 1e-5
        derived.create_merged(tmp_path / "merged", tmp_path / "adapter")
        assert (checkpoint.load(tmp_path / "merged").model()(ids) - expected).abs().max() < 1e-5
    fields = json.loads((tmp_path / "adapter" / layout.ADAPTER_CONFIG).read_text())
    assert (fields["task_type"], fields["modules_to_save"]) == ("SEQ_CLS", ["score"])
    header = safetensors_file.read_header(tmp_path / "adapter" / layout.ADAPTER_WEIGHTS).tensors
    assert header["base_model.model.score.weight"].shape == (3, 42)
