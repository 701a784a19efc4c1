"""gptcli prepare: texts of any size to token shards, and every way that this can go wrong."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli import tokenizers
from gptcli.data import prepare, token_shards
from gptcli.data.dataset import encode_texts
from gptcli.data.encoding_chunks import chunks
from gptcli.data.prepare import Preparation, PreparationRequest
from gptcli.data.text_decoding import decoded
from gptcli.errors import GptcliError
from gptcli.tokenizers.gpt2 import GPT2Tokenizer

zstandard = pytest.importorskip("zstandard")

TEXT = "The cat sat on the mat, and the dog's log wasn't  far.\n\n" * 40 + "Ende — naïve 漢字\u3000 x\t\ty 12 345\n"
# White space of every kind, what may stand beside it, and what the pattern treats apart.
PIECES = st.sampled_from(
    (
        *(
            " ",
            "  ",
            "\n",
            "\n\n",
            "\r",
            "\t",
            "\x85",
            "\xa0",
            "\u2003",
            "\u2028",
            "\u3000",
            "\x1c",
            "\u200b",
            "\u180e",
        ),
        *(
            "a",
            "The",
            "'s",
            "'",
            "''ll",
            "7",
            "12",
            "é",
            "漢",
            "\u0301",
            "🙂",
            "!",
            "--",
            "_",
            "<|endoftext|>",
            "\ud800",
        ),
    )
)
TEXTS = st.lists(PIECES, max_size=40).map("".join)


def split(text: str, places: list[int]) -> list[str]:
    cuts = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


def tokens_of(folder: Path) -> list[int]:
    found = token_shards.open_shards(folder)
    return [int(token) for token in found.rows([0], len(found))[0]]


def fingerprints(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# Cutting


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 12), st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_portions_encoded_apart_are_the_text_encoded_at_once(
    text: str, size: int, places: list[int], allow_special: bool
) -> None:
    pieces = [(number == 0, piece) for number, piece in enumerate(filter(None, split(text, places)))]
    found = list(chunks(pieces, size))
    assert "".join(piece for chunk in found for _, piece in chunk) == text
    assert found == list(chunks([(True, text)] if text else [], size)), "how the text was read must not matter"
    for kind in ("gpt2", "byte", "word"):
        tokenizer = tokenizers.build(kind, "The a 7 '")
        encode = prepare._encoder(tokenizer, allow_special)
        apart = [int(token) for chunk in found for token in encode(chunk)]
        assert apart == tokenizer.encode(text, allow_special=allow_special)


def test_portions_are_no_larger_than_they_must_be() -> None:
    found = list(chunks([(True, "word " * 1000)], 100))
    assert {sum(len(text) for _, text in chunk) for chunk in found[:-1]} <= set(range(100, 106))
    assert [separated for chunk in chunks([(True, "a b"), (True, "c")], 1) for separated, _ in chunk] == [
        False, False, True,
    ]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.booleans())
def test_an_array_of_tokens_is_the_list_of_tokens(text: str, allow_special: bool) -> None:
    tokenizer = GPT2Tokenizer()
    array = tokenizer.encode_array(text, allow_special=allow_special)
    assert array.tolist() == tokenizer.encode(text, allow_special=allow_special)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(TEXTS.map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=40)),
    st.sampled_from([None, "latin-1", "utf-16", "utf-16-be", "shift_jis", "gb18030"]),
    st.sampled_from(["strict", "replace", "ignore"]),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_bytes_are_decoded_alike_however_they_are_cut(
    data: bytes, encoding: str | None, errors: str, places: list[int]
) -> None:
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    pieces = [data[a:b] for a, b in pairwise(cuts) if a < b]

    def read(chunks: list[bytes]) -> str:
        try:
            return "".join(decoded("it", chunks, encoding, errors))
        except GptcliError as error:
            return f"Error: {error}"

    whole = b"." * 2_000  # so that the pieces are not read as one
    for head in (b"", whole):
        assert read([head, *pieces] if head else pieces) == read([head + data])


# Shards


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_the_tokens_are_those_that_training_makes(gptcli: Any, kind: str) -> None:
    texts = [TEXT, "Second <|endoftext|> text.", "third\r\n"]
    for number, text in enumerate(texts):
        Path(f"{number}.txt").write_text(text, encoding="utf-8", newline="")
    names = ("0.txt", "1.txt", "2.txt")
    result = gptcli("prepare", *names, "--out", "out", "--tokenizer", kind, "--shard-tokens", 100)
    assert result.code == 0, result.err
    assert result.out == "out\n"
    texts[2] = "third\n"
    manifest = token_shards.read_manifest(Path("out"))
    tokenizer = tokenizers.load(Path("out"), kind, manifest["tokenizer"]["fingerprint"])
    assert tokenizer.fingerprint == tokenizers.build(kind, "\n".join(texts)).fingerprint
    expected = encode_texts(texts, tokenizer).tolist()
    assert tokens_of(Path("out")) == expected
    count = -(-len(expected) // 100)
    assert manifest["totals"] == {
        "documents": 3, "characters": sum(map(len, texts)), "tokens": len(expected), "shards": count
    }  # fmt: skip
    assert len(list(Path("out").glob("shard-*.tokens"))) == count > 3


def test_a_large_vocabulary_takes_four_bytes() -> None:
    assert token_shards.token_dtype(2**16) == np.dtype("<u2")
    assert token_shards.token_dtype(2**16 + 1) == np.dtype("<u4")


def test_the_header_is_what_the_module_says(gptcli: Any) -> None:
    Path("a.txt").write_text("Hello there", encoding="utf-8")
    assert gptcli("prepare", "a.txt", "--out", "out").code == 0
    raw = Path("out/shard-00000.tokens").read_bytes()
    assert raw[:8] == b"GPTSHARD"
    assert [int.from_bytes(raw[8:12], "little"), int.from_bytes(raw[12:16], "little")] == [1, 2]
    assert int.from_bytes(raw[16:24], "little") == 2
    assert raw[28:60].hex() == GPT2Tokenizer.fingerprint
    assert np.frombuffer(raw, "<u2", offset=80).tolist() == GPT2Tokenizer().encode("Hello there")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 27), min_size=1, max_size=5), st.integers(1, 30))
def test_rows_run_over_the_ends_of_shards(shard_tokens: int, starts: list[int], length: int) -> None:
    tokens = np.arange(57, dtype="<u2")
    parts = [tokens[i : i + shard_tokens] for i in range(0, len(tokens), shard_tokens)]
    whole = token_shards.Shards([], parts, "")
    assert len(whole) == 57
    expected = [list(range(start, start + length)) for start in starts]
    assert whole.rows(starts, length).tolist() == expected
    part = whole.part(20, 57)
    fitting = [start for start in starts if start + length <= len(part)]
    assert part.rows(fitting, length).tolist() == [list(range(20 + s, 20 + s + length)) for s in fitting]
    assert part.identity != whole.identity == whole.part(0, 57).identity


def test_workers_change_nothing(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "__defaults__", (300,))
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    for workers in (1, 3):
        assert gptcli("prepare", "a.txt", "--out", f"w{workers}", "--workers", workers, "--shard-tokens", 77).code == 0
    assert fingerprints(Path("w1")) == fingerprints(Path("w3"))


# Sources


def test_packed_files_and_records_are_read_like_plain_ones(gptcli: Any) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    Path("b.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    data = TEXT.encode()
    Path("c.txt.zst").write_bytes(zstandard.compress(data[:999]) + zstandard.compress(data[999:]))  # two frames
    tokenizer = GPT2Tokenizer()
    for name in ("a.txt", "b.txt.gz", "c.txt.zst"):
        assert gptcli("prepare", name, "--out", name + ".out").code == 0
        assert tokens_of(Path(name + ".out")) == tokenizer.encode(TEXT)
    records = [{"text": TEXT, "n": 1}, {"n": 2, "text": "Zwei.\r\nDrei"}, {"text": "  "}, {"text": "\ud83d\ude42 end"}]
    lines = "\n\n".join(json.dumps(record) for record in records)
    Path("d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert gptcli("prepare", "d.jsonl.gz", "--field", "text", "--out", "d").code == 0
    assert tokens_of(Path("d")) == encode_texts([TEXT, "Zwei.\nDrei", "🙂 end"], tokenizer).tolist()
    assert token_shards.read_manifest(Path("d"))["totals"]["documents"] == 3


def test_a_folder_gives_its_texts_or_its_records(gptcli: Any) -> None:
    Path("in/deep").mkdir(parents=True)
    Path("in/b.txt").write_text("B", encoding="utf-8")
    Path("in/a.txt.gz").write_bytes(gzip.compress(b"A"))
    Path("in/empty.txt").write_text("", encoding="utf-8")
    Path("in/deep/c.jsonl").write_text('{"text": "C"}\n', encoding="utf-8")
    tokenizer = GPT2Tokenizer()
    assert gptcli("prepare", "in", "--out", "texts").code == 0
    assert tokens_of(Path("texts")) == encode_texts(["A", "B"], tokenizer).tolist()
    assert gptcli("prepare", "in", "--field", "text", "--out", "records").code == 0
    assert tokens_of(Path("records")) == tokenizer.encode("C")


def test_standard_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gptcli", "prepare", "-", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, input=TEXT.encode(), capture_output=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert tokens_of(tmp_path / "out") == GPT2Tokenizer().encode(TEXT)
    result = subprocess.run(command, input=TEXT.encode(), capture_output=True, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert b"stdin cannot be compared" in result.stderr


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    code = (
        "import sys\nfrom gptcli.cli import main\ncode = main(['prepare', 'a.txt', '--out', 'out'])\n"
        "sys.exit('torch' in sys.modules or code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment).returncode == 0


# Stopped, and gone on with


def test_stopped_after_any_shard_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chunks, "__defaults__", (300,))
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    Path("b.txt").write_text(TEXT[::-1], encoding="utf-8")
    end_shard, left = token_shards.Writer.end_shard, 0

    def stop(self: token_shards.Writer, end: token_shards.Place) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        end_shard(self, end)

    for kind in ("gpt2", "char"):
        request = PreparationRequest(("a.txt", "b.txt"), kind, shard_tokens=150)
        Preparation(Path("whole"), request).run(2)
        count = len(list(Path("whole").glob("shard-*")))
        assert count > 5
        with monkeypatch.context() as patch:
            patch.setattr(token_shards.Writer, "end_shard", stop)
            for session in range(count):
                left = int(session > 0)
                before = Preparation(Path("out"), request)
                assert before.shards_done == max(0, session - 1)
                with pytest.raises(KeyboardInterrupt):
                    before.run(2)
                assert not list(Path("out").glob(".*"))
        last = Preparation(Path("out"), request)
        assert (last.state, last.shards_done) == ("unfinished", count - 1)
        last.run(1)
        assert fingerprints(Path("out")) == fingerprints(Path("whole"))
        assert Preparation(Path("out"), request).state == "finished"
        shutil.rmtree("out")
        shutil.rmtree("whole")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_killed_it_goes_on_to_the_same_bytes(gptcli: Any, tmp_path: Path, number: int) -> None:
    """On a slow disk, so that the signal comes long before the end."""
    Path("a.txt").write_text(TEXT * 1_500, encoding="utf-8")
    arguments = ("prepare", "a.txt", "--shard-tokens", 50_000, "--workers", 2)
    slow = """
