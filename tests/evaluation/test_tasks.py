"""Tasks: equal to a plain loop over the logits of transformers, and honest about broken lines."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_checkpoint
from trained import trained_model

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.errors import GptcliError
from gptcli.evaluation.task_files import Candidate, Item, read_items
from gptcli.evaluation.tasks import differences, mean_and_error, run, summarise

WORDS = ("the", "“old”", "king", "saw", "a", "ship")


def words(generator: torch.Generator, count: int) -> str:
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(our checkpoint, transformers' model of it)"""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("tasks") / "model"
    model = trained_model(" ".join(WORDS * 60), context_length=140, steps=60)
    checkpoint.create(path, model, tokenizers.build("byte"), {})
    return checkpoint.load(path), transformers.GPT2LMHeadModel.from_pretrained(path).eval()


@torch.no_grad()
def plain(subject: Any, before: str, scored: str) -> tuple[float, bool, bool]:
    """Log-likelihood of ``scored`` after ``before``; whether greedy decoding gives all of it; and its last token."""
    loaded, reference = subject
    context, answer = loaded.tokenizer.encode(before), loaded.tokenizer.encode(scored)
    ids = torch.tensor([[*context, *answer]])[:, -loaded.config.context_length - 1 :]
    log_probs = torch.log_softmax(reference(ids[:, :-1]).logits[0, -len(answer) :].double(), dim=-1)
    targets = ids[0, -len(answer) :]
    right = log_probs.argmax(dim=-1) == targets
    return float(log_probs.gather(1, targets[:, None]).sum()), bool(right.all()), bool(right[-1])


@pytest.mark.parametrize("convention", ["openai", "raw"])
def test_lambada_equals_a_plain_loop(subject: Any, convention: Any, tmp_path: Path) -> None:
    loaded, _ = subject
    generator = torch.Generator().manual_seed(1)
    texts = [words(generator, 4 + number % 30) for number in range(200)]
    for number in range(0, 200, 2):  # words in the order that the model has learnt
        texts[number] = " ".join((WORDS * 6)[number % 6 : number % 6 + 4 + number // 10])
    file = write(tmp_path / "lambada.jsonl", [{"text": text} for text in texts])
    rows = list(run(loaded.model(), loaded.tokenizer, read_items(file, "lambada", convention), batch_size=16))
    for text, row in zip(texts, rows, strict=True):
        text = text.replace("“", '"').replace("”", '"') if convention == "openai" else text
        before, _, word = text.rpartition(" ")
        likelihood, greedy, last = plain(subject, before, " " + word)
        assert row["log_likelihood"] == pytest.approx(likelihood, abs=1e-4)
        assert (row["accuracy"], row["accuracy_last_token"]) == (greedy, last)
    figures = summarise(rows)
    assert 0.0 < figures["accuracy"].value < 1.0
    mean = math.fsum(row["log_likelihood"] for row in rows) / 200
    assert figures["log_likelihood"].value == pytest.approx(math.exp(-mean))


def test_greedy_over_all_the_tokens_of_the_last_word(subject: Any, tmp_path: Path) -> None:
    loaded, _ = subject
    model, tokenizer = loaded.model(), loaded.tokenizer
    ids = tokenizer.encode("it saw")
    while len(ids) < 16:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    # Whatever the model goes on with is by definition greedy; the same with its last token changed is not.
    texts = {"context": ids[:6], "contextright": ids, "contextwrong": [*ids[:-1], (ids[-1] + 1) % 256]}

    class Ids:
        """The tokenizer of made-up texts."""

        kind, eot_id = "ids", None

        def encode(self, text: str) -> list[int]:
            return texts[text]

    items = [Item(n, (Candidate("context", word, "", 1),), 0) for n, word in enumerate(["right", "wrong"])]
    right, wrong = run(model, Ids(), items, 2)  # type: ignore[arg-type]
    assert (right["accuracy"], right["accuracy_last_token"]) == (1, 1)
    assert (wrong["accuracy"], wrong["accuracy_last_token"]) == (0, 0)


def test_choices_equal_a_plain_loop(subject: Any, tmp_path: Path) -> None:
    loaded, _ = subject
    generator = torch.Generator().manual_seed(2)
    rows = [
        {
            "context": words(generator, 3 + number % 20) + (" " if number % 3 == 0 else ""),
            "endings": [words(generator, 1 + (number + ending) % 5) for ending in range(2 + number % 3)],
            "label": number % 2,
        }
        for number in range(200)
    ]
    file = write(tmp_path / "choices.jsonl", rows)
    found = list(run(loaded.model(), loaded.tokenizer, read_items(file, "choices"), batch_size=13))
    for row, result in zip(rows, found, strict=True):
        expected = [plain(subject, row["context"].rstrip(), " " + ending)[0] for ending in row["endings"]]
        assert result["log_likelihoods"] == pytest.approx(expected, abs=1e-4)
        per_byte = [value / len(ending.encode()) for value, ending in zip(expected, row["endings"], strict=True)]
        assert result["accuracy"] == (expected.index(max(expected)) == row["label"])
        assert result["accuracy_per_byte"] == (per_byte.index(max(per_byte)) == row["label"])
    accuracy = summarise(found)["accuracy"]
    share = sum(result["accuracy"] for result in found) / 200
    assert accuracy.value == share
    assert accuracy.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 199))


