"""Labels learned: a synthetic set by a rule, what a run keeps, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled import LABELS, rows, write_rows, write_text

import gptcli as api
from gptcli.checkpoints import checkpoint, layout
from gptcli.errors import GptcliError
from gptcli.inference.classifier import Classifier
from gptcli.training import loss_plots

SHAPE = ("--emb-dim", 32, "--n-heads", 2, "--n-layers", 1, "--context-length", 24)
QUIET = ("--sample-every", 0, "--quiet")


def facts(run: Path) -> dict[str, Any]:
    training: dict[str, Any] = layout.read_config(run)[1]["training"]
    return training


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model that has read a few of the texts."""
    from gptcli.cli import main

    home = tmp_path_factory.mktemp("base")
    text = write_text(home / "texts.txt", 300, seed=9)
    options = ("--tokenizer", "word", "--max-steps", 60, "--learning-rate", 1e-2, "--dtype", "float32")
    words = ("train", text, *SHAPE, *options, *QUIET, "--out", home / "base")
    assert main([str(word) for word in words]) == 0
    return home / "base"


def finetune(gptcli: Any, base: Path, data: Path, *options: object, out: str = "run") -> Any:
    return gptcli(
        "finetune", data, "--init-from", base, "--learning-rate", 1e-2, "--dtype", "float32", "--out", out,
        "--sample-every", 0, *options,
    )  # fmt: skip


def accuracy(gptcli: Any, run: str, data: Path) -> dict[str, Any]:
    found: dict[str, Any] = gptcli("evaluate", data, "-c", run, "--json").json
    return found


