"""The runs that people compare us by, whole. `make test-slow` runs them; each takes minutes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.checkpoints import checkpoint
from gptcli.device import resources

pytestmark = pytest.mark.slow

SHAKESPEARE = (
    "--tokenizer char --n-layers 4 --n-heads 4 --emb-dim 128 --context-length 64 --batch-size 12 --max-steps 2000 "
    "--drop-rate 0 --learning-rate 1e-3 --schedule cosine --warmup-steps 100 --beta2 0.99 --grad-clip 1 "
    "--tie-weights --init gpt2 --eval-every 250 --eval-all"
)


@pytest.fixture(autouse=True)
def _all_cores() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(resources.usable_cpus())
    yield
    torch.set_num_threads(before)


def test_the_courses_run(gptcli: Any, the_verdict: Path) -> None:
    """Published: step 35 train 2.408 / val 6.183. Afterwards it speaks in the story's words, in transformers too."""
    result = gptcli("train", the_verdict, "--out", "run")
    assert result.code == 0, result.err
    assert "5,145 tokens" in result.err
    assert "40 in all" in result.err
    rows = {row["step"]: row for row in checkpoint.read_metrics(Path("run"))}
    assert rows[35]["train_loss"] <= 3.0
    assert rows[35]["val_loss"] <= 6.3
    said = gptcli(
        "generate", "Every effort moves you", "-c", "run", "--temperature", 0.5, "--top-k", 3, "--seed", 1
    ).out
    story = set(re.findall(r"\w+", the_verdict.read_text(encoding="utf-8").lower()))
    words = re.findall(r"\w+", said.lower())[4:]
    assert sum(word in story for word in words) >= 0.9 * len(words)

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained("run").eval()
    loaded = checkpoint.load(Path("run"))
    ids = transformers.AutoTokenizer.from_pretrained("run")(said)["input_ids"]
    assert ids == loaded.tokenizer.encode(said)
    batch = torch.tensor([ids])
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model()(batch), theirs(batch).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ("", 1.90),
        ("--learning-rate 3e-3", 1.80),
        ("--optimizer muon --learning-rate 6e-3 --schedule linear --min-learning-rate 0", 1.62),
    ],
    ids=["nanogpt", "adamw", "muon"],
)
def test_shakespeare_by_characters(gptcli: Any, tinyshakespeare: Path, options: str, most: float) -> None:
    """nanoGPT's CPU recipe, which its README gives 1.88 for, from a few batches; ours is of all validation tokens."""
    assert gptcli("train", tinyshakespeare, *SHAKESPEARE.split(), *options.split(), "--out", "run").code == 0
    assert checkpoint.read_metrics(Path("run"))[-1]["val_loss"] <= most


def test_packed_weights_lose_next_to_nothing(gptcli: Any, tinyshakespeare: Path) -> None:
    """The same recipe, judged on the validation part in float32, int8 (at most 0.2% worse) and int4 (at most 3%)."""
    assert gptcli("train", tinyshakespeare, *SHAKESPEARE.split(), "--out", "run").code == 0
    text = tinyshakespeare.read_text(encoding="utf-8")
    Path("validation.txt").write_text(text[int(0.9 * len(text)) :], encoding="utf-8")
    for bits in (8, 4):
        assert gptcli("quantize", "run", "--bits", bits).code == 0
    models = ("-c", "run", "-c", "run-int8", "-c", "run-int4")
    results = gptcli("evaluate", "validation.txt", *models, "--stride", 32, "--no-bos", "--json").json["results"]
    plain, int8, int4 = (result["per_token"]["nats"] for result in results)
    assert int8 / plain <= 1.002
    assert int4 / plain <= 1.03