import os, sys, time
from gptcli.cli import main
write = os.fsync
os.fsync = lambda handle: (time.sleep(0.1), write(handle))[1]
sys.exit(main())
"""
    command = [sys.executable, "-c", slow, *map(str, arguments), "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    while process.poll() is None and not (tmp_path / "out" / "shard-00001.tokens").exists():
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), err
    if number == signal.SIGINT:
        assert b"The same command continues" in err
    assert token_shards.read_manifest(Path("out"))["totals"] is None
    gptcli("train", "out").assert_user_error("out is not finished", "continues")
    result = gptcli(*arguments, "--out", "out")
    assert result.code == 0, result.err
    assert "Going on with out after" in result.err
    assert gptcli(*arguments, "--out", "whole").code == 0
    assert fingerprints(Path("out")) == fingerprints(Path("whole"))
    assert "every checksum is right" in gptcli(*arguments, "--out", "out").err


def test_a_full_disk_keeps_whole_shards(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    arguments = ("prepare", "a.txt", "--out", "out", "--shard-tokens", 100)
    original, calls = os.fsync, 0

    def refuse(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 8:  # two for every file: its own, and its folder's
            raise OSError(28, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        gptcli(*arguments).assert_user_error("Cannot write to out: No space left", "continues")
    assert len(list(Path("out").glob("shard-*"))) == 3
    assert not list(Path("out").glob(".*"))
    assert gptcli(*arguments).code == 0
    assert tokens_of(Path("out")) == GPT2Tokenizer().encode(TEXT)


# Mistakes: two lines, exit code 2, nothing written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no text to prepare",)),
        (("a.txt",), ("--out",)),
        (("a.txt", "--out", "out", "--tokenizer", "bpe"), ("'bpe'", "bpe:4096")),
        (("a.txt", "--out", "out", "--tokenizer", "gtp2"), ("'gtp2'", "Did you mean gpt2?")),
        (("a.txt", "--out", "out", "--train-share", 0), ("--train-share is 0.0",)),
        (("-", "--out", "out", "--tokenizer", "bpe:300"), ("bpe", "reads the text twice")),
        (("a.txt", "--out", "out", "--workers", 0), ("--workers is 0",)),
        (("a.txt", "--out", "out", "--shard-tokens", 0), ("--shard-tokens is 0",)),
        (("a.txt", "--out", "out", "--encoding", "utf-9"), ("utf-9",)),
        (("a.txt", "--out", "out", "--errors", "skip"), ("skip", "strict")),
        (("b.txt", "--out", "out"), ("b.txt", "Did you mean a.txt")),
        (("-", "--out", "out", "--tokenizer", "char"), ("reads the text twice",)),
        (("a.txt", "--out", "a.txt"), ("a.txt exists already",)),
        (("a.txt", "--out", "a.txt/out"), ("Cannot make a.txt/out", "is a file")),
    ],
)
def test_a_wrong_option_is_named(gptcli: Any, arguments: tuple[Any, ...], words: tuple[str, ...]) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    gptcli("prepare", *arguments).assert_user_error(*words)
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


PACKED = gzip.compress(TEXT.encode())
ZSTD = zstandard.compress(TEXT.encode())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", b"", ("x.txt is empty",)),
        ("x.txt", b" \n ", ("nothing but white space (3 bytes)",)),
        ("x.txt", b"caf\xe9", ("0xE9", "offset 3", "line 1")),
        ("x.txt", b"a\n" * 800_000 + b"\xff", ("0xFF", "offset 1,600,000", "line 800,001")),
        ("x.txt", b"a\r\n" * 800_000 + b"\0", ("0x00", "offset 2,400,000", "line 800,001")),
        ("x.txt", PACKED, ("x.txt is not text", "gzip")),
        ("x.gz", TEXT.encode(), ("x.gz cannot be unpacked", "Not a gzipped file")),
        ("x.gz", PACKED[:-20], ("x.gz cannot be unpacked", "end-of-stream")),
        ("x.gz", PACKED[:40] + b"zzzz" + PACKED[44:], ("x.gz cannot be unpacked",)),
        ("x.gz", PACKED[:-8] + b"zzzz" + PACKED[-4:], ("x.gz cannot be unpacked", "CRC")),
        ("x.zst", TEXT.encode(), ("x.zst cannot be unpacked",)),
        ("x.zst", ZSTD[:-5], ("x.zst cannot be unpacked", "no end")),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', ("x.jsonl, line 2 is no JSON",)),
        ("x.jsonl", b'{"text": "a"}\n\n{"body": "b"}', ("x.jsonl, line 3 has no field 'text'", "'body'")),
        ("x.jsonl", b'["text"]', ("x.jsonl, line 1 has no field 'text'",)),
        ("x.jsonl", b'{"text": 3}', ("x.jsonl, line 1", "3, not a text")),
        ("x.jsonl", b'{"text": ""}', ("x.jsonl has no text in field 'text'",)),
    ],
)
def test_a_wrong_text_is_named(gptcli: Any, name: str, content: bytes, words: tuple[str, ...]) -> None:
    Path(name).write_bytes(content)
    field = ("--field", "text") if name == "x.jsonl" else ()
    gptcli("prepare", name, *field, "--out", "out").assert_user_error(*words)
    assert [path.name for path in Path().iterdir()] == [name]


def test_zst_without_anything_that_unpacks_it(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.zst").write_bytes(ZSTD)
    for module in ("zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    gptcli("prepare", "x.zst", "--out", "out").assert_user_error("x.zst", "zstandard", "pip install")
    assert not Path("out").exists()


def test_a_folder_of_other_settings_is_kept_unless_forced(gptcli: Any) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    assert gptcli("prepare", "a.txt", "--out", "out").code == 0
    before = fingerprints(Path("out"))
    more = ("prepare", "a.txt", "--out", "out")
    gptcli(*more, "--tokenizer", "byte").assert_user_error("--tokenizer gpt2, not byte", "--force")
    gptcli(*more, "--shard-tokens", 9).assert_user_error("--shard-tokens", "not 9")
    gptcli(*more, "a.txt").assert_user_error("other texts")
    Path("a.txt").write_text(TEXT[1:], encoding="utf-8")
    gptcli(*more).assert_user_error("a.txt has changed", "bytes then", "--force")
    Path("other").mkdir()
    Path("other/precious").write_text("mine", encoding="utf-8")
    gptcli("prepare", "a.txt", "--out", "other", "--force").assert_user_error("other exists already")
    assert fingerprints(Path("out")) == before
    assert Path("other/precious").exists()
    assert gptcli(*more, "--tokenizer", "byte", "--force").code == 0
    assert tokens_of(Path("out")) == list(TEXT[1:].encode())


def damage(path: Path, at: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def of_another_tokenizer(path: Path) -> None:
    header = token_shards.read_header(path)
    other = token_shards.ShardHeader(header.width, header.count, header.crc, "ab" * 32, header.end)
    damage(path, 0, other.pack())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut_short, ("shard-00001.tokens is cut short", "take 280 bytes, but it has 279")),
        (lambda path: os.truncate(path, 70), ("shard-00001.tokens is cut short", "70 bytes")),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(300)), ("shard-00001.tokens is no token shard",)),
        (lambda path: path.write_bytes(b""), ("shard-00001.tokens is no token shard",)),
        (lambda path: damage(path, 30, b"?"), ("shard-00001.tokens is damaged", "header")),
        (lambda path: damage(path, 8, b"\2"), ("version 2",)),
        (of_another_tokenizer, ("shard-00001.tokens is of another tokenizer", "abababab")),
        (Path.unlink, ("shard-00001.tokens is missing",)),
    ],
)
def test_a_damaged_shard_is_named(gptcli: Any, harm: Any, words: tuple[str, ...]) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    assert gptcli("prepare", "a.txt", "--out", "out", "--shard-tokens", 100).code == 0
    harm(Path("out/shard-00001.tokens"))
    gptcli("train", "out").assert_user_error(*words)
    assert not Path("checkpoints").exists()


def test_a_flipped_bit_is_found_and_mended(gptcli: Any) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    command = ("prepare", "a.txt", "--out", "out", "--shard-tokens", 100)
    assert gptcli(*command).code == 0
    before = fingerprints(Path("out"))
    damage(Path("out/shard-00001.tokens"), 200, b"\xff")
    gptcli(*command).assert_user_error("shard-00001.tokens is damaged: the checksum of its tokens", "Remove it")
    Path("out/shard-00001.tokens").unlink()
    assert gptcli(*command).code == 0
    assert fingerprints(Path("out")) == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "other"}', '{"format": 1, "settings": {}}'])
def test_a_damaged_manifest_is_named(gptcli: Any, content: str) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    assert gptcli("prepare", "a.txt", "--out", "out").code == 0
    Path("out/corpus.json").write_text(content, encoding="utf-8")
    for command in (("train", "out"), ("prepare", "a.txt", "--out", "out")):
        gptcli(*command).assert_user_error("corpus.json is damaged")