def test_labels_are_learned_and_the_temperature_is_kept(gptcli: Any, base: Path, tmp_path: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    done = finetune(gptcli, base, write_rows(tmp_path / "rows.jsonl", 300, seed=1, noise=0.1))
    assert done.code == 0, done.err
    assert "rows.jsonl: 300 labelled texts (text, label)." in done.err
    assert "3 labels: 'animal'" in done.err
    assert "validation rows get their label. A temperature of" in done.err
    assert 'gptcli classify "' in done.err
    assert loss_plots.unit_of(Path("run")) == "nats a text"
    assert loss_plots.unit_of(base) == "nats a token"
    mixed = gptcli("plot", "run", base)
    assert mixed.code == 0
    assert f"cannot be compared: run in nats a text, {base.name} in nats a token." in mixed.err
    assert (base / "model.safetensors").read_bytes() == before
    assert layout.read_config(Path("run"))[0].labels == LABELS
    fitted = facts(Path("run"))["calibration"]
    assert fitted["temperature"] > 0
    without = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    del without["gptcli"]["training"]["calibration"]  # a process that was killed before it
    Path("run/config.json").write_text(json.dumps(without), encoding="utf-8")
    resumed = gptcli("finetune", "--resume", "run")
    assert resumed.code == 0, resumed.err
    assert facts(Path("run"))["calibration"] == fitted
    gptcli("finetune", "--resume", "run").assert_user_error("run has ended")
    assert 28 <= fitted["rows"] <= 32
    assert Classifier("run").temperature == fitted["temperature"]
    found = gptcli("evaluate", "--part", "validation", "-c", "run", "--json").json
    assert found["rows"] == fitted["rows"]
    assert found["after"]["error"] == pytest.approx(fitted["error_after"], abs=1e-6)
    assert found["before"]["error"] == pytest.approx(fitted["error_before"], abs=1e-6)
    assert gptcli("evaluate", "--part", "train", "-c", "run", "--json").json["rows"] == 300 - fitted["rows"]
    assert api.evaluate_labels("run", part="validation").accuracy == found["accuracy"]
    with pytest.raises(GptcliError, match="part measures on the run's own data"):
        api.evaluate_labels("run", "rows.jsonl", part="validation")
    both = gptcli("evaluate", tmp_path / "rows.jsonl", "--part", "train", "-c", "run")
    both.assert_user_error("--part measures on the run's own data")
    found = accuracy(gptcli, "run", write_rows(tmp_path / "clean.jsonl", 500, seed=2))
    assert found["accuracy"] > 0.9
    write_rows(tmp_path / "rows.jsonl", 300, seed=2)
    gptcli("evaluate", "--part", "train", "-c", "run").assert_user_error("are not what they were", "Give rows")
    assert found["after"]["temperature"] == fitted["temperature"]


def test_a_run_that_was_stopped_and_resumed_is_the_undisturbed_one(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 120, seed=1, noise=0.2)
    settings = api.FinetuneConfig(max_steps=8, learning_rate=1e-2, dtype="float32", train_share=0.8)

    def until_step_3(event: object) -> None:
        if isinstance(event, api.events.Stepped) and event.step == 3:
            raise api.StopTraining

    whole = api.finetune(data, tmp_path / "whole", init_from=base, settings=settings)
    stopped = api.finetune(data, tmp_path / "run", init_from=base, settings=settings, on_event=until_step_3)
    assert facts(stopped)["step"] < 8
    run = api.resume(stopped)
    for name in ("model.safetensors", "config.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("trained", ["head", "last:1", "lora:2"])
def test_less_than_all_weights_learn_labels(gptcli: Any, base: Path, tmp_path: Path, trained: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 300, seed=1)
    assert finetune(gptcli, base, data, "--train", trained).code == 0
    assert layout.is_adapter(Path("run")) is (trained == "lora:2")
    found = accuracy(gptcli, "run", write_rows(tmp_path / "clean.jsonl", 300, seed=2))
    assert found["accuracy"] > 0.45
    before, tuned = checkpoint.load(base), checkpoint.load(Path("run"))
    assert torch.equal(before.tensors["wpe.weight"], tuned.tensors["wpe.weight"])
    said = gptcli("classify", "the cat saw", "-c", "run").out
    assert said.split("\t")[0] in LABELS
    if trained == "lora:2":
        assert gptcli("classify", "the cat saw", "--adapter", "run").out == said
        assert gptcli("classify", "the cat saw", "-c", base, "--adapter", "run").out == said
        clean = tmp_path / "clean.jsonl"
        assert gptcli("evaluate", clean, "-c", base, "--adapter", "run", "--json").json["accuracy"] == found["accuracy"]
        assert gptcli("merge", "run", "--out", "merged").code == 0
        assert gptcli("classify", "the cat saw", "-c", "merged").out == said


def test_unbalanced_labels_are_weighted_and_it_is_said(gptcli: Any, base: Path, tmp_path: Path) -> None:
    found = [row for n, row in enumerate(rows(300, seed=1)) if row["label"] != "stone" or n % 10 == 0]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    done = finetune(gptcli, base, data)
    assert "The labels are unbalanced: in the loss a row counts inversely to how frequent its label is" in done.err
    figures = accuracy(gptcli, "run", write_rows(tmp_path / "clean.jsonl", 300, seed=2))["figures"]
    assert figures[2]["predicted"] > 0


def test_numbers_are_taken_as_names(gptcli: Any, base: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    lines = [f"{row['text']},{LABELS.index(row['label'])}" for row in rows(60, seed=1)]
    table.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    done = finetune(gptcli, base, table, "--max-steps", 2)
    assert "The labels are numbers, and taken as names." in done.err
    assert layout.read_config(Path("run"))[0].labels == ("0", "1", "2")
    again = finetune(gptcli, Path("run"), table, "--max-steps", 2, out="again")
    assert again.code == 0, again.err
    assert layout.read_config(Path("again"))[0].labels == ("0", "1", "2")
    assert "drawn anew" not in again.err
    others = finetune(gptcli, Path("run"), write_rows(tmp_path / "others.jsonl", 40, seed=1), "--max-steps", 2, out="3")
    assert "run has other labels, 0, 1, 2: the new head gets random weights." in others.err
    assert layout.read_config(Path("3"))[0].labels == LABELS


def test_what_labels_refuse(gptcli: Any, base: Path, tmp_path: Path) -> None:
    def refused(given: list[dict[str, Any]], *words: str) -> None:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
        finetune(gptcli, base, data).assert_user_error(*words)
        assert not Path("run").exists()

    refused([{"text": "the cat", "label": "a"}] * 3, "all 3 rows have the label 'a'", "at least 2 labels")
    refused([{"text": "the cat", "label": 0.5 + n} for n in range(3)], "line 1: the label 0.5 is a fraction", "names")
    refused([{"text": "the cat", "label": n} for n in range(9)], "9 rows have 9 labels", "name ranges")
    refused(
        [{"text": "", "label": "a"}, {"text": "the cat", "label": "b"}], "line 1: field 'text' is empty", "--skip-bad"
    )
    refused([{"text": "a <|endoftext|>", "label": "a"}], "line 1 has '<|endoftext|>' in it", "Remove it")
    data = write_rows(tmp_path / "bad.jsonl", 20, seed=1)
    with data.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "", "label": "animal"}) + "\n")
    done = finetune(gptcli, base, data, "--skip-bad", "--max-steps", 1)
    assert done.code == 0
    assert "1 row is left out." in done.err
    for option, value in (("--loss-on", "all"), ("--template", "chat")):
        refused_too = finetune(gptcli, base, data, option, value, out="other")
        refused_too.assert_user_error(f"{option} is for texts that a model writes", "--fields text=text")
    story = tmp_path / "story.txt"
    story.write_text("the cat saw the dog. " * 30, encoding="utf-8")
    finetune(gptcli, Path("run"), story, out="more").assert_user_error("run is a classifier of 3 labels")


@pytest.mark.slow
def test_a_rule_is_learned_through_noise(gptcli: Any, tmp_path: Path) -> None:
    """Three labels, 600 rows, a tenth of them with a wrong label: at least 97% of 2,000 clean rows are right."""
    pytest.importorskip("tokenizers")
    text = write_text(tmp_path / "texts.txt", 10_000, seed=9)
    options = ("--emb-dim", 64, "--n-heads", 2, "--n-layers", 2, "--context-length", 32, "--drop-rate", 0)
    options += ("--max-steps", 1000, "--learning-rate", 3e-3, "--schedule", "cosine", "--batch-size", 16)
    assert gptcli("train", text, "--tokenizer", "bpe:360", *options, *QUIET, "--out", "base").code == 0
    data = write_rows(tmp_path / "rows.jsonl", 600, seed=1, noise=0.1)
    assert gptcli("finetune", data, "--init-from", "base", "--learning-rate", 1e-3, *QUIET, "--out", "run").code == 0
    found = accuracy(gptcli, "run", write_rows(tmp_path / "clean.jsonl", 2000, seed=2))
    assert found["accuracy"] >= 0.97
    alike = accuracy(gptcli, "run", write_rows(tmp_path / "alike.jsonl", 2000, seed=3, noise=0.1))
    assert alike["after"]["error"] < alike["before"]["error"]
