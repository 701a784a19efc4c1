"""``gptcli train-tokenizer``, and what uses its vocabulary: train, prepare, resume, tokenize, export."""

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import MODEL

from gptcli.data import open as data_open
from gptcli.tokenizers import choice

SOURCE = random.Random(0)
WORDS = ["".join(SOURCE.choices("abcdefghijkl", k=SOURCE.randrange(2, 8))) for _ in range(150)]
SEEN = " ".join(SOURCE.choices(WORDS, k=900)) + ".\n"
UNSEEN = " ".join(SOURCE.choices(["xyzzy", "zyxxy", "yzxz"], k=80))
TEXT = SEEN * 2 + UNSEEN
SHARE = f"{2 * len(SEEN) / len(TEXT):.4f}"
TRAIN = ("train", "text.txt", *MODEL, "--max-steps", 2, "--sample-every", 0, "--out", "run")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def tokens_with(letters: str, directory: Path) -> list[str]:
    return [token for token in json.loads((directory / "vocab.json").read_bytes()) if len(token) == 2
            and set(token) & set(letters)]  # fmt: skip


def test_a_directory_and_what_is_said(gptcli: Any, text: Path) -> None:
    result = gptcli("train-tokenizer", "text.txt", "--vocab-size", 400)
    assert (result.code, result.out) == (0, f"{Path('checkpoints/text.bpe-400')}\n")
    assert "400 tokens from text.txt" in result.err
    assert "bytes a token; gpt2's 50,257 tokens have" in result.err
    assert "gptcli train text.txt --tokenizer" in result.err
    first = {path.name: path.read_bytes() for path in Path("checkpoints/text.bpe-400").iterdir()}
    again = gptcli("train-tokenizer", "text.txt", "--vocab-size", 400)
    again.assert_user_error("exists already", "--force")
    assert gptcli("train-tokenizer", "text.txt", "--vocab-size", 400, "--force", "--quiet").err == ""
    assert {path.name: path.read_bytes() for path in Path("checkpoints/text.bpe-400").iterdir()} == first


def test_it_replaces_nothing_but_its_own(gptcli: Any, text: Path) -> None:
    command = ("train-tokenizer", "text.txt", "--vocab-size", 300, "--force", "--out")
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("x", encoding="utf-8")
    gptcli(*command, "notes").assert_user_error("is not a tokenizer of gptcli's", "a.txt")
    assert gptcli(*TRAIN, "--tokenizer", "bpe:300").code == 0
    gptcli(*command, "run").assert_user_error("it is a checkpoint")
    gptcli(*command, "text.txt").assert_user_error("is a file")
    assert Path("notes/a.txt").exists()
    assert Path("run/model.safetensors").exists()


