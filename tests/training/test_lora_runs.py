"""Runs that train adapters: what they write, resume to the byte, the base that stays, and what is refused."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TEXT, TINY

import gptcli as api
from gptcli.checkpoints import checkpoint, layout, safetensors_file
from gptcli.config.lora import LoRAConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.training import disk

LORA = (
    "--train", "lora:2", "--learning-rate", 0.03, "--max-steps", 12, "--eval-every", 2, "--batch-size", 4,
    "--warmup-steps", 1,
)  # fmt: skip
QUIET = ("--sample-every", 0, "--threads", 1, "--quiet")


@pytest.fixture
def base(gptcli: Any, tmp_path: Path) -> Path:
    (tmp_path / "story.txt").write_text(TEXT, encoding="utf-8")
    result = gptcli("train", "story.txt", *TINY, "--max-steps", 4, "--sample-every", 0, "--out", "base")
    assert result.code == 0, result.err
    animals = ("cat", "dog", "mat", "log")
    pairs = [{"prompt": f"the {a} sat", "completion": f" on the {b}"} for a in animals for b in animals]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs * 2), encoding="utf-8")
    return tmp_path / "base"


def tune(gptcli: Any, out: str, *words: object, init_from: str = "base") -> Any:
    return gptcli("finetune", "pairs.jsonl", "--init-from", init_from, "--out", out, *LORA, *QUIET, *words)


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def losses(run: str) -> list[float]:
    return [row["val_loss"] for row in checkpoint.read_metrics(Path(run))]


def test_a_run_holds_an_adapter_alone_and_leaves_its_base_as_it_was(gptcli: Any, base: Path) -> None:
    before = tree(base)
    result = tune(gptcli, "run", "--save-every", 6)
    assert result.code == 0, result.err
    assert tree(base) == before
    assert losses("run")[-1] < losses("run")[0] - 0.1
    folders = [Path("run"), *sorted(Path("run/training").iterdir())]
    assert len(folders) > 2
    for folder in folders:
        assert not (folder / layout.WEIGHTS).exists()
        assert (folder / layout.ADAPTER_CONFIG).exists()
        names = safetensors_file.read_header(folder / layout.ADAPTER_WEIGHTS).tensors
        assert len(names) == 2 * 2 * 4
    state = safetensors_file.read_header(folders[-1] / layout.OPTIMIZER).tensors
    assert all(".lora_" in name or name.startswith("random") for name in state)
    assert checkpoint.load(Path("run")).training["step"] == 12
    for words in (("generate", "the cat", "-c", "run", "--max-new-tokens", 4), ("checkpoints", "run")):
        assert gptcli(*words).code == 0
    size = sum(file.stat().st_size for file in Path("run").rglob("*.safetensors"))
    forecast = disk.forecast(checkpoint.load(base).config, RecipeConfig(), keep=2, adapter=LoRAConfig(2))
    assert 0.2 * forecast.total < size <= forecast.total
    assert tune(gptcli, "run").code == 2
    assert tune(gptcli, "run", "--force", "--max-steps", 2).code == 0


def test_stopped_and_resumed_is_undisturbed_to_the_byte(gptcli: Any, base: Path) -> None:
    assert tune(gptcli, "whole", "--save-every", 3).code == 0
    assert tune(gptcli, "parts", "--save-every", 3, "--max-steps", 6, "--schedule-steps", 12).code == 0
    result = gptcli("finetune", "--resume", "parts", "--max-steps", 12, *QUIET)
    assert result.code == 0, result.err
    assert losses("parts") == losses("whole")
    for name in (layout.ADAPTER_WEIGHTS, layout.ADAPTER_CONFIG):
        assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes()
    newest = [max(Path(run, "training").iterdir()) / layout.OPTIMIZER for run in ("parts", "whole")]
    assert newest[0].read_bytes() == newest[1].read_bytes()


def test_the_run_holds_the_adapter_of_its_best_evaluation(gptcli: Any, base: Path) -> None:
    assert tune(gptcli, "run", "--learning-rate", 3.0, "--grad-clip", 0).code == 0
    found = losses("run")
    training = checkpoint.load(Path("run")).training
    assert training["best"]["val_loss"] == min(found)
    if found.index(min(found)) < len(found) - 1:
        assert training["weights"] == "best"
        last = layout.last(Path("run"))
        both = [safetensors_file.read_tensors(layout.weights_file(path)) for path in (Path("run"), last)]
        assert any(not torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_a_base_that_is_gone_or_another_is_told_before_anything_is_written(gptcli: Any, base: Path) -> None:
    assert tune(gptcli, "run", "--save-every", 6).code == 0
    before = tree(Path("run"))
    shutil.move("base", "moved")
    resume = ("finetune", "--resume", "run", "--max-steps", 20, "--sample-every", 0)
    gptcli(*resume).assert_user_error("is an adapter for", "which is not there")
    result = gptcli("train", "story.txt", *TINY, "--max-steps", 1, "--seed", 5, "--sample-every", 0, "--out", "base")
    assert result.code == 0
    gptcli(*resume).assert_user_error("other weights than those in")
    assert tree(Path("run")) == before
    shutil.rmtree("base")
    shutil.move("moved", "base")
    assert gptcli(*resume).code == 0


def test_adapters_on_an_adapter_are_refused_and_a_packed_base_serves(gptcli: Any, base: Path) -> None:
    assert tune(gptcli, "run").code == 0
    tune(gptcli, "second", init_from="run").assert_user_error("is an adapter", "gptcli merge")
    assert not Path("second").exists()
    assert gptcli("quantize", "base", "--out", "packed").code == 0
    result = tune(gptcli, "third", "--save-every", 6, init_from="packed")
    assert result.code == 0, result.err
    assert losses("third")[-1] < losses("third")[0] - 0.1
    again = gptcli("finetune", "--resume", "third", "--max-steps", 14, *QUIET)
    assert again.code == 0, again.err
    assert gptcli("merge", "third", "--out", "merged").code == 0
    text = api.load("merged", device="cpu").generate("the cat", max_new_tokens=8, temperature=0).text
    assert text == api.load("third", device="cpu").generate("the cat", max_new_tokens=8, temperature=0).text


def test_targets_and_alpha_are_kept(gptcli: Any, base: Path) -> None:
    assert tune(gptcli, "run", "--lora-targets", "attn.c_proj,c_fc", "--lora-alpha", 3).code == 0
    fields = json.loads(Path("run", layout.ADAPTER_CONFIG).read_text())
    assert (fields["target_modules"], fields["r"], fields["lora_alpha"]) == (["attn.c_proj", "mlp.c_fc"], 2, 3)
    tune(gptcli, "other", "--lora-targets", "c_proj").assert_user_error("attn.c_proj or mlp.c_proj", "--lora-targets")
    tune(gptcli, "other", "--train", "lora:0").assert_user_error("lora:0", "--train")
    result = gptcli("finetune", "--config", "run/config.toml", "--out", "again", "--quiet")
    assert result.code == 0, result.err
    assert Path("again", layout.ADAPTER_WEIGHTS).read_bytes() == Path("run", layout.ADAPTER_WEIGHTS).read_bytes()


def test_a_classifier_is_trained_by_an_adapter_and_resumed_to_the_byte(gptcli: Any, base: Path) -> None:
    rows = [{"text": f"the {animal} sat", "label": animal} for animal in ("cat", "dog")] * 16
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("finetune", "labels.jsonl", "--init-from", "base", *LORA, *QUIET, "--schedule", "constant", "--max-steps")
    assert gptcli(*words, 20, "--out", "whole").code == 0
    assert gptcli(*words, 10, "--out", "parts").code == 0
    result = gptcli("finetune", "--resume", "parts", "--max-steps", 20, *QUIET)
    assert result.code == 0, result.err
    assert Path("parts", layout.ADAPTER_WEIGHTS).read_bytes() == Path("whole", layout.ADAPTER_WEIGHTS).read_bytes()
    assert gptcli("merge", "whole", "--out", "merged").code == 0
    answers = [gptcli("classify", "the dog sat", "-c", run).out.split()[0] for run in ("whole", "merged")]
    assert answers == ["dog", "dog"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun are for Unix")
def test_two_processes_train_the_adapter_of_one(gptcli: Any, base: Path) -> None:
    assert tune(gptcli, "one").code == 0
    words = ["finetune", "pairs.jsonl", "--init-from", "base", "--out", "two", *LORA, *QUIET]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gptcli"]
    command += map(str, words)
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    one, two = (safetensors_file.read_tensors(Path(run, layout.ADAPTER_WEIGHTS)) for run in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
