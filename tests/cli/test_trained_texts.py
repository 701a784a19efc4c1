"""A run knows its texts: what was trained on is named, and its held-out part is measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import MODEL, TEXT

from gptcli.data import text_record
from gptcli.data.documents import Document

FEW = ("--max-steps", 3, "--sample-every", 0, "--eval-every", 1)


@pytest.fixture
def run(gptcli: Any, story: Path) -> Any:
    def train(out: str, *options: Any) -> Path:
        result = gptcli("train", story, *MODEL, *FEW, *options, "--out", out)
        assert result.code == 0, result.err
        return Path(out)

    return train


def test_a_run_records_its_texts(run: Any) -> None:
    record = text_record.read(run("run", "--tokenizer", "char"))
    assert record is not None
    cut = int(0.9 * len(TEXT))
    (document,) = record.documents
    assert (document.characters, document.trained) == (len(TEXT), cut)
    assert record.train.sha256 == text_record.sha256([TEXT[:cut]])
    assert record.validation == text_record.PartRecord(text_record.sha256([TEXT[cut:]]), len(TEXT) - cut, 1.0)


def test_a_text_that_was_trained_on_is_named_with_its_share(gptcli: Any, run: Any, story: Path) -> None:
    run("run", "--tokenizer", "char")
    result = gptcli("evaluate", story, "-c", "run")
    assert result.code == 0, result.err
    assert "run was trained on 90% of this text. --part validation, without a text, measures the rest." in result.err
    assert gptcli("evaluate", story, "-c", "run", "--json").json["results"][0]["trained_on"] == pytest.approx(
        0.9, abs=0.01
    )
    held_out = Path("held-out.txt")
    held_out.write_text(TEXT[int(0.9 * len(TEXT)) :], encoding="utf-8")
    other = gptcli("evaluate", held_out, "-c", "run", "--json")
    assert other.json["results"][0]["trained_on"] == 0
    part = gptcli("evaluate", "--part", "validation", "-c", "run", "--json")
    assert part.code == 0, part.err
    assert part.json["sha256"] == other.json["sha256"]
    assert part.json["results"][0]["per_token"] == other.json["results"][0]["per_token"]
    assert gptcli("evaluate", "--part", "train", "-c", "run", "--json").json["results"][0]["trained_on"] == 1
    assert gptcli("quantize", "run").code == 0
    assert "was trained on 90%" in gptcli("evaluate", story, "-c", "run-int8").err


def test_an_unfair_comparison_is_named(gptcli: Any, run: Any, story: Path) -> None:
    run("run", "--tokenizer", "char")
    run("all", "--tokenizer", "char", "--train-share", 1)
    result = gptcli("evaluate", story, "-c", "run", "-c", "all")
    assert "The comparison is not fair" in result.err
    assert "(run 90%, all 100%)" in result.err
    assert "not fair" not in gptcli("evaluate", story, "-c", "run", "-c", "run").err
    run("all-2", "--tokenizer", "char", "--train-share", 1)
    for name in ("all", "all-2"):
        (Path(name) / "texts.json").unlink()
    said = gptcli("evaluate", story, "-c", "run", "-c", "all", "-c", "all-2").err
    assert "The comparison may not be fair: whether all and all-2 saw this text is not known." in said
    assert "not fair" not in said
    assert "fair" not in gptcli("evaluate", story, "-c", "all", "-c", "all-2").err


def test_what_was_exported_is_compared_as_what_it_came_from(gptcli: Any, run: Any, story: Path) -> None:
    run("run", "--tokenizer", "char")
    assert gptcli("export", "run", "exported", "--dtype", "float32").code == 0
    said = gptcli("evaluate", story, "-c", "run", "-c", "exported").err
    assert "exported was trained on 90% of this text." in said
    assert "fair" not in said


def test_the_rest_is_named_only_where_it_can_be_measured(gptcli: Any, run: Any, story: Path) -> None:
    run("run", "--tokenizer", "char")
    run("all", "--tokenizer", "char", "--train-share", 1)
    moved = story.rename("moved.txt")
    for name, share in (("run", "90%"), ("all", "100%")):
        said = gptcli("evaluate", moved, "-c", name).err
        assert f"{name} was trained on {share} of this text." in said
        assert "--part validation" not in said


def test_parts_that_cannot_be_measured(gptcli: Any, run: Any, story: Path) -> None:
    run("run", "--tokenizer", "char")
    run("all", "--tokenizer", "char", "--train-share", 1)
    gptcli("evaluate", story, "--part", "validation", "-c", "run").assert_user_error("--part", "and no other")
    gptcli("evaluate", "-c", "run").assert_user_error("nothing to measure on", "--part validation")
    gptcli("evaluate", "--part", "validation", "-c", "all").assert_user_error("held no text out")
    gptcli("evaluate", "--part", "validation", "--task", "cloze", "-c", "run").assert_user_error("--part", "--task")
    assert gptcli("prepare", story, "--tokenizer", "char", "--out", "shards").code == 0
    assert gptcli("train", "shards", *MODEL, *FEW, "--out", "prepared").code == 0
    gptcli("evaluate", "--part", "validation", "-c", "prepared").assert_user_error("which holds tokens")
    story.write_text(TEXT + "More.", encoding="utf-8")
    gptcli("evaluate", "--part", "validation", "-c", "run").assert_user_error("are not what they were")
    (Path("run") / "texts.json").write_text("[]", encoding="utf-8")
    gptcli("evaluate", "--part", "validation", "-c", "run").assert_user_error("does not say which texts")


def test_several_documents_are_known_by_their_own_shares() -> None:
    documents = [Document("a", "x" * 80), Document("b", "y" * 20)]
    records = text_record.document_records(documents, 0.9)
    part = text_record.PartRecord("?", 1, 1.0)
    record = text_record.TextRecord(["."], None, "strict", 0.9, records, part, None)
    assert [each.trained for each in records] == [80, 10]
    assert record.trained_share(documents) == pytest.approx(0.9)
    assert record.trained_share([documents[1]]) == 0.5
    assert record.trained_share([documents[1], Document("c", "z" * 20)]) == 0.25
    assert record.trained_share([Document("c", "z")]) is None


def test_runs_of_different_tokenizers_are_drawn_in_bits_a_byte(gptcli: Any, run: Any) -> None:
    run("letters", "--tokenizer", "char")
    run("bytes", "--tokenizer", "byte")
    run("words", "--tokenizer", "word")
    assert "bits a byte" in gptcli("plot", "letters", "bytes", "--out", "a.png").err
    assert "bits a byte" not in gptcli("plot", "letters", "letters", "--out", "b.png").err
    assert "cannot be compared" in gptcli("plot", "letters", "words", "--out", "c.png").err
    rows = [json.loads(line) for line in (Path("letters") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = min(row["val_loss"] for row in rows) / 0.6931471805599453
    assert f"letters: best {best:.3f}" in gptcli("plot", "letters", "bytes", "--out", "d.png").out
    shutil.rmtree("words")


def test_losses_on_different_texts_are_not_compared_in_silence(gptcli: Any, run: Any) -> None:
    run("run", "--tokenizer", "char")
    run("byte", "--tokenizer", "byte")
    run("half", "--tokenizer", "char", "--train-share", 0.5)
    run("all", "--tokenizer", "char", "--train-share", 1)
    same = gptcli("plot", "run", "byte", "--out", "a.png")
    assert "validated on different texts" not in same.err
    assert "training loss" not in same.out
    other = gptcli("plot", "run", "byte", "half", "all", "--out", "b.png")
    assert "do not compare: run, byte; half; all." in other.err
    assert other.out.count("(training loss: nothing was validated)") == 1


def test_a_part_that_another_run_was_trained_on_is_named(gptcli: Any, run: Any) -> None:
    run("half", "--tokenizer", "char", "--train-share", 0.5)
    run("most", "--tokenizer", "char", "--train-share", 0.8)
    said = gptcli("evaluate", "-c", "half", "-c", "most", "--part", "validation")
    assert said.code == 0, said.err
    assert "most was trained on 60% of this text." in said.err
    assert "The comparison is not fair" in said.err
    assert "(half 0%, most 60%)" in said.err
    assert "fair" not in gptcli("evaluate", "-c", "most", "-c", "half", "--part", "validation").err


def test_a_run_that_begins_with_a_checkpoint_knows_its_texts(gptcli: Any, run: Any, story: Path) -> None:
    run("run", "--tokenizer", "char")
    other = Path("other.txt")
    other.write_text("the mat sat on the cat. " * 30, encoding="utf-8")
    options = ("--init-from", "run", *FEW, "--save-every", 1, "--keep", 9)
    assert gptcli("train", other, *options, "--out", "further").code == 0
    assert "further was trained on 90% of this text." in gptcli("evaluate", story, "-c", "further").err
    assert "further was trained on 90% of this text." in gptcli("evaluate", other, "-c", "further").err
    shutil.rmtree("run")
    assert gptcli("train", "--resume", "further", "--max-steps", 5).code == 0
    assert "further was trained on 90% of this text." in gptcli("evaluate", story, "-c", "further").err
    assert gptcli("train", story, "--init-from", "further", *FEW, "--train-share", 1, "--out", "again").code == 0
    assert "again was trained on 100% of this text." in gptcli("evaluate", story, "-c", "again").err
    assert "again was trained on 90% of this text." in gptcli("evaluate", other, "-c", "again").err


def test_a_text_that_lies_in_two_files_now(gptcli: Any, run: Any) -> None:
    folder = Path("texts")
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    assert gptcli("train", folder, *MODEL, *FEW, "--tokenizer", "char", "--out", "run").code == 0
    whole = {part: gptcli("evaluate", "-c", "run", "--part", part, "--json").json for part in ("train", "validation")}
    (folder / "a.txt").write_text(TEXT[:500], encoding="utf-8")
    (folder / "b.txt").write_text(TEXT[500:], encoding="utf-8")
    for part, expected in whole.items():
        found = gptcli("evaluate", "-c", "run", "--part", part, "--json")
        assert found.code == 0, found.err
        assert found.json["sha256"] == expected["sha256"]
