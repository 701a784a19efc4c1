"""gptcli finetune: a run on every form of examples, its answers through the template, and what it refuses."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from models import tiny_model

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint, layout
from gptcli.data.templates import TEMPLATES

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAST = ("--max-steps", 2, "--device", "cpu", "--threads", 1, "--learning-rate", 1e-3)
PAIRS = [{"prompt": f"{n} and {n} is", "completion": f" {2 * n}."} for n in range(12)]
CHATS = [{"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p["completion"]}]}
         for p in PAIRS]  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A language model of bytes that has learned nothing."""
    model = tiny_model(vocab_size=257, context_length=256)
    checkpoint.create(tmp_path / "base", model, tokenizers.build("byte"), {})
    return tmp_path / "base"


def lines(path: str, rows: list[Any]) -> str:
    Path(path).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


FORMS: list[tuple[str, Any, str, str | None]] = [
    ("texts", [{"text": f"Text number {n}. " * 3} for n in range(12)], "12 texts (text).", None),
    ("pairs", PAIRS, "12 prompts with completions (prompt, completion), written by the template plain.", "plain"),
    ("instructions", [{"instruction": p["prompt"], "input": "", "output": p["completion"]} for p in PAIRS],
     "12 instructions (instruction, input, output), written by the template alpaca.", "alpaca"),
    ("chats", CHATS, "12 chats (messages), written by the template chat.", "chat"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "said", "template"), [each[1:] for each in FORMS], ids=[each[0] for each in FORMS])
def test_every_form_of_examples(gptcli: Any, base: Path, rows: Any, said: str, template: str | None) -> None:
    before = (base / "model.safetensors").read_bytes()
    result = gptcli("finetune", lines("rows.jsonl", rows), "--init-from", "base", "--out", "run", *FAST)
    assert result.code == 0, result.err
    assert result.out == "run\n"
    assert f"rows.jsonl: {said}" in result.err
    assert "Before the first step: Train loss" in result.err
    assert (base / "model.safetensors").read_bytes() == before
    assert layout.load_tokenizer(Path("run")).chat_template == (TEMPLATES[template] if template else None)
    first, *_, last = checkpoint.read_metrics(Path("run"))
    assert (first["step"], last["step"]) == (-1, 1)
    assert "early_stop = 5" in Path("run/config.toml").read_text(encoding="utf-8")


def test_labels_make_a_classifier(gptcli: Any, base: Path) -> None:
    rows = [{"text": f"A {word} thing, number {n}.", "label": word} for n in range(6) for word in ("red", "blue")]
    result = gptcli(
        "finetune", lines("rows.jsonl", rows), "--init-from", "base", "--out", "run", "--train", "head", *FAST
    )
    assert result.code == 0, result.err
    assert "2 labels: 'blue' 6, 'red' 6." in result.err
    assert checkpoint.load(Path("run")).config.labels == ("blue", "red")
    assert gptcli("classify", "A red thing.", "-c", "run").code == 0
    assert gptcli("finetune", "--resume", "run", "--max-steps", 3).code == 0
    run = shutil.move("run", "my run")
    assert gptcli("checkpoints", run, "--prune").code == 0
    resume = gptcli("finetune", "--resume", run)
    resume.assert_user_error("no snapshot of a training run", "gptcli finetune DATA --init-from", "--out ANOTHER")
    words = shlex.split(resume.err.partition(": gptcli ")[2].replace("DATA", "rows.jsonl"))
    assert gptcli(*words, *FAST).code == 0


def test_a_table_with_other_names_and_running_text(gptcli: Any, base: Path) -> None:
    Path("rows.csv").write_text(
        "question;answer\n" + "\n".join(f"{n} + 1?;{n + 1}" for n in range(12)), encoding="utf-8"
    )
    Path("folder").mkdir()
    Path("folder/a.md").write_text("A text of some length, of which windows are made. " * 40, encoding="utf-8")
    mapped = ("--fields", "prompt=question,completion=answer")
    assert gptcli("finetune", "rows.csv", *mapped, "--init-from", "base", "--out", "rows", *FAST).code == 0
    gptcli("evaluate", "--part", "train", "-c", "rows").assert_user_error("rows.csv, which holds separate examples")
    result = gptcli("finetune", "folder", "--init-from", "base", "--out", "text", *FAST)
    assert "running text in 10 windows" in result.err
    assert "The text is short, 2,001 tokens: it is cut in windows of 200" in result.err
    assert "10 examples are few: the model may memorise them" in result.err


