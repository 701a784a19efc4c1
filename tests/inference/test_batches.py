"""Many prompts at once: each row equals what it would be alone, and the file is read strictly."""

import json
from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint, tiny_model
from ragged import assert_each_as_alone, ragged_requests

pytest.importorskip("numba", exc_type=ImportError)

from gptcli.inference.cpu_engine import CpuEngine


@pytest.mark.parametrize("slots", [1, 3, 20])
def test_every_row_equals_what_it_would_be_alone(slots: int) -> None:
    """Ragged prompts, other options each, some past the context, some ended by a token, more than there are places."""
    model = tiny_model()
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    engine = CpuEngine(model.config, weights, slots=slots, threads=2)
    assert_each_as_alone(ragged_requests(), CpuEngine(model.config, weights), engine)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoints" / "run", context_length=32)


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_a_file_of_prompts_is_answered_in_its_order(gptcli: Any, run: Path, tmp_path: Path, engine: str) -> None:
    lines = [f"{'abcdefghij'[: n % 7 + 1]} {n}" for n in range(9)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    common = ("-n", 12, "--seed", 7, "--engine", engine, "--ignore-eot")
    many = gptcli("generate", "--prompts", "prompts.txt", "--batch-size", 4, "--json", *common)
    assert many.code == 0, many.err
    records = [json.loads(line) for line in many.out.splitlines()]
    assert [record["prompt"] for record in records] == lines
    for number in (0, 5):
        single = gptcli(
            "generate", lines[number], "-n", 12, "--seed", 7 + number, "--engine", engine, "--ignore-eot", "--json"
        )
        assert single.json["samples"][0]["ids"] == records[number]["ids"]
    text = gptcli("generate", "--prompts", "prompts.txt", *common)
    assert text.out == "\n".join(f"{record['prompt']}{record['text']}\n" for record in records)


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_the_layer_contrast_holds_for_a_file_of_prompts(gptcli: Any, run: Path, tmp_path: Path, engine: str) -> None:
    (tmp_path / "p.txt").write_text("Once\nTwice\n", encoding="utf-8")
    common = ("-n", 8, "-t", 0, "--contrast-layer", 1, "--engine", engine, "--ignore-eot", "--json")
    rows = [json.loads(line)["ids"] for line in gptcli("generate", "--prompts", "p.txt", *common).out.splitlines()]
    assert rows == [gptcli("generate", text, *common).json["samples"][0]["ids"] for text in ("Once", "Twice")]


def test_a_line_of_json_has_options_of_its_own(gptcli: Any, run: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "Once", "max_new_tokens": 3, "temperature": 0},
        {"prompt": "Once", "seed": 99, "top_k": 4},
        {"prompt": "Once"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = gptcli("generate", "--prompts", "p.jsonl", "-n", 20, "--seed", 1, "--json", "--ignore-eot")
    first, second, third = (json.loads(line) for line in result.out.splitlines())
    assert len(first["ids"]) == 3
    greedy = gptcli("generate", "Once", "-n", 3, "-t", 0, "--json", "--ignore-eot").json["samples"][0]["ids"]
    assert first["ids"] == greedy
    assert (second["seed"], third["seed"]) == (99, 3)
    stop = third["text"][5:8]
    cut = gptcli("generate", "--prompts", "p.jsonl", "-n", 20, "--seed", 1, "--json", "--ignore-eot", "--stop", stop)
    shorter = json.loads(cut.out.splitlines()[2])
    assert shorter["finish_reason"] == "stop"
    assert shorter["text"] == third["text"][: third["text"].index(stop)]
    assert len(shorter["ids"]) < 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("p.jsonl is empty",)),
        ("{", ("line 1 is not JSON",)),
        ('\n{"text": "a"}', ("line 2", '"prompt"')),
        ('{"prompt": "a", "topk": 3}', ("'topk'", "top_k")),
        ('{"prompt": "a", "seed": "x"}', ("seed is 'x'", "a whole number")),
        ('{"prompt": "a", "temperature": -1}', ("line 1", "temperature is -1")),
        ('{"prompt": "a", "max_new_tokens": 0}', ("max_new_tokens is 0",)),
        ('{"prompt": "", "seed": 1}', ("line 1", "empty")),
        ('{"prompt": "a", "stop": [1]}', ("stop is [1]",)),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(
    gptcli: Any, run: Path, tmp_path: Path, content: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "p.jsonl").write_text(content, encoding="utf-8")
    gptcli("generate", "--prompts", "p.jsonl").assert_user_error(*words)


def test_options_that_do_not_go_together_are_named(gptcli: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\n", encoding="utf-8")
    gptcli("generate", "a", "--prompts", "p.txt").assert_user_error("--prompts and a prompt")
    gptcli("generate", "--prompts", "p.txt", "--draft", "ngram").assert_user_error("--prompts and --draft")
    gptcli("generate", "--prompts", "p.txt", "--batch-size", 0).assert_user_error("--batch-size is 0")
    gptcli("generate", "--prompts", "nowhere.txt").assert_user_error("nowhere.txt")