def test_cloze_equals_a_plain_loop(subject: Any, tmp_path: Path) -> None:
    loaded, _ = subject
    generator = torch.Generator().manual_seed(3)
    rows = [
        {
            "text": f"{words(generator, 2 + number % 4)} ___ {words(generator, 1 + number % 3)}.",
            "options": [words(generator, 1), words(generator, 1)],
            "label": 1,
        }
        for number in range(50)
    ]
    file = write(tmp_path / "cloze.jsonl", rows)
    found = list(run(loaded.model(), loaded.tokenizer, read_items(file, "cloze"), batch_size=8))
    for row, result in zip(rows, found, strict=True):
        before, after = row["text"].split(" ___")
        full = [plain(subject, before, f" {option}{after}")[0] for option in row["options"]]
        rest = [plain(subject, f"{before} {option}", after)[0] for option in row["options"]]
        assert result["log_likelihoods"] == pytest.approx(full, abs=1e-4)
        assert result["accuracy"] == (full[1] > full[0])
        assert result["accuracy_rest"] == (rest[1] > rest[0])


def test_an_open_cloze_is_a_last_word(subject: Any, tmp_path: Path) -> None:
    loaded, _ = subject
    cloze = write(tmp_path / "cloze.jsonl", [{"text": "it saw the ___ there", "answer": "ship"}])
    last = write(tmp_path / "last.jsonl", [{"text": "it saw the ship"}])
    rows = [
        list(run(loaded.model(), loaded.tokenizer, items, 1))
        for items in (read_items(cloze, "cloze"), read_items(last, "lambada"))
    ]
    assert rows[0] == rows[1]


def test_batch_size_and_padding_change_nothing(subject: Any, tmp_path: Path) -> None:
    loaded, _ = subject
    generator = torch.Generator().manual_seed(4)
    file = write(tmp_path / "l.jsonl", [{"text": words(generator, 2 + number)} for number in range(20)])
    items = read_items(file, "lambada")
    one, many = (list(run(loaded.model(), loaded.tokenizer, items, size)) for size in (1, 20))
    for a, b in zip(one, many, strict=True):
        assert a["log_likelihood"] == pytest.approx(b["log_likelihood"], abs=1e-5)


def test_bos_stands_before_the_item(subject: Any, tmp_path: Path) -> None:
    loaded, reference = subject
    file = write(tmp_path / "l.jsonl", [{"text": "it saw"}])
    (row,) = run(loaded.model(), loaded.tokenizer, read_items(file, "lambada"), 1, bos=True)
    ids = torch.tensor([[256, *b"it saw"]])
    with torch.no_grad():
        log_probs = torch.log_softmax(reference(ids[:, :-1]).logits[0, -4:].double(), dim=-1)
    assert row["log_likelihood"] == pytest.approx(float(log_probs.gather(1, ids[0, -4:, None]).sum()), abs=1e-4)


def test_paired_differences() -> None:
    a = [{"accuracy": 1, "log_likelihood": -1.0}, {"accuracy": 0, "log_likelihood": -3.0}]
    b = [{"accuracy": 0, "log_likelihood": -2.0}, {"accuracy": 0, "log_likelihood": -4.0}]
    change = differences(a, b)
    assert (change["accuracy"].value, change["accuracy"].standard_error) == (0.5, 0.5)
    assert (change["log_likelihood"].value, change["log_likelihood"].standard_error) == (-1.0, 0.0)
    assert math.isnan(mean_and_error([1.0])[1])


GOOD = {
    "lambada": '{"text": "one two"}',
    "choices": '{"context": "a", "endings": ["b", "c"], "label": 0}',
    "cloze": '{"text": "a ___ c", "options": ["b", "d"], "label": 0}',
}


