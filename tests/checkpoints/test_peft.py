"""PEFT opens our adapters, and its own are opened here: the same logits on both sides."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_adapter, tiny_checkpoint

from gptcli.checkpoints import checkpoint, derived
from gptcli.config.lora import TARGETS

pytestmark = pytest.mark.slow
IDS = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "base")


def of_transformers(path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(path).eval()


@torch.no_grad()
def test_peft_opens_our_adapter_and_transformers_what_is_merged(tmp_path: Path, base: Path) -> None:
    peft = pytest.importorskip("peft")
    for number, targets in enumerate((TARGETS, ("attn.c_proj",), ("mlp.c_proj", "attn.c_attn"))):
        adapter, merged = tmp_path / f"adapter{number}", tmp_path / f"merged{number}"
        expected = tiny_adapter(adapter, base, targets=targets)(IDS)
        opened = peft.PeftModel.from_pretrained(of_transformers(base), adapter).eval()
        torch.testing.assert_close(opened(IDS).logits, expected, atol=1e-5, rtol=1e-5)
        assert sum("lora_A" in name for name, _ in opened.named_parameters()) == 2 * len(targets)
        alone = peft.AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
        torch.testing.assert_close(alone(IDS).logits, expected, atol=1e-5, rtol=1e-5)
        derived.create_merged(merged, adapter)
        torch.testing.assert_close(of_transformers(merged)(IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn"]},
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "lora_alpha": 12, "r": 4},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*\.mlp\.c_proj", "layers_to_transform": None},
        {"target_modules": ["attn.c_proj"], "layers_to_transform": [1], "layers_pattern": "h"},
    ],
    ids=["attention", "course", "all-linear", "pattern", "layer"],
)
@torch.no_grad()
def test_adapters_of_peft_are_opened(tmp_path: Path, base: Path, settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False, **settings)
    model = peft.get_peft_model(of_transformers(base), config).eval()
    expected = model(IDS).logits
    model.save_pretrained(tmp_path / "theirs")
    assert (of_transformers(base)(IDS).logits - expected).abs().max() > 1e-3
    found = checkpoint.load(base, tmp_path / "theirs").model()(IDS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_peft_opens_a_classifier_that_is_an_adapter(tmp_path: Path, base: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    expected = tiny_adapter(tmp_path / "adapter", base, labels=("ham", "spam", "eggs"))(IDS)[:, -1]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=256)
    opened = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    torch.testing.assert_close(opened(IDS).logits, expected, atol=1e-5, rtol=1e-5)
