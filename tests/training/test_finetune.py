"""Fine-tuning on conversations: which tokens have a loss, killed and resumed, two processes, and from Python."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_checkpoint
from torch.nn import functional as F

import gptcli as package
from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.config.finetune import FinetuneConfig
from gptcli.data import example_files
from gptcli.data.examples import Examples
from gptcli.model.loss import IGNORED
from gptcli.training.step import MeanLoss

BYTES = tokenizers.build("byte")
ROWS = [
    {"messages": [{"role": "user", "content": "Hi" * n}, {"role": "assistant", "content": "Yes" * (1 + n % 5)}]}
    for n in range(1, 25)
]
OPTIONS = ("--max-steps", 10, "--batch-size", 4, "--learning-rate", 1e-3, "--threads", 1, "--device", "cpu")


def losses(run: str) -> list[float]:
    return [value for row in checkpoint.read_metrics(Path(run)) for value in (row["train_loss"], row["val_loss"])]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "base", context_length=96, drop_rate=0.1)


def learned(rows: Path, context: int = 96, **settings: Any) -> list[tuple[str, str]]:
    """Of every example to train on: its inputs, and what is predicted with a loss."""
    encoded = example_files.encode([str(rows)], FinetuneConfig(**settings), BYTES, context)
    found = []
    for each in encoded.train:
        targets = [target for target in each.targets if target != IGNORED]
        assert all(t in (IGNORED, n) for t, n in zip(each.targets, each.ids[1:], strict=False))
        found.append((BYTES.decode(each.ids), BYTES.decode(targets)))
    return found


def test_answers_alone_are_learned_or_all_of_the_text(rows: Path) -> None:
    for text, answer in learned(rows):
        assert text.startswith("User:\nHi")
        assert answer == text.partition("Assistant:\n")[2] + "<|endoftext|>"
    for text, predicted in learned(rows, loss_on="all"):
        assert predicted == text[1:] + "<|endoftext|>"


def test_a_long_example_loses_the_front_of_its_prompt_and_then_the_end_of_its_answer(rows: Path) -> None:
    for text, answer in learned(rows, context=24):
        assert len(text) <= 24
        assert answer.endswith("<|endoftext|>")
    for text, answer in learned(rows, context=3):
        assert (text, answer) == ("\nYe", "Yes")


def test_there_is_no_gradient_where_there_is_no_answer(rows: Path, base: Path) -> None:
    encoded = example_files.encode([str(rows)], FinetuneConfig(), BYTES, 96)
    examples = Examples(encoded.train, 4)
    inputs, targets = examples.batch([0, 1, 2, 3])
    model = checkpoint.load(base).model()
    hidden = model.hidden(inputs).detach().requires_grad_()
    logits = F.linear(hidden, model.head)
    logits.retain_grad()
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED).backward()
    assert logits.grad is not None
    assert not logits.grad[targets == IGNORED].any()
    one_by_one = [MeanLoss(model, has_ignored=True)(*examples.batch([number])) for number in range(4)]
    weights = torch.tensor([examples.weight(examples.batch([number])[1]) for number in range(4)])
    mean = (torch.stack(one_by_one) * weights).sum() / weights.sum()
    assert float(MeanLoss(model, has_ignored=True)(inputs, targets).detach()) == pytest.approx(
        float(mean.detach()), rel=1e-5
    )


@pytest.mark.parametrize("train", ["all", "last:1"])
def test_killed_and_resumed_is_undisturbed_to_the_byte(
    rows: Path, base: Path, tmp_path: Path, train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = FinetuneConfig(max_steps=8, batch_size=4, learning_rate=1e-3, train=train)
    runtime = package.RuntimeConfig(device="cpu", threads=1, save_every=2, sample_prompt="", accumulate=1)

    def kill(event: package.events.Event) -> None:
        if isinstance(event, package.events.Stepped) and event.step == 4:
            raise KeyboardInterrupt

    package.finetune(rows, "whole", init_from=base, settings=settings, runtime=runtime)
    with pytest.raises(KeyboardInterrupt):
        package.finetune(rows, "killed", init_from=base, settings=settings, runtime=runtime, on_event=kill)
    package.resume("killed")
    for name in ("model.safetensors", "training/step-00000008/optimizer.safetensors"):
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes(), name
    assert losses("whole") == losses("killed")


def test_the_run_holds_the_base_where_no_step_was_better(rows: Path, base: Path, gptcli: Any) -> None:
    result = gptcli("finetune", rows, "--init-from", base, "--out", "run", *OPTIONS, "--learning-rate", 3)
    assert result.code == 0, result.err
    assert "before the first step, with the initial weights" in result.err
    kept, began = (checkpoint.load(Path(each)).tensors for each in ("run", "base"))
    assert all(tensor.equal(began[name]) for name, tensor in kept.items())


@pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun are for Unix")
def test_two_processes_are_one(gptcli: Any, rows: Path, base: Path) -> None:
    words = ("finetune", rows, "--init-from", base, *OPTIONS, "--accumulate", 1)
    assert gptcli(*words, "--out", "one").code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gptcli"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [*command, *map(str, words), "--out", "two"], check=True, capture_output=True, timeout=240, env=environment
    )
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)
