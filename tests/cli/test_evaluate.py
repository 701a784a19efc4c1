"""gptcli evaluate through the real app."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_checkpoint

from gptcli.checkpoints import checkpoint

TEXT = "The sea was calm. Naïve gulls cried;\nthe old ship lay at the quay.\n" * 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoints" / "one", "byte")


def rewrite(path: Path, change: Any) -> Path:
    """The checkpoint with its weights changed in place."""
    loaded = checkpoint.load(path)
    model = loaded.model()
    with torch.no_grad():
        for parameter in model.parameters():
            change(parameter)
    checkpoint.create(path, model, loaded.tokenizer, {}, force=True)
    return path


def test_json_says_how_it_was_measured(gptcli: Any, text: Path, model: Path) -> None:
    result = gptcli("evaluate", text, "-c", model, "--json")
    assert result.code == 0, result.err
    (row,) = result.json["results"]
    size = len(TEXT.encode())
    assert result.json["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (result.json["words"], result.json["bytes"], result.json["characters"]) == (
        len(TEXT.split()),
        size,
        len(TEXT),
    )
    assert (row["tokens"], row["tokens_scored"], row["context"], row["stride"], row["bos"]) == (
        size,
        size,
        20,
        10,
        True,
    )
    assert row["windows"] == 1 + math.ceil((size - 20) / 10)
    assert (row["weights"], row["dtype"], row["tokenizer"]["kind"]) == ("float32", "float32", "byte")
    token, word = row["per_token"], row["per_word"]
    assert token["perplexity"] == pytest.approx(math.exp(token["nats"]))
    assert token["nats"] / math.log(2) == pytest.approx(token["bits"]) == row["per_byte"]["bits"]
    assert word["nats"] == pytest.approx(token["nats"] * size / len(TEXT.split()))
    assert 0 < token["standard_error"] < 0.2 * token["nats"]
    assert "difference" not in row


def test_the_figure_is_the_mean_of_a_plain_loop(gptcli: Any, text: Path, model: Path) -> None:
    found = gptcli("evaluate", text, "-c", model, "--stride", 20, "--json").json["results"][0]["per_token"]["nats"]
    loaded = checkpoint.load(model)
    ids = torch.tensor([256, *TEXT.encode()])
    nats = []
    for start in range(0, len(ids) - 1, 20):
        part = ids[start : start + 21]
        with torch.no_grad():
            log_probs = torch.log_softmax(loaded.model()(part[None, :-1])[0].double(), dim=-1)
        nats += (-log_probs.gather(1, part[1:, None])[:, 0]).tolist()
    assert found == pytest.approx(sum(nats) / len(nats), abs=1e-6)


def test_batch_size_changes_nothing(gptcli: Any, text: Path, model: Path) -> None:
    values = [
        gptcli("evaluate", text, "-c", model, "--batch-size", size, "--json").json["results"][0]["per_token"]["nats"]
        for size in (1, 5, 500)
    ]
    assert max(values) - min(values) < 1e-6


def test_a_table_and_a_line_to_quote(gptcli: Any, text: Path, model: Path) -> None:
    result = gptcli("evaluate", text, "-c", "one")
    assert result.code == 0
    for word in ("token", "word", "byte", "character", "±", "context 20, stride 10", "byte tokenizer, float32 on cpu"):
        assert word in result.out
    quote = result.out.strip().splitlines()[-1]
    assert quote.startswith("one: perplexity ")
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    assert sha256[:12] in quote
    assert sha256 in result.out
    assert "Error" not in result.err


def test_stdin_and_several_texts(gptcli: Any, text: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Another one.", encoding="utf-8")
    both = gptcli("evaluate", text, other, "-c", model, "--json").json
    assert both["sha256"] == hashlib.sha256(text.read_bytes() + other.read_bytes()).hexdigest()
    assert both["results"][0]["tokens_scored"] == len(TEXT.encode()) + len("Another one.")


def test_several_checkpoints_in_one_table(gptcli: Any, text: Path, model: Path, tmp_path: Path) -> None:
    assert gptcli("quantize", model, "--out", tmp_path / "packed").code == 0
    letters = tiny_checkpoint(tmp_path / "letters", "char", TEXT)
    names = ["-c", model, "-c", tmp_path / "packed", "-c", letters]
    result = gptcli("evaluate", text, *names, "--json")
    assert result.code == 0, result.err
    first, packed, char = result.json["results"]
    assert (packed["weights"], packed["difference"]["unit"], packed["difference"]["paired"]) == (
        "int8",
        "nats a token",
        True,
    )
    change = packed["per_token"]["nats"] - first["per_token"]["nats"]
    assert packed["difference"]["value"] == pytest.approx(change, abs=1e-12)
    assert 0 < abs(change) < 0.05
    assert packed["difference"]["standard_error"] < 0.1 * first["per_token"]["standard_error"]
    assert (char["difference"]["unit"], char["difference"]["paired"]) == ("bits a byte", False)
    assert (char["bos"], char["tokens"] - char["tokens_scored"]) == (False, 1)
    assert "The char tokenizer has no end-of-text token" in result.err
    table = gptcli("evaluate", text, *names)
    assert "int8 weights" in table.out
    assert "not paired" in table.out
    assert len([line for line in table.out.splitlines() if ": perplexity" in line]) == 3


def test_no_bos_and_guide(gptcli: Any, text: Path, model: Path) -> None:
    size = len(TEXT.encode())
    row = gptcli("evaluate", text, "-c", model, "--no-bos", "--json").json["results"][0]
    assert (row["tokens"], row["tokens_scored"]) == (size, size - 1)
    row = gptcli("evaluate", text, "-c", model, "--no-bos", "--guide", "--stride", 20, "--json").json["results"][0]
    assert row["tokens_scored"] == size - math.ceil(size / 20)


def test_plot(gptcli: Any, text: Path, model: Path, tmp_path: Path) -> None:
    result = gptcli("evaluate", text, "-c", model, "--plot", tmp_path / "quality.png", "--json")
    assert result.code == 0, result.err
    assert 0 < result.json["results"][0]["expected_calibration_error"] < 1
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def items(path: Path, count: int) -> Path:
    rows = [
        {"text": f"the old ship {'lay ' * (number % 4)}at the {'quay' if number % 2 else 'sea'}"}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_task_goes_on_where_it_was_interrupted(gptcli: Any, model: Path, tmp_path: Path) -> None:
    file, out = items(tmp_path / "l.jsonl", 9), tmp_path / "rows.jsonl"
    whole = gptcli("evaluate", file, "--task", "lambada", "-c", model, "--json").json
    assert gptcli("evaluate", file, "--task", "lambada", "-c", model, "--limit", 4, "--out", out).code == 0
    first = out.read_bytes()
    out.write_bytes(first + first.splitlines()[0][:17])  # a crash in the middle of a line
    result = gptcli("evaluate", file, "--task", "lambada", "-c", model, "--out", out, "--json")
    assert "4 of 9 items" in result.err
    assert result.json["items"] == 9
    for name, figure in whole["results"][0].items():
        assert result.json["results"][0][name] == pytest.approx(figure)
    assert out.read_bytes().startswith(first)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 9
    # Other weights are another measurement: nothing is taken from the file, and nothing in it is lost.
    rewrite(model, lambda parameter: parameter.mul_(1.01))
    assert "already" not in gptcli("evaluate", file, "--task", "lambada", "-c", model, "--out", out).err
    assert len(out.read_text(encoding="utf-8").splitlines()) == 18


def test_tasks_of_several_checkpoints(gptcli: Any, model: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "two", "byte", seed=1)
    file = items(tmp_path / "l.jsonl", 12)
    args = ("evaluate", file, "--task", "lambada", "-c", model, "-c", other)
    a, b = gptcli(*args, "--json").json["results"]
    assert b["difference"]["nats_per_word"]["value"] == pytest.approx(
        math.log(b["perplexity"]["value"] / a["perplexity"]["value"])
    )
    table = gptcli(*args)
    assert "less the first" in table.out
    assert "12 items" in table.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("empty.txt",), ["empty.txt is empty"]),
        (("one.txt", "--no-bos"), ["0 tokens to score", "at least 2"]),
        (("one.txt",), ["1 token to score", "at least 2"]),
        (("nowhere.txt",), ["No such file", "nowhere.txt"]),
        (("text.txt", "--stride", 21), ["--stride is 21", "the context is 20"]),
        (("text.txt", "--stride", 11, "--context", 10), ["--stride is 11", "the context is 10"]),
        (("text.txt", "--stride", 0), ["--stride is 0"]),
        (("text.txt", "--context", 21), ["--context is 21", "is 20"]),
        (("text.txt", "--context", 0), ["--context is 0"]),
        (("text.txt", "--context", 1, "--guide"), ["--context is 1", "from 2 to 20"]),
        (("text.txt", "--batch-size", 0), ["--batch-size is 0"]),
        (("text.txt", "--plot", "p.gif"), ["p.gif ends in .gif", "Give p.png"]),
        (("text.txt", "--plot", "no/p.png"), ["no/p.png cannot be written"]),
        (("text.txt", "--limit", 3), ["--limit goes with --task"]),
        (("text.txt", "--out", "rows.jsonl"), ["--out goes with --task"]),
        (("text.txt", "--task", "lambda"), ["--task is 'lambda'", "Did you mean lambada?"]),
        (("good.jsonl", "--task", "lambada", "--stride", 4), ["--stride goes with a text"]),
        (("good.jsonl", "--task", "lambada", "--limit", 0), ["--limit is 0"]),
        (("good.jsonl", "--task", "lambada", "--convention", "row"), ["--convention is 'row'", "Did you mean raw?"]),
        (("good.jsonl", "--task", "choices"), ["good.jsonl, line 1 has no text under 'context'"]),
        (("good.jsonl", "good.jsonl", "--task", "lambada"), ["takes one file, and there are 2"]),
        (("bad.jsonl", "--task", "lambada"), ["bad.jsonl, line 2 is not JSON"]),
        (("text.txt", "--task", "lambada"), ["text.txt, line 1 is not JSON"]),
        (("blank.jsonl", "--task", "lambada"), ["blank.jsonl has no item"]),
        (("latin.jsonl", "--task", "lambada"), ["latin.jsonl is not UTF-8"]),
        (("nowhere.jsonl", "--task", "lambada"), ["Cannot read nowhere.jsonl"]),
        (("long.jsonl", "--task", "lambada"), ["long.jsonl, line 1", "has 31 tokens", "holds 20"]),
        (("good.jsonl", "--task", "lambada", "--out", "text.txt"), ["text.txt, line 1", "not written by"]),
        (("good.jsonl", "--task", "lambada", "--out", "good.jsonl"), ["good.jsonl, line 1", "not written by"]),
    ],
)
def test_mistakes(
    gptcli: Any, text: Path, model: Path, args: tuple[Any, ...], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "one.txt").write_text("a", encoding="utf-8")
    (tmp_path / "good.jsonl").write_text('{"text": "a b"}\n', encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "a b"}\n{"text": "a b"\n', encoding="utf-8")
    (tmp_path / "blank.jsonl").write_text("\n\n", encoding="utf-8")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "naïve x"}\n'.encode("latin-1"))
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "a " + "b" * 30}) + "\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    gptcli("evaluate", *args, "-c", model).assert_user_error(*words)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_logits_that_are_not_finite(gptcli: Any, text: Path, model: Path) -> None:
    rewrite(model, lambda parameter: parameter.mul_(1e25))
    gptcli("evaluate", text, "-c", model).assert_user_error("NaN or infinite logits")


def test_a_mistyped_second_checkpoint_is_found_first(gptcli: Any, text: Path, model: Path) -> None:
    gptcli("evaluate", text, "-c", model, "-c", "ones").assert_user_error("no checkpoint ones", "Did you mean one?")


def test_bos_without_an_end_of_text_token(gptcli: Any, text: Path, tmp_path: Path) -> None:
    letters = tiny_checkpoint(tmp_path / "letters", "char", TEXT)
    gptcli("evaluate", text, "-c", letters, "--bos").assert_user_error("char tokenizer has no end-of-text token")


def test_unknown_tokens_are_counted_and_what_they_flatter_is_withheld(gptcli: Any, text: Path, tmp_path: Path) -> None:
    """A word run that knows few words predicts <|unk|> well, and loses the text: its bits a byte would win."""
    tiny_checkpoint(tmp_path / "checkpoints" / "byte", "byte")
    tiny_checkpoint(tmp_path / "checkpoints" / "few", "word", "The sea was calm .")
    tiny_checkpoint(tmp_path / "checkpoints" / "few too", "word", "The sea was calm .", seed=1)
    tiny_checkpoint(tmp_path / "checkpoints" / "all", "word", TEXT)
    options = ("-c", "byte", "-c", "few", "-c", "all")
    byte, few, every = gptcli("evaluate", text, *options, "--json").json["results"]
    assert (byte["tokens_unknown"], every["tokens_unknown"]) == (0, 0)
    assert few["tokens_unknown"] == 12 * 11  # cried and Naïve, gulls, the, old, ship, lay, at, the, quay and ;
    assert [few[name] for name in ("per_word", "per_byte", "per_character", "difference")] == [None] * 4
    assert few["per_token"]["nats"] > 0
    assert every["difference"]["unit"] == "bits a byte"
    told = gptcli("evaluate", text, *options)
    reason = [line for line in told.out.splitlines() if "outside a vocabulary" in line]
    assert len(reason) == 1
    assert reason[0].endswith("few has 132 of 204.")
    assert "(132 are unknown)" in told.out
    alone = gptcli("evaluate", text, "-c", "few")
    assert "character" not in alone.out.split("Tokens for words")[0].split("SHA-256")[0]
    assert "132 of 204" in alone.out
    first = gptcli("evaluate", text, "-c", "few", "-c", "byte", "-c", "few too", "--json").json["results"]
    assert first[1]["difference"] is None
    assert first[2]["difference"]["unit"] == "nats a token"  # the same tokens: a fair comparison


def test_unknown_tokens_of_a_task_are_told(gptcli: Any, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "checkpoints" / "few", "word", "The sea was calm .")
    file = tmp_path / "items.jsonl"
    file.write_text('{"text": "The sea was calm"}\n{"text": "The old sea was calm"}\n', encoding="utf-8")
    result = gptcli("evaluate", file, "--task", "lambada", "-c", "few", "-q")
    assert result.code == 0, result.err
    assert "1 of the items' 9 tokens stand for words that" in result.err
