"""Preferences learned: the formula's first loss, a margin that grows, resuming to the byte, and what is refused."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.checkpoints import checkpoint, layout
from gptcli.data.examples import Example, Examples, ExampleSet, Pairs
from gptcli.model.loss import log_probabilities
from gptcli.training import loss_plots
from gptcli.training.preference import with_reference

WORDS = ("red", "green", "blue", "grey", "white", "black")
SHAPE = ("--emb-dim", 32, "--n-heads", 2, "--n-layers", 2, "--context-length", 64)


def write_pairs(file: Path, count: int = 60) -> Path:
    """Questions whose chosen answer is a colour, and whose rejected answer is another."""
    draw, rows = random.Random(5), []
    for _ in range(count):
        one, other = draw.sample(WORDS, 2)
        rows.append({"prompt": f"say {one}", "chosen": f"it is {one}", "rejected": f"it is {other}"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gptcli.cli import main

    home = tmp_path_factory.mktemp("base")
    text = home / "texts.txt"
    draw = random.Random(1)
    text.write_text(
        "".join(f"say {one}\nit is {one}\n\n### Instruction: Response\n" for one in draw.choices(WORDS, k=200)),
        encoding="utf-8",
    )
    quiet = ("--sample-every", 0, "--quiet", "--dtype", "float32", "--max-steps", 20, "--learning-rate", 3e-3)
    assert main([str(w) for w in ("train", text, "--tokenizer", "byte", *SHAPE, *quiet, "--out", home / "base")]) == 0
    return home / "base"


def prefer(gptcli: Any, base: Path, data: Path, *options: object, out: str = "run") -> Any:
    return gptcli(
        "finetune", data, "--method", "dpo", "--init-from", base, "--dtype", "float32", "--drop-rate", 0.1,
        "--learning-rate", 1e-3, "--batch-size", 4, "--early-stop", 0, "--out", out, *options,
    )  # fmt: skip


def rows_of(run: str) -> list[dict[str, Any]]:
    return checkpoint.read_metrics(Path(run))


@pytest.mark.parametrize("options", [(), ("--train", "lora:4", "--learning-rate", 1e-2)])
def test_the_chosen_answers_become_more_likely(gptcli: Any, base: Path, tmp_path: Path, options: Any) -> None:
    before = (base / "model.safetensors").read_bytes()
    done = prefer(gptcli, base, write_pairs(tmp_path / "pairs.jsonl"), "--epochs", 4, *options)
    assert done.code == 0, done.err
    assert "60 preferences (prompt, chosen, rejected)" in done.err
    assert "pairs of at most" in done.err
    assert "nats a pair" in done.err
    assert loss_plots.unit_of(Path("run")) == "nats a pair"
    first, *_, last = rows_of("run")
    assert first["val_loss"] == pytest.approx(math.log(2), abs=1e-6)  # the model is its own reference
    assert last["train_loss"] < 0.9 * math.log(2)
    assert (base / "model.safetensors").read_bytes() == before
    assert gptcli("generate", "say red", "-c", "run", "--max-new-tokens", 3).code == 0


def test_stopped_and_resumed_is_undisturbed_to_the_byte(gptcli: Any, base: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    plan = ("--max-steps", 6, "--schedule", "constant", "--eval-every", 3, "--save-every", 3)
    assert prefer(gptcli, base, data, *plan[2:], "--max-steps", 3, "--warmup-steps", 0, out="parts").code == 0
    assert prefer(gptcli, base, data, *plan, "--warmup-steps", 0, out="whole").code == 0
    resumed = gptcli("finetune", "--resume", "parts", "--max-steps", 6)
    assert resumed.code == 0, resumed.err
    for name in ("model.safetensors", "training/step-00000006/optimizer.safetensors"):
        assert (Path("parts") / name).read_bytes() == (Path("whole") / name).read_bytes()
    again = gptcli("finetune", "--config", "whole/config.toml", "--out", "again")
    assert again.code == 0, again.err
    assert (Path("again") / "model.safetensors").read_bytes() == (Path("whole") / "model.safetensors").read_bytes()


def test_parts_of_a_step_move_rounding_only(gptcli: Any, base: Path, tmp_path: Path) -> None:
    data, losses = write_pairs(tmp_path / "pairs.jsonl"), []
    for parts in (1, 3):
        options = ("--max-steps", 5, "--eval-every", 1, "--accumulate", parts, "--eval-batches", 2)
        assert prefer(gptcli, base, data, *options, out=f"in-{parts}").code == 0
        losses.append([row["val_loss"] for row in rows_of(f"in-{parts}")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_reference_is_that_of_each_pair_whatever_the_batch(base: Path) -> None:
    model = checkpoint.load(base).model()
    pairs = []
    for n in range(5):
        chosen, rejected = Example([1, 2, n], [-100, 3, n + 1]), Example([1] * (n + 1), [7] * (n + 1))
        pairs.append((chosen, rejected))
    corpus = ExampleSet(Pairs(pairs[:3], 2), Pairs(pairs[3:], 2, 3), 9, beta=0.1)
    source: dict[str, Any] = {}
    found = with_reference(model, corpus, source)
    assert isinstance(found, ExampleSet)
    assert list(found.reference) == source["reference"]
    for (chosen, rejected), ratio in zip(pairs, found.reference, strict=True):
        each = []
        for example in (chosen, rejected):
            inputs, targets = Examples([example], 1).batch([0])
            with torch.no_grad():
                each.append(float(log_probabilities(model.hidden(inputs), model.head, targets)))
        assert ratio == pytest.approx(each[0] - each[1], abs=1e-4)


GOOD = {"prompt": "say red", "chosen": "it is red", "rejected": "it is blue"}


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (GOOD | {"rejected": "it is red"}, ("--method", "dpo"), ("line 2", "the chosen answer is the rejected one")),
        (GOOD | {"chosen": ""}, ("--method", "dpo"), ("line 2", "'chosen' is empty")),
        (GOOD | {"rejected": 3}, ("--method", "dpo"), ("line 2", "'rejected' is 3, not a text")),
        (GOOD, (), ("preferences", "--method sft does not learn from", "--method dpo")),
        (GOOD, ("--dpo-beta", 0.5), ("--dpo-beta is of --method dpo",)),
        (GOOD, ("--method", "dpo", "--dpo-beta", 0), ("--dpo-beta",)),
        (GOOD, ("--method", "dpo", "--loss-on", "all"), ("--method dpo compares answers",)),
        (GOOD, ("--method", "ppo"), ("--method", "sft, dpo")),
    ],
)
def test_what_is_refused(gptcli: Any, base: Path, tmp_path: Path, row: Any, options: Any, words: Any) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    gptcli("finetune", data, "--init-from", base, "--out", "run", *options).assert_user_error(*words)
    assert not Path("run").exists()


def test_other_rows_are_no_preferences(gptcli: Any, base: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "say red", "completion": "red"}) + "\n", encoding="utf-8")
    told = gptcli("finetune", data, "--init-from", base, "--out", "run", "--method", "dpo")
    told.assert_user_error("--method dpo learns from preferences", "prompt, chosen, rejected")
    assert layout.read_config(base)[0].labels == ()