def test_a_config_repeats_it_to_the_byte(gptcli: Any, base: Path) -> None:
    Path("mine.jinja").write_text(TEMPLATES["chat"].replace("capitalize", "upper"), encoding="utf-8")
    options = ("--template", "mine.jinja", "--loss-on", "all", "--train", "last:1")
    run = gptcli("finetune", lines("rows.jsonl", CHATS), "--init-from", "base", "--out", "one", *FAST, *options)
    assert run.code == 0, run.err
    assert gptcli("finetune", "--config", "one/config.toml", "--out", "two").code == 0
    for name in ("model.safetensors", "tokenizer_config.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    frozen = [checkpoint.load(Path(each)).tensors["h.0.attn.c_attn.weight"] for each in ("base", "one")]
    assert frozen[0].equal(frozen[1])


def test_answers_come_through_the_template(gptcli: Any, base: Path) -> None:
    gptcli("finetune", lines("rows.jsonl", CHATS), "--init-from", "base", "--out", "run", *FAST)
    how = ("-c", "run", "-n", 4, "--seed", 1, "--json")
    answer, raw = gptcli("generate", "Hi", *how).json, gptcli("generate", "Hi", *how, "--raw").json
    assert bytes(answer["prompt_ids"]) == b"User:\nHi\n\nAssistant:\n"
    assert bytes(raw["prompt_ids"]) == b"Hi"
    assert not gptcli("generate", "Hi", "-c", "run", "-n", 4, "--seed", 1).out.startswith("Hi")
    Path("prompts.txt").write_text("Hi\nHo\n", encoding="utf-8")
    result = gptcli("generate", "--prompts", "prompts.txt", "-c", "run", "-n", 4, "--seed", 1, "--json")
    assert json.loads(result.out.splitlines()[0])["ids"] == answer["samples"][0]["ids"]
    gptcli("generate", "<|endoftext|>", "-c", "run").assert_user_error("'<|endoftext|>'", "--allow-special", "--raw")


def test_rows_that_cannot_be_used_are_counted(gptcli: Any, base: Path) -> None:
    bad = [{"prompt": "p", "completion": ""}, 7, {"prompt": "<|endoftext|>", "completion": "x"}, {"prompt": "p"}]
    name = lines("rows.jsonl", PAIRS + bad)
    result = gptcli("finetune", name, "--init-from", "base", "--out", "run", "--skip-bad", *FAST)
    assert "4 rows are left out. The first: rows.jsonl, line 14 is 7, not an object" in result.err
    assert "12 prompts with completions" in result.err
    gptcli("finetune", name, "--init-from", "base", "--out", "other", *FAST).assert_user_error(
        "line 14", "--skip-bad leaves such"
    )
    assert not Path("other").exists()


def test_examples_that_are_too_long_are_cut_at_the_front_of_the_prompt(gptcli: Any, base: Path) -> None:
    rows = [*PAIRS, {"prompt": "x" * 300, "completion": " y"}, {"prompt": "x", "completion": "y" * 300}]
    result = gptcli("finetune", lines("rows.jsonl", rows), "--init-from", "base", "--out", "run", *FAST)
    assert "2 examples have more than 256 tokens: the beginning of the prompt is cut off. In 1 of them" in result.err


BAD: list[tuple[str, Any, tuple[Any, ...], tuple[str, ...]]] = [
    ("fields of no form", [{"question": "q", "answer": "a"}], (), ("'question', 'answer'", "--fields prompt=question")),
    ("an empty answer", [{"prompt": "q", "completion": " "}], (), ("rows.jsonl, line 1", "'completion' is empty")),
    ("a special token", [{"prompt": "q<|endoftext|>", "completion": "a"}], (), ("line 1", "the end of text")),
    ("a role of no chat", [{"messages": [{"role": "bot", "content": "x"}]}], (), ("line 1, message 1", '"bot"')),
    ("preferences", [{"prompt": "p", "chosen": "a", "rejected": "b"}], (), ("does not learn", "--method dpo")),
    ("no row", [{}], (), ("rows.jsonl has no row", "Give one example a row")),
    ("one label only", [{"text": "x", "label": "a"}] * 3, (), ("all 3 rows have the label 'a'", "at least 2")),
    ("an unknown field", PAIRS, ("--fields", "promt=a"), ("--fields has 'promt'", "Did you mean prompt?")),
    ("a field that is not there", PAIRS, ("--fields", "text=body"), ("line 1 has no field 'body'", "Expected: body")),
    ("no template", PAIRS, ("--template", "alpacca"), ("--template is 'alpacca'", "Did you mean alpaca?")),
    ("no blocks", PAIRS, ("--train", "last:9"), ("--train is last:9", "last:2, or all")),
    ("no weights", PAIRS, ("--train", "top"), ("--train is 'top'", "last:2")),
    ("a tied head", PAIRS, ("--train", "head"), ("--train is head", "last:1")),
    ("alpha without adapters", PAIRS, ("--lora-alpha", 4), ("--lora-alpha is of adapters", "--train lora")),
    ("a rank of nothing", PAIRS, ("--train", "lora:0"), ("--train is 'lora:0'",)),
    ("a context too long", PAIRS, ("--context-length", 999), ("--context-length 999 is larger", "at most 256")),
    ("a run over its base", PAIRS, ("--out", "base", "--force"), ("base",)),
    ("no step", PAIRS, ("--max-steps", 0), ("--max-steps is 0",)),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "options", "said"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_mistakes(gptcli: Any, base: Path, rows: Any, options: tuple[Any, ...], said: tuple[str, ...]) -> None:
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    name = lines("rows.jsonl", rows)
    gptcli("finetune", name, "--init-from", "base", "--out", "run", *FAST, *options).assert_user_error(*said)
    assert not Path("run").exists()
    assert {path.name: path.read_bytes() for path in base.iterdir()} == files


def test_what_is_missing_is_named(gptcli: Any, base: Path) -> None:
    lines("rows.jsonl", PAIRS)
    gptcli("finetune", "--init-from", "base").assert_user_error("no examples")
    gptcli("finetune", "rows.jsonl").assert_user_error("no checkpoint to fine-tune", "--init-from")
    gptcli("finetune", "row.jsonl", "--init-from", "base").assert_user_error("No such file: row.jsonl", "rows.jsonl")
    gptcli("finetune", "rows.jsonl", "--init-from", "bas").assert_user_error("bas")
    lines("other.jsonl", CHATS)
    gptcli("finetune", "rows.jsonl", "other.jsonl", "--init-from", "base", "--out", "x").assert_user_error(
        "rows.jsonl has prompts with completions", "other.jsonl has chats"
    )
    Path("bare.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    words = ("finetune", "rows.jsonl", "--template", "bare.jinja", "--init-from", "base", "--out", "x")
    gptcli(*words).assert_user_error("no {% generation %}", "--loss-on all")
    Path("bad.jinja").write_text("{% for %}", encoding="utf-8")
    gptcli(*words[:3], "bad.jinja", *words[4:]).assert_user_error("bad.jinja is no Jinja2: line 1")


def test_what_a_resumed_run_may_not_change(gptcli: Any, base: Path) -> None:
    gptcli("finetune", lines("rows.jsonl", PAIRS), "--init-from", "base", "--out", "run", *FAST)
    gptcli("finetune", "--resume", "run").assert_user_error("all 2 steps are done", "gptcli finetune --resume run")
    resumed = ("finetune", "--resume", "run", "--max-steps", 4)
    gptcli(*resumed, "--loss-on", "all").assert_user_error("--loss-on is all, but run began with answers")
    gptcli(*resumed, "--train", "last:1").assert_user_error("--train is last:1, but run began with all")
    lines("rows.jsonl", PAIRS[1:])
    gptcli(*resumed).assert_user_error("The text of run", "has changed")


@pytest.mark.parametrize(
    "options",
    [
        *(("--train", "lora"), ("--fields", "text=a"), ("--method", "dpo"), ("--template", "alpaca")),
        *(("--loss-on", "all"), ("--skip-bad",), ("--method", "dpo", "--dpo-beta", 0.2)),
        ("--train", "lora", "--lora-alpha", 4, "--lora-targets", "mlp.c_fc"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_a_run_of_train_has_no_settings_of_fine_tuning(gptcli: Any, tmp_path: Path, options: tuple[Any, ...]) -> None:
    run = shutil.copytree(FIXTURES / "stopped-adamw", tmp_path / "a run")
    gptcli("finetune", "--resume", run, *options).assert_user_error(
        f"{options[0]} is a setting of fine-tuning", "begun by gptcli train", f'--init-from "{run}"'
    )


def test_train_and_prepare_name_finetune_for_rows(gptcli: Any) -> None:
    name = lines("rows.jsonl", PAIRS)
    gptcli("train", name, "--out", "run").assert_user_error("rows.jsonl", "gptcli finetune", "--field")
    gptcli("prepare", name, "--out", "folder").assert_user_error("rows.jsonl", "--field")
