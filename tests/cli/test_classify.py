"""gptcli classify, and evaluate of a classifier."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_checkpoint, tiny_model

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.errors import GptcliError
from gptcli.inference.calibration import fitted_temperature
from gptcli.inference.classifier import Classifier, label_logits

LABELS = ("ham", "spam", "9")
TEXTS = ["a cab", "bead", "dad faced a cabbage", "a", "b" * 19, "cab cab", "fed"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A classifier of random weights, whose training has fitted a temperature."""
    tokenizer = tokenizers.build("byte")
    model = tiny_model(vocab_size=257, labels=LABELS)
    checkpoint.create(tmp_path / "run", model, tokenizer, {"calibration": {"temperature": 2.0}})
    return tmp_path / "run"


def rows_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def logits_of(run: Path, text: str) -> torch.Tensor:
    loaded = checkpoint.load(run)
    with torch.inference_mode():
        return loaded.model().next_logits(torch.tensor([loaded.tokenizer.encode(text)]))[0]


def test_a_text_has_the_likeliest_label_at_the_runs_temperature(gptcli: Any, run: Path) -> None:
    expected = (logits_of(run, "a cab").double() / 2).softmax(-1)
    shown = gptcli("classify", "a cab", "-c", run)
    label, probability = shown.out.rstrip("\n").split("\t")
    assert label == LABELS[int(expected.argmax())]
    assert probability == f"{float(expected.max()):.4f}"
    found = gptcli("classify", "a cab", "-c", run, "--json").json
    assert (found["label"], list(found["probabilities"])) == (label, list(LABELS))
    assert list(found["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(found["probabilities"].values()) == pytest.approx(1)


def test_rows_in_and_rows_out_in_their_order(gptcli: Any, run: Path, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", [{"text": text, "number": n} for n, text in enumerate(TEXTS)])
    alone = [gptcli("classify", text, "-c", run).out for text in TEXTS]
    assert gptcli("classify", file, "-c", run).out == "".join(alone)
    lines = [json.loads(line) for line in gptcli("classify", file, "-c", run, "--json").out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert [line["line"] for line in lines] == list(range(1, len(TEXTS) + 1))
    assert all(line["label"] in LABELS and math.isclose(sum(line["probabilities"].values()), 1) for line in lines)
    table = tmp_path / "rows.csv"
    table.write_text("body,kind\n" + "".join(f"{text},x\n" for text in TEXTS), encoding="utf-8")
    assert gptcli("classify", table, "-c", run, "--fields", "text=body").out == "".join(alone)
    plain = tmp_path / "mail.txt"
    plain.write_text(TEXTS[2], encoding="utf-8")
    assert gptcli("classify", plain, "-c", run).out == alone[2]


def test_stdin_is_a_text_or_json_rows(gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    def given(content: str) -> str:
        stdin = io.TextIOWrapper(io.BytesIO(content.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        return str(gptcli("classify", "-", "-c", run).out)

    assert given("a cab") == gptcli("classify", "a cab", "-c", run).out
    assert len(given('{"text": "a cab"}\n{"text": "bead"}\n').splitlines()) == 2
    assert len(given('[{"text": "a cab"}, {"text": "bead"}, {"text": "a"}]').splitlines()) == 3


def test_a_batch_gives_what_the_texts_give_one_by_one(run: Path) -> None:
    loaded = checkpoint.load(run)
    texts = [loaded.tokenizer.encode(text) for text in TEXTS]
    counted: list[int] = []
    together = label_logits(loaded.model(), texts, counted.append)
    assert sum(counted) == len(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(row, logits_of(run, text), atol=1e-5, rtol=0)


def test_the_api_classifies(run: Path) -> None:
    classifier = Classifier(run, device="cpu")
    assert (classifier.labels, classifier.temperature, classifier.is_calibrated) == (LABELS, 2.0, True)
    found = classifier.classify(TEXTS)
    assert [each.tokens for each in found] == [len(text) for text in TEXTS]
    assert all(each.probability == max(each.probabilities.values()) for each in found)
    assert classifier.classify([]) == []
    with pytest.raises(GptcliError, match="Text 1: The text is empty"):
        classifier.classify(["a", " "])
    with pytest.raises(GptcliError, match="one text"):
        classifier.classify("a cab")


def test_of_a_long_text_the_first_tokens_are_read_and_it_is_said(gptcli: Any, run: Path, tmp_path: Path) -> None:
    long, cut = "abcdefg " * 5, ("abcdefg " * 5)[:20]
    shown = gptcli("classify", long, "-c", run)
    assert shown.out == gptcli("classify", cut, "-c", run).out
    assert "The text has more than 20 tokens: only the first 20 are read." in shown.err
    file = rows_file(tmp_path / "rows.jsonl", [{"text": long}, {"text": "a"}])
    assert "1 of 2 texts have more than 20 tokens" in gptcli("classify", file, "-c", run).err


def test_what_classify_refuses(gptcli: Any, run: Path, tmp_path: Path) -> None:
    language_model = tiny_checkpoint(tmp_path / "lm")
    gptcli("classify", "a", "-c", language_model).assert_user_error(
        f"{language_model} is a language model: it has no labels.", f"gptcli finetune ROWS --init-from {language_model}"
    )
    gptcli("classify", "-c", run).assert_user_error("There is no text to classify.", "a file of rows")
    for empty in ("", "  \n"):
        gptcli("classify", empty, "-c", run).assert_user_error("The text is empty", "Give a text")
    file = rows_file(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": ""}, {"text": 3}])
    gptcli("classify", rows_file(tmp_path / "empty.jsonl", [{"text": "", "n": 1}]), "-c", run).assert_user_error(
        "empty.jsonl, line 1: The text is empty"
    )
    gptcli("classify", file, "-c", run).assert_user_error("rows.jsonl, line 3: field 'text' is 3, not a text")
    other = rows_file(tmp_path / "other.jsonl", [{"body": "a"}])
    gptcli("classify", other, "-c", run).assert_user_error("line 1 has no field 'text'; it has body", "--fields text=")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    found = gptcli("classify", broken, "-c", run)
    found.assert_user_error("broken.jsonl, line 2 is no JSON", "Expected: one object")
    assert "skip" not in found.err
    characters = tokenizers.build("char", "abc ")
    checkpoint.create(tmp_path / "char", tiny_model(vocab_size=characters.vocab_size, labels=LABELS), characters, {})
    gptcli("classify", "a\nx", "-c", tmp_path / "char").assert_user_error("(U+000A) at offset 1")
    unknown = rows_file(tmp_path / "unknown.jsonl", [{"text": "abz"}])
    gptcli("classify", unknown, "-c", tmp_path / "char").assert_user_error("unknown.jsonl, line 1: The character 'z'")


def labelled(run: Path) -> list[dict[str, Any]]:
    """The texts with the labels that the classifier gives them, but for one."""
    found = [
        {"text": each, "label": kind.label} for each, kind in zip(TEXTS, Classifier(run).classify(TEXTS), strict=True)
    ]
    wrong = next(label for label in LABELS if label != found[0]["label"])
    return [{"text": TEXTS[0], "label": wrong}, *found[1:]]


def test_evaluate_gives_a_classifiers_figures(gptcli: Any, run: Path, tmp_path: Path) -> None:
    rows = labelled(run)
    file = rows_file(tmp_path / "rows.jsonl", rows)
    found = gptcli("evaluate", file, "-c", run, "--json").json
    assert (found["rows"], found["accuracy"]) == (7, pytest.approx(6 / 7))
    kind = [Classifier(run).classify([row["text"]])[0].label for row in rows]
    assert sum(sum(row) for row in found["confusion"]) == 7
    for actual, row in zip(LABELS, found["confusion"], strict=True):
        for predicted, count in zip(LABELS, row, strict=True):
            pairs = [(row["label"], given) for row, given in zip(rows, kind, strict=True)]
            assert count == pairs.count((actual, predicted))
    for each in found["figures"]:
        right = sum(row["label"] == given == each["label"] for row, given in zip(rows, kind, strict=True))
        assert each["precision"] == (right / kind.count(each["label"]) if each["label"] in kind else None)
        assert each["rows"] == sum(row["label"] == each["label"] for row in rows)
    for name, temperature in (("before", 1), ("after", 2)):
        nats = [
            -float((logits_of(run, row["text"]).double() / temperature).log_softmax(-1)[LABELS.index(row["label"])])
            for row in rows
        ]
        assert found[name]["nats"] == pytest.approx(sum(nats) / 7, abs=1e-5)
        assert found[name]["temperature"] == temperature
        assert 0 <= found[name]["error"] <= 1


def test_evaluate_prints_and_draws_and_writes_them(gptcli: Any, run: Path, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "rows.jsonl", labelled(run))
    shown = gptcli("evaluate", file, "-c", run, "--plot", "scores.png", "--out", "rows-out.jsonl")
    assert shown.code == 0, shown.err
    for words in (
        "Confusion matrix",
        "precision",
        "recall",
        "accuracy 85.71%",
        "Calibration error",
        "temperature, 2.00",
    ):
        assert words in shown.out
    assert Path("scores.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in Path("rows-out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 8))
    assert sum(line["label"] == line["predicted"] for line in lines) == 6
    before = Path("scores.png").read_bytes()
    assert gptcli("evaluate", file, "-c", run, "--plot", "scores.png", "--out", "rows-out.jsonl").code == 0
    assert Path("scores.png").read_bytes() == before


def test_many_labels_are_shown_by_their_worst_confusions(gptcli: Any, tmp_path: Path) -> None:
    labels = tuple(f"kind {number}" for number in range(20))
    tokenizer = tokenizers.build("byte")
    checkpoint.create(tmp_path / "run", tiny_model(vocab_size=257, labels=labels), tokenizer, {})
    rows = [{"text": text, "label": labels[n]} for n, text in enumerate(TEXTS)]
    shown = gptcli("evaluate", rows_file(tmp_path / "rows.jsonl", rows), "-c", tmp_path / "run", "--plot", "m.png")
    assert shown.code == 0
    assert "Most frequent confusions" in shown.out
    assert "no fitted temperature" in shown.out
    assert Path("m.png").exists()


def test_what_evaluate_refuses_of_a_classifier(gptcli: Any, run: Path, tmp_path: Path, story: Path) -> None:
    def refused(rows: list[dict[str, Any]], *words: str) -> None:
        gptcli("evaluate", rows_file(tmp_path / "bad.jsonl", rows), "-c", run).assert_user_error(*words)

    refused(
        [{"text": "a", "label": "ham"}, {"text": "b", "label": "eggs"}],
        "bad.jsonl, line 2: the label 'eggs' is none that the classifier has learned: 'ham', 'spam', '9'.",
    )
    refused([{"text": "a"}], "line 1 has text, and no text with its label", "text and label")
    refused([{"text": "a", "label": ["ham"]}], "line 1: the label is ['ham']", "not a name")
    refused([{"text": "a", "label": 0.5}], "line 1: the label 0.5 is a fraction", "names")
    refused([{"text": "a", "label": None}], "line 1: the label is empty")
    refused([{"text": " ", "label": "ham"}], "line 1: field 'text' is empty")
    number = rows_file(tmp_path / "number.jsonl", [{"text": "a", "label": 9}, {"text": "b", "label": 9.0}])
    assert gptcli("evaluate", number, "-c", run, "--json").json["figures"][2]["rows"] == 2
    gptcli("evaluate", story, "-c", run).assert_user_error("story.txt holds no labelled rows", ".csv")
    gptcli("evaluate", "-c", run).assert_user_error("nothing to measure on")
    gptcli("evaluate", number, "-c", run, "--stride", 3).assert_user_error("--stride is not for a classifier")
    gptcli("evaluate", number, "-c", run, "--task", "lambada").assert_user_error("--task is not for a classifier")
    gptcli("evaluate", number, "-c", run, "-c", run).assert_user_error("A classifier is measured alone")
    other = tmp_path / "notes.jsonl"
    other.write_text("mine\n", encoding="utf-8")
    gptcli("evaluate", number, "-c", run, "--out", other).assert_user_error("notes.jsonl exists already")
    language_model = tiny_checkpoint(tmp_path / "lm")
    gptcli("evaluate", story, "-c", language_model, "--fields", "text=body").assert_user_error("classifier's rows")


def test_a_temperature_makes_the_validation_rows_likeliest() -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, 4) * 6
    targets = torch.distributions.Categorical(logits=logits / 3).sample()
    assert 2.5 < fitted_temperature(logits, targets) < 3.6
    right = torch.eye(3)[torch.arange(30) % 3] * 2
    certain = fitted_temperature(right, torch.arange(30) % 3)
    assert 0.1 < certain < 1
    nothing = fitted_temperature(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))
    assert math.isfinite(nothing)
