"""``gptcli tokenize`` through the real app."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli import tokenizers

FUN = "Tokenization is fun!"


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pieces_ids_and_counts(gptcli: Any) -> None:
    result = gptcli("tokenize", FUN)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "Token|ization| is| fun|!",
        "30642 1634 318 1257 0",
        "5 tokens, 20 characters, 4.00 characters per token (gpt2, vocabulary of 50,257)",
    ]


def test_one_of_each_is_told_in_the_singular(gptcli: Any) -> None:
    assert "1 token, 1 character, 1.00 characters per token" in gptcli("tokenize", "a").out


def test_colours_in_turn_where_there_are_colours(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = gptcli("tokenize", "a b c").out
    first, second, third = (out.partition(f"{piece}\x1b[0m")[0].rpartition("\x1b[")[2] for piece in ("a", " b", " c"))
    assert first == third
    assert first != second
    assert "|" not in out
    assert "\x1b" in gptcli("tokenize", "a b c", "--scheme", "gpt2", "--scheme", "byte").out.splitlines()[-2]
    monkeypatch.setenv("NO_COLOR", "1")
    assert gptcli("tokenize", "a b c").out.splitlines()[0] == "a| b| c"


def test_a_long_text_in_colours_is_whole(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    ids = gptcli("tokenize", "ab" * 1_500, "--scheme", "char").out.splitlines()[1]
    assert ids.count("\x1b[30;4") == 3_000
    assert ids.count(" ") == 2_999


def test_schemes_side_by_side(gptcli: Any) -> None:
    result = gptcli(
        "tokenize", FUN, *(word for kind in ("word", "char", "byte", "gpt2") for word in ("--scheme", kind))
    )
    assert result.code == 0
    assert result.err.splitlines() == ["The word and char vocabularies are made from this text alone."]
    rows = [line.split(maxsplit=4) for line in result.out.splitlines() if line.split()[:1] != []][3:]
    assert [row[:4] for row in rows] == [
        ["word", "4", "6", "5.00"],
        ["char", "20", "14", "1.00"],
        ["byte", "20", "257", "1.00"],
        ["gpt2", "5", "50,257", "4.00"],
    ]
    assert rows[0][4].strip() == "Tokenization|is|fun|!"


def test_a_table_says_how_much_it_leaves_out(gptcli: Any) -> None:
    assert " … 50 more" in gptcli("tokenize", "a" * 250, "--scheme", "char", "--scheme", "gpt2").out


def test_a_scheme_given_twice_is_one(gptcli: Any) -> None:
    assert gptcli("tokenize", FUN, "--scheme", "gpt2", "--scheme", "gpt2").out == gptcli("tokenize", FUN).out


def test_quiet_leaves_the_note_out(gptcli: Any) -> None:
    assert gptcli("tokenize", FUN, "--scheme", "char", "--quiet").err == ""


def test_json(gptcli: Any) -> None:
    result = gptcli("tokenize", "Hi 🤗\n", "--scheme", "gpt2", "--scheme", "byte", "--json")
    assert result.json["characters"] == 5
    gpt2 = result.json["schemes"]["gpt2"]
    assert gpt2["ids"] == tokenizers.build("gpt2").encode("Hi 🤗\n")
    assert gpt2["pieces"] == ["Hi", " \\xf0\\x9f", "\\xa4", "\\x97", "\\n"]
    assert (gpt2["tokens"], gpt2["vocab_size"], gpt2["characters_per_token"]) == (5, 50_257, 1.0)
    assert result.json["schemes"]["byte"]["ids"] == list("Hi 🤗\n".encode())


def test_special_text_only_if_allowed(gptcli: Any) -> None:
    assert gptcli("tokenize", "<|endoftext|>").out.splitlines()[1] == "27 91 437 1659 5239 91 29"
    assert gptcli("tokenize", "<|endoftext|>", "--allow-special").out.splitlines()[:2] == ["<|endoftext|>", "50256"]


def test_white_space_alone_has_no_words_but_tokens(gptcli: Any) -> None:
    assert gptcli("tokenize", " \n").out.startswith(" |\\n\n220 198\n2 tokens")
    gptcli("tokenize", " \n", "--scheme", "word").assert_user_error("word", "there is none")


@pytest.mark.parametrize("arguments", [["-"], []])
def test_stdin(gptcli: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    pipe(monkeypatch, FUN.encode())
    assert gptcli("tokenize", *arguments).out == gptcli("tokenize", FUN).out


def test_a_file(gptcli: Any) -> None:
    Path("text.txt").write_text(FUN, encoding="utf-16")
    assert gptcli("tokenize", "--file", "text.txt").out == gptcli("tokenize", FUN).out


def test_the_tokenizer_of_a_checkpoint(gptcli: Any) -> None:
    from models import tiny_checkpoint

    tiny_checkpoint(Path("checkpoints/letters"), "char", "fun is a token!")
    by_name = gptcli("tokenize", "a fun token", "--checkpoint", "letters", "--json")
    char = by_name.json["schemes"]["char"]
    assert char["ids"] == tokenizers.build("char", "fun is a token!").encode("a fun token")
    assert by_name.err == ""
    assert gptcli("tokenize", "a fun token", "--checkpoint", "checkpoints/letters", "--json").json == by_name.json
    gptcli("tokenize", "A token", "--checkpoint", "letters").assert_user_error("'A' (U+0041) at offset 0", "of 12")
    gptcli("tokenize", FUN, "--checkpoint", "leters").assert_user_error("leters", "letters")
    gptcli("tokenize", FUN, "--checkpoint", "letters", "--scheme", "byte").assert_user_error("--scheme byte", "letters")
    Path("checkpoints/letters/tokenizer_gptcli.json").unlink()
    gptcli("tokenize", FUN, "--checkpoint", "letters").assert_user_error("tokenizer_gptcli.json", "missing")


def test_a_byte_from_the_shell_that_is_no_utf8_is_refused(gptcli: Any) -> None:
    gptcli("tokenize", "a\udcff", "--scheme", "byte").assert_user_error("byte 0xFF at offset 1")


def test_a_lone_surrogate_is_shown_as_a_replacement(gptcli: Any) -> None:
    result = gptcli("tokenize", "a\ud800", "--scheme", "char", "--scheme", "byte", "--json")
    assert result.json["schemes"]["byte"]["ids"] == [97, 0xEF, 0xBF, 0xBD]
    assert result.json["schemes"]["char"]["pieces"] == ["a", "\\ud800"]


def test_a_folder_of_two_texts_is_both(gptcli: Any) -> None:
    Path("texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (Path("texts") / name).write_text(name, encoding="utf-8")
    assert gptcli("tokenize", "--file", "texts").out == gptcli("tokenize", "a.txt\nb.txt").out


# Bad input


def test_an_unknown_scheme(gptcli: Any) -> None:
    gptcli("tokenize", FUN, "--scheme", "gpt").assert_user_error("'gpt'", "Did you mean gpt2?")


def test_an_empty_text(gptcli: Any) -> None:
    gptcli("tokenize", "").assert_user_error("empty")


def test_no_text(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    gptcli("tokenize").assert_user_error("no text", "--file")


def test_two_texts(gptcli: Any) -> None:
    gptcli("tokenize", FUN, "--file", "text.txt").assert_user_error("two texts")
    gptcli("tokenize", "Tokenization", "is").assert_user_error("no quotes", 'tokenize "Tokenization is"')


def test_files_that_cannot_be_read(gptcli: Any) -> None:
    gptcli("tokenize", "--file", "missing.txt").assert_user_error("missing.txt")
    Path("empty.txt").touch()
    gptcli("tokenize", "--file", "empty.txt").assert_user_error("empty.txt", "empty")
    Path("latin.txt").write_bytes(b"caf\xe9 au lait")
    gptcli("tokenize", "--file", "latin.txt").assert_user_error("0xE9", "offset 3")
    Path("folder").mkdir()
    gptcli("tokenize", "--file", "folder").assert_user_error("folder")


def test_stdin_that_is_not_utf8(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"\x80abc")
    gptcli("tokenize", "-").assert_user_error("stdin", "0x80", "offset 0")


def test_it_answers_without_torch() -> None:
    script = (
        "import json, sys; from gptcli.cli import main\n"
        "main(['tokenize', 'Hello', '--scheme', 'gpt2', '--scheme', 'char'])\n"
        "print(json.dumps([name for name in ('torch', 'numpy', 'matplotlib', 'transformers') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