def test_texts_come_from_stdin_and_folders(gptcli: Any, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder").mkdir()
    text.rename("folder/text.txt")
    assert gptcli("train-tokenizer", "folder", "--vocab-size", 300, "--out", "one").code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert gptcli("train-tokenizer", "-", "--vocab-size", 300, "--out", "two").code == 0
    assert Path("one/tokenizer.json").read_bytes() == Path("two/tokenizer.json").read_bytes()


def test_a_model_is_trained_with_it_and_goes_to_transformers_and_gguf(gptcli: Any, text: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = pytest.importorskip("gguf")
    assert gptcli("train-tokenizer", "text.txt", "--vocab-size", 400, "--out", "own").code == 0
    assert gptcli(*TRAIN, "--tokenizer", "own").code == 0
    tokenizer = choice.read(Path("own"))
    assert json.loads(Path("run/config.json").read_bytes())["gptcli"]["tokenizer"] == {
        "kind": "bpe", "fingerprint": tokenizer.fingerprint
    }  # fmt: skip
    model, auto = AutoModelForCausalLM.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
    assert model.config.vocab_size == len(auto) == 400
    assert auto(SEEN).input_ids == tokenizer.encode(SEEN)
    assert model.config.eos_token_id == auto.eos_token_id == 399
    assert gptcli("export", "run", "out", "--format", "gguf").code == 0
    fields = gguf.GGUFReader("out/run-f16.gguf").fields
    value = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in (
        "model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id")}  # fmt: skip
    assert (value["model"], value["pre"]) == ("gpt2", "gpt-2")
    vocab = json.loads(Path("own/vocab.json").read_bytes())
    assert value["tokens"] == sorted(vocab, key=vocab.__getitem__)
    assert value["token_type"] == [1] * 399 + [3]
    assert value["merges"] == [" ".join(merge) for merge in tokenizer.description.merges]
    assert (value["bos_token_id"], value["eos_token_id"]) == (399, 399)
    assert gptcli("generate", "abc", "-c", "run", "-n", 5).code == 0


def test_the_validation_part_is_not_seen(gptcli: Any, text: Path) -> None:
    assert gptcli(*TRAIN, "--tokenizer", "bpe:420", "--train-share", SHARE).code == 0
    assert not tokens_with("xyz", Path("run"))
    assert gptcli(*TRAIN, "--tokenizer", "bpe:420", "--train-share", 1, "--force").code == 0
    assert tokens_with("xyz", Path("run"))


def test_it_is_resumed_with_its_tokenizer_and_no_other(gptcli: Any, text: Path) -> None:
    assert gptcli(*TRAIN, "--tokenizer", "bpe:400").code == 0
    assert gptcli(*TRAIN[:-1], "other", "--tokenizer", "bpe:410").code == 0
    go_on = ("train", "--resume", "run", "--max-steps", 3)
    gptcli(*go_on, "--tokenizer", "other").assert_user_error("--tokenizer is bpe, 410 tokens", "began with bpe, 400")
    gptcli(*go_on, "--tokenizer", "bpe:410").assert_user_error("--tokenizer is bpe:410", "began with bpe, 400")
    gptcli(*go_on, "--tokenizer", "gpt2").assert_user_error("--tokenizer is gpt2", "began with bpe, 400")
    before = Path("run/tokenizer.json").read_bytes()
    assert gptcli(*go_on, "--tokenizer", "bpe:400").code == 0
    assert gptcli("train", "--resume", "run", "--max-steps", 4, "--tokenizer", "run").code == 0
    assert Path("run/tokenizer.json").read_bytes() == before


def test_its_config_file_repeats_a_run(gptcli: Any, text: Path) -> None:
    assert gptcli(*TRAIN, "--tokenizer", "bpe:400").code == 0
    repeated = gptcli("train", "--config", "run/config.toml", "--out", "again")
    assert repeated.code == 0, repeated.err
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert Path("again", name).read_bytes() == Path("run", name).read_bytes()
    assert 'tokenizer = "."' in Path("again/config.toml").read_text(encoding="utf-8")


def test_prepared_tokens_take_it_too(gptcli: Any, text: Path) -> None:
    prepare = ("prepare", "text.txt", "--out", "tokens", "--train-share", SHARE)
    assert gptcli(*prepare, "--tokenizer", "bpe:420").code == 0
    assert not tokens_with("xyz", Path("tokens"))
    assert "ready and whole" in gptcli(*prepare, "--tokenizer", "bpe:420").err
    gptcli(*prepare, "--tokenizer", "bpe:400").assert_user_error("was prepared with bpe:420, not bpe:400")
    run = ("train", "tokens", *TRAIN[2:])
    gptcli(*run, "--tokenizer", "bpe:400").assert_user_error("--tokenizer is bpe:400", "vocabulary of 420")
    gptcli(*run, "--tokenizer", "char").assert_user_error("--tokenizer is char")
    assert gptcli(*run, "--tokenizer", "bpe:420").code == 0
    assert gptcli(*run, "--tokenizer", "tokens", "--train-share", SHARE, "--force").code == 0
    assert "was trained on a part of the text" in gptcli(*run, "--train-share", 0.5, "--force").err


def test_no_token_of_the_vocabularys_text_validates(gptcli: Any, text: Path) -> None:
    """The end of the text takes fewer tokens a character: a share of the tokens ends before that of the characters."""
    from gptcli.data.dataset import open_prepared

    half = " abcabc" * 100 + " " + SEEN
    text.write_text(half + " abcabc" * (len(half) // 7), encoding="utf-8")
    share = 0.5
    assert gptcli("prepare", "text.txt", "--out", "tokens", "--tokenizer", "bpe:300", "--train-share", share).code == 0
    corpus, tokenizer = open_prepared(Path("tokens"), share), choice.read(Path("tokens"))
    seen = tokenizer.decode([int(row) for row in corpus.train.rows([0], len(corpus.train))[0]])
    assert len(seen) >= int(share * len(text.read_text(encoding="utf-8")))
    assert len(corpus.train) > share * corpus.tokens + 10
    assert corpus.notes == ()


def test_a_large_text_goes_through_shards_and_is_resumed(
    gptcli: Any, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_open, "LARGE", 1_000)
    assert gptcli(*TRAIN, "--tokenizer", "bpe:400").code == 0
    assert Path("run.tokens/corpus.json").is_file()
    assert gptcli("train", "--resume", "run", "--max-steps", 3).code == 0


def test_tokenizers_side_by_side(gptcli: Any, text: Path) -> None:
    Path("b.txt").write_text("abc é", encoding="utf-8")
    assert gptcli("train-tokenizer", "text.txt", "--vocab-size", 400, "--out", "own").code == 0
    command = (
        "tokenize",
        "--compare",
        "own",
        "--compare",
        "gpt2",
        "--compare",
        "byte",
        "-f",
        "text.txt",
        "-f",
        "b.txt",
    )
    rows = gptcli(*command, "--json").json
    assert [(row["text"], row["tokenizer"]) for row in rows] == [
        (name, which) for name in ("text.txt", "b.txt") for which in ("own", "gpt2", "byte")
    ]
    assert [row["vocab_size"] for row in rows[:3]] == [400, 50_257, 257]
    assert rows[5] == {"text": "b.txt", "bytes": 6, "tokenizer": "byte", "kind": "byte", "tokens": 6, "vocab_size": 257,
                       "bytes_per_token": 1.0}  # fmt: skip
    assert rows[0]["tokens"] == len(choice.read(Path("own")).encode(TEXT))
    table = gptcli(*command).out
    assert "2 texts, 3 tokenizers" in table
    assert "Bytes/token" in table
    assert gptcli("tokenize", "abc", "--compare", "own", "--json").json[0]["text"] == "text"
    gptcli(*command, "--scheme", "gpt2").assert_user_error("--compare", "--scheme")
    gptcli("tokenize", "abc", "--compare", "bpe:300").assert_user_error("bpe:300", "train-tokenizer")
    gptcli("tokenize", "-f", "text.txt", "-f", "b.txt").assert_user_error("2 files", "--compare")


# Mistakes: two lines, exit code 2, nothing written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no text to train",)),
        (("text.txt", "--vocab-size", 256), ("256 is outside 257",)),
        (("text.txt", "--vocab-size", 30_000), ("not of 30,000", "Ask for at most")),
        (("text.txt", "--min-frequency", 0), ("--min-frequency is 0",)),
        (("two.txt", "--vocab-size", 258), ("vocabulary of 257 tokens, not of 258",)),
        (("empty.txt",), ("empty.txt is empty",)),
        (("missing.txt",), ("No such file: missing.txt",)),
        (("text.txt", "--encoding", "utf-9"), ("utf-9",)),
        (("text.txt", "--errors", "skip"), ("skip",)),
    ],
)
def test_a_wrong_option_is_named(gptcli: Any, text: Path, arguments: tuple[Any, ...], words: tuple[str, ...]) -> None:
    Path("two.txt").write_text("ab", encoding="utf-8")
    Path("empty.txt").touch()
    gptcli("train-tokenizer", *arguments).assert_user_error(*words)
    assert sorted(path.name for path in Path().iterdir()) == ["empty.txt", "text.txt", "two.txt"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bpe", ("'bpe'", "bpe:4096")),
        ("bpe:", ("'bpe:'", "bpe:4096")),
        ("bpe:many", ("'bpe:many'",)),
        ("bpe:200", ("200 is outside 257",)),
        ("bpe:30000", ("not of 30,000",)),
        ("own", ("'own'", "directory")),
        ("nothing", ("nothing has no tokenizer", "train-tokenizer")),
        ("text.txt", ("text.txt is not a directory",)),
        ("others", ("Unigram",)),
        ("damaged", ("tokenizer_gptcli.json", "unknown kind 'x'")),
    ],
)
def test_a_tokenizer_that_is_none(gptcli: Any, text: Path, name: str, words: tuple[str, ...]) -> None:
    from vocabularies import unigram

    for folder in ("nothing", "others", "damaged"):
        Path(folder).mkdir()
    Path("others/tokenizer.json").write_text(unigram(), encoding="utf-8")
    Path("damaged/tokenizer_gptcli.json").write_text('{"kind": "x"}', encoding="utf-8")
    gptcli(*TRAIN, "--tokenizer", name).assert_user_error(*words)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("train-tokenizer", "text.txt"),
        (*TRAIN, "--tokenizer", "bpe:300"),
        ("prepare", "text.txt", "--out", "tokens", "--tokenizer", "bpe:300"),
    ],
)
def test_without_the_extra(gptcli: Any, text: Path, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    gptcli(*command).assert_user_error("tokenizers package", "pip install 'gptcli[tokenizers]'")
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


def test_a_text_of_two_characters_trains_nothing(gptcli: Any) -> None:
    Path("text.txt").write_text("ab", encoding="utf-8")
    gptcli(*TRAIN, "--tokenizer", "bpe:4096").assert_user_error("vocabulary of 257 tokens, not of 4,096")
    assert not Path("run").exists()
