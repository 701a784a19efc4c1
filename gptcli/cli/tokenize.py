"""gptcli tokenize: the pieces that a model reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import options, render
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.tokenizers import Tokenizer

PIECES_IN_A_TABLE = 200


def tokenize(
    text: Annotated[str | None, typer.Argument(help="The text to split into tokens; - reads stdin.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Read the text from this file; with --compare, several files may be given."),
    ] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option("--scheme", "-s", help="gpt2 (the default), char, byte or word; given several times, a table."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", "-c", help="Use the tokenizer of this checkpoint directory, or name under checkpoints/."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            help="A kind, or a directory that holds a tokenizer; a table of tokens and bytes a token. Several times.",
        ),
    ] = None,
    allow_special: options.AllowSpecial = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show a text as tokens: their pieces, their ids and how many there are."""
    if checkpoint is not None and scheme:
        raise GptcliError(
            f"--scheme {scheme[0]} and --checkpoint {checkpoint} both choose the tokenizer.", "Give one of the two."
        )
    if compare:
        _compare(compare, text, file or [], scheme or checkpoint, allow_special, as_json)
        return
    if file is not None and len(file) > 1:
        raise GptcliError(f"There are {len(file)} files.", "Give one, or compare tokenizers on them with --compare.")
    schemes = list(dict.fromkeys(scheme or ["gpt2"]))
    _check_schemes(schemes)
    whole = options.read_text(text, file[0] if file else None, what="text")
    if not whole:
        raise GptcliError("The text is empty: there is nothing to tokenize.", "Give a text of one character or more.")
    tokenizers = [_of_checkpoint(checkpoint)] if checkpoint is not None else _of_text(schemes, whole)
    results = [(tokenizer, tokenizer.encode(whole, allow_special=allow_special)) for tokenizer in tokenizers]
    if as_json:
        render.print_json(
            {"characters": len(whole), "schemes": {each.kind: _record(each, ids, whole) for each, ids in results}}
        )
    elif len(results) == 1:
        _print_one(*results[0], whole)
    else:
        _print_table(results, whole)


def _check_schemes(schemes: list[str]) -> None:
    from gptcli.tokenizers import KINDS

    for kind in schemes:
        if kind not in KINDS:
            raise GptcliError(f"There is no --scheme {kind!r}.", nearest(kind, KINDS))


def _of_checkpoint(name: Path) -> "Tokenizer":
    from gptcli.checkpoints import layout

    return layout.load_tokenizer(layout.find(name))


def _of_text(schemes: list[str], text: str) -> list["Tokenizer"]:
    from gptcli.tokenizers import build

    learning = [kind for kind in schemes if kind in ("char", "word")]
    tokenizers = [build(kind, text) for kind in schemes]
    if learning:
        plural = "vocabulary is" if len(learning) == 1 else "vocabularies are"
        render.note(f"The {' and '.join(learning)} {plural} made from this text alone.")
    return tokenizers


def _compare(
    names: list[str], text: str | None, files: list[Path], other: object, allow_special: bool, as_json: bool
) -> None:
    """Print tokens and bytes a token of every text, by tokenizer."""
    from gptcli.checkpoints import layout
    from gptcli.tokenizers import build
    from gptcli.tokenizers.choice import choose
    from gptcli.tokenizers.text import to_utf8

    if other is not None:
        raise GptcliError("--compare chooses the tokenizers already.", "Leave --scheme and --checkpoint out.")
    chosen = {name: choose(name, layout.ROOT) for name in dict.fromkeys(names)}
    for name, choice in chosen.items():
        if choice.vocab_size is not None:
            raise GptcliError(
                f"--compare {name} has not been trained.",
                f"gptcli train-tokenizer TEXT --vocab-size {choice.vocab_size}",
            )
    texts = {str(path): options.read_text(None, path, what="text") for path in files}
    if text is not None or not files:
        texts["text"] = options.read_text(text, None, what="text")
    records = []
    for where, whole in texts.items():
        size = len(to_utf8(whole))
        for name, choice in chosen.items():
            tokenizer = choice.tokenizer or build(choice.kind, whole)
            tokens = len(tokenizer.encode(whole, allow_special=allow_special))
            records.append(
                {
                    "text": where, "bytes": size, "tokenizer": name, "kind": tokenizer.kind, "tokens": tokens,
                    "vocab_size": tokenizer.vocab_size, "bytes_per_token": size / tokens if tokens else 0.0,
                }
            )  # fmt: skip
    if as_json:
        render.print_json(records)
        return
    columns = [("Text", "left"), ("Tokenizer", "left"), ("Vocabulary", "right"), ("Tokens", "right"),
               ("Bytes/token", "right")]  # fmt: skip
    rows = [
        (r["text"], r["tokenizer"], f"{r['vocab_size']:,}", f"{r['tokens']:,}", f"{r['bytes_per_token']:.2f}")
        for r in records
    ]
    render.print_table(f"{_count(len(texts), 'text')}, {_count(len(chosen), 'tokenizer')}", columns, rows)


def _per_token(text: str, ids: list[int]) -> float:
    """Characters of ``text`` per token; 0 where a text has no token (the word scheme drops white space)."""
    return len(text) / len(ids) if ids else 0.0


def _record(tokenizer: "Tokenizer", ids: list[int], text: str) -> dict[str, Any]:
    return {
        "tokens": len(ids),
        "vocab_size": tokenizer.vocab_size,
        "characters_per_token": _per_token(text, ids),
        "ids": ids,
        "pieces": [tokenizer.piece(token_id) for token_id in ids],
    }


def _print_one(tokenizer: "Tokenizer", ids: list[int], text: str) -> None:
    render.print_tokens([tokenizer.piece(token_id) for token_id in ids])
    render.print_tokens([str(token_id) for token_id in ids], separator=" ")
    render.print_text(
        f"{_count(len(ids), 'token')}, {_count(len(text), 'character')}, {_per_token(text, ids):.2f} characters per "
        f"token ({tokenizer.kind}, vocabulary of {tokenizer.vocab_size:,})"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _print_table(results: list[tuple["Tokenizer", list[int]]], text: str) -> None:
    rows = []
    for tokenizer, ids in results:
        pieces = render.token_text([tokenizer.piece(token_id) for token_id in ids[:PIECES_IN_A_TABLE]])
        if len(ids) > PIECES_IN_A_TABLE:
            pieces.append(f" … {len(ids) - PIECES_IN_A_TABLE:,} more")
        rows.append(
            (tokenizer.kind, f"{len(ids):,}", f"{tokenizer.vocab_size:,}", f"{_per_token(text, ids):.2f}", pieces)
        )
    columns = [
        ("Scheme", "left"),
        ("Tokens", "right"),
        ("Vocabulary", "right"),
        ("Chars/token", "right"),
        ("Pieces", "pieces"),
    ]
    render.print_table(f"{_count(len(text), 'character')}, {len(results)} schemes", columns, rows)