@pytest.mark.parametrize(
    ("task", "line", "what"),
    [
        ("lambada", "{", "is not JSON"),
        ("lambada", "[" * 100_000, "is not JSON"),
        ("lambada", '"text"', "is no JSON object"),
        ("lambada", '{"txt": "a b"}', "has no text under 'text'"),
        ("lambada", '{"text": 5}', "has no text under 'text'"),
        ("lambada", '{"text": "word"}', "has no last word"),
        ("lambada", '{"text": " word "}', "has no last word"),
        ("choices", '{"context": "a", "endings": "bc", "label": 0}', "has no list under 'endings'"),
        ("choices", '{"context": "a", "endings": ["b"], "label": 0}', "has no two texts under 'endings'"),
        ("choices", '{"context": "a", "endings": ["b", 1], "label": 0}', "has no two texts under 'endings'"),
        ("choices", '{"context": "a", "endings": ["b", " "], "label": 0}', "has no two texts under 'endings'"),
        ("choices", '{"context": "a", "endings": ["b", "c"], "label": 2}', "has label 2, but 2 endings"),
        ("choices", '{"context": "a", "endings": ["b", "c"], "label": "0"}', "has no whole number under 'label'"),
        ("choices", '{"context": "a", "endings": ["b", "c"], "label": true}', "has no whole number under 'label'"),
        ("cloze", '{"text": "a b", "answer": "c"}', "has 0 blanks"),
        ("cloze", '{"text": "a ___ ___", "answer": "c"}', "has 2 blanks"),
        ("cloze", '{"text": "a ___"}', "has no text under 'answer'"),
        ("cloze", '{"text": "a ___", "answer": " "}', "has an empty answer"),
        ("cloze", '{"text": "a ___", "answer": "c"}', "has no options, but line 1 has some"),
    ],
)
def test_a_bad_line_is_named_by_number(task: Any, line: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text(f"{GOOD[task]}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(GptcliError) as error:
        read_items(file, task)
    assert f"{file}, line 3 {what}" in error.value.message
    assert "\n" not in error.value.message
    assert len(read_items(file, task, limit=1)) == 1


def test_an_answer_longer_than_the_context(subject: Any, tmp_path: Path) -> None:
    loaded, _ = subject
    file = write(tmp_path / "l.jsonl", [{"text": "a b"}, {"text": "a " + "b" * 140}])
    with pytest.raises(GptcliError, match=r"l\.jsonl, line 2: .* has 141 tokens, .* holds 140"):
        list(run(loaded.model(), loaded.tokenizer, read_items(file, "lambada"), 1, file=file))


@pytest.mark.slow
def test_lm_eval_gives_the_same_log_likelihoods(tmp_path: Path) -> None:
    """It opens our directory as a Hugging Face model, and reads a local task of 50 items."""
    pytest.importorskip("lm_eval")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    path = tiny_checkpoint(tmp_path / "model", "gpt2", context_length=64)
    generator = torch.Generator().manual_seed(5)
    rows = [
        {"context": words(generator, 8), "endings": [words(generator, 3), words(generator, 4)], "label": number % 2}
        for number in range(50)
    ]
    file = write(tmp_path / "items.jsonl", rows)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(
        "task: local\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{context}}"\ndoc_to_choice: "{{endings}}"\ndoc_to_target: "{{label}}"\n'
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
        encoding="utf-8",
    )
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(path), "tokenizer": str(path), "dtype": "float32"},
        tasks=["local"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=8,
        log_samples=True,
        bootstrap_iters=0,
    )
    loaded = checkpoint.load(path)
    ours = list(run(loaded.model(), loaded.tokenizer, read_items(file, "choices"), batch_size=8))
    samples = sorted(theirs["samples"]["local"], key=lambda sample: sample["doc_id"])
    for sample, row in zip(samples, ours, strict=True):
        assert [float(value) for ((value, _),) in sample["resps"]] == pytest.approx(row["log_likelihoods"], abs=1e-3)
    assert theirs["results"]["local"]["acc,none"] == pytest.approx(summarise(ours)["accuracy"].value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_task_file_is_read_as_every_other_text_and_a_line_ends_at_a_newline_alone(
    tmp_path: Path, encoding: str, newline: str
) -> None:
    file = tmp_path / "items.jsonl"
    rows = [{"text": f"one{separator}two three"} for separator in "\u2028\u2029\x85\x1c"]
    lines = newline.join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_bytes(lines.encode(encoding))
    items = read_items(file, "lambada")
    assert [item.line for item in items] == [1, 2, 3, 4]
    assert items[0].candidates[0].before == "one\u2028two"
