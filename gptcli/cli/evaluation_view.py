"""What ``gptcli evaluate`` prints: one table, and one line to quote."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.checkpoints.layout import named
from gptcli.cli import figures, render
from gptcli.evaluation.text_results import NATS_TO_BITS, TextResult, Units, difference

if TYPE_CHECKING:
    from gptcli.data.documents import Document

RIGHT = "right"
WITHHELD = "–"


def show_texts(results: Sequence[TextResult], documents: "Sequence[Document]", as_json: bool) -> None:
    """Print the result of one or several checkpoints on the same texts."""
    from gptcli.data import text_record

    units, sha256 = Units.of(documents), text_record.sha256(document.text for document in documents)
    names = ", ".join(Path(document.name).name for document in documents[:3]) + (", …" if len(documents) > 3 else "")
    if as_json:
        render.print_json(_texts_as_json(results, documents, units, sha256))
        return
    if len(results) == 1:
        _print_one(results[0], names, units, sha256)
    else:
        _print_several(results, names, units, sha256)
    for result in results:
        render.print_line(_quote(result, names, units, sha256))


def _print_one(result: TextResult, names: str, units: Units, sha256: str) -> None:
    rows = []
    others = vars(units).items() if result.is_of_the_text else ()
    for name, count in (("token", result.tokens), *others):
        nats, error = result.nats_each(count)
        perplexity = _exp(nats)
        rows.append(
            [
                name,
                f"{count:,}",
                f"{nats:.4f} ± {error:.4f}",
                f"{nats * NATS_TO_BITS:.4f} ± {error * NATS_TO_BITS:.4f}",
                figures.with_error(perplexity, perplexity * error),
            ]
        )
    columns = [("per", "left"), ("count", RIGHT), ("nats", RIGHT), ("bits", RIGHT), ("perplexity", RIGHT)]
    caption = (
        f"{result.measured.tokens:,} tokens scored in {result.measured.windows:,} windows; {result.how()}.\n"
        f"{result.tokenizer} tokenizer, {result.precision()} on {result.device}; ± is one standard error.\n"
        f"SHA-256 of the text: {sha256}{_withheld([result])}"
    )
    render.print_table(f"{result.checkpoint} on {names}", columns, rows, caption)


def _print_several(results: Sequence[TextResult], names: str, units: Units, sha256: str) -> None:
    first = results[0]
    rows = []
    for name, result in zip(short_names([result.checkpoint for result in results]), results, strict=True):
        bits, bits_error = (value * NATS_TO_BITS for value in result.nats_each(units.byte))
        change = "" if result is first else _change(difference(result, first, units))
        word = figures.number(_exp(result.nats_each(units.word)[0])) if result.is_of_the_text else WITHHELD
        byte = f"{bits:.4f} ± {bits_error:.4f}" if result.is_of_the_text else WITHHELD
        rows.append(
            [
                name,
                result.weights,
                result.tokenizer,
                f"{result.measured.tokens:,}",
                f"{result.measured.mean:.4f} ± {result.measured.standard_error:.4f}",
                figures.number(_exp(result.measured.mean)),
                word,
                byte,
                change,
            ]
        )
    columns = [
        ("checkpoint", "left"),
        ("weights", "left"),
        ("tokenizer", "left"),
        ("tokens", RIGHT),
        ("nats a token", RIGHT),
        ("perplexity", RIGHT),
        ("a word", RIGHT),
        ("bits a byte", RIGHT),
        ("less the first", RIGHT),
    ]
    caption = (
        "± is one standard error; that of a difference is paired over the same tokens unless it says otherwise.\n"
        f"{units.word:,} words, {units.byte:,} bytes, {units.character:,} characters. SHA-256 of the text: {sha256}"
        f"{_withheld(results)}"
    )
    render.print_table(f"{len(results)} checkpoints on {names}", columns, rows, caption)


def _withheld(results: Sequence[TextResult]) -> str:
    """The line that says why some figures are left out; empty if none is."""
    told = [result for result in results if not result.is_of_the_text]
    names = [f"{named(Path(result.checkpoint)).name} has {result.unknown:,} of {result.tokens:,}" for result in told]
    if not told:
        return ""
    return (
        "\nTokens for words outside a vocabulary say less than the words, so that figures by word, byte and character, "
        f"and differences in them, are left out: {', '.join(names)}."
    )


def _change(change: dict[str, Any] | None) -> str:
    if change is None:
        return WITHHELD
    how = "" if change["paired"] else ", not paired"
    digits = 6 if abs(change["value"]) < 0.001 else 4
    return f"{change['value']:+.{digits}f} ± {change['standard_error']:.{digits}f} {change['unit']}{how}"


def _quote(result: TextResult, names: str, units: Units, sha256: str) -> str:
    mean, error = result.measured.mean, result.measured.standard_error
    bits = result.nats_each(units.byte)[0] * NATS_TO_BITS
    word = figures.number(_exp(result.nats_each(units.word)[0]))
    others = f"{word} a word, {bits:.4f} bits a byte" if result.is_of_the_text else f"{result.unknown:,} are unknown"
    name, perplexity = named(Path(result.checkpoint)).name, figures.with_error(_exp(mean), _exp(mean) * error)
    return (
        f"{name}: perplexity {perplexity} a token "
        f"({others}) on {names} "
        f"({result.measured.tokens:,} {result.tokenizer} tokens, SHA-256 {sha256[:12]}…), {result.how()}, "
        f"{result.precision()}"
    )


def _texts_as_json(
    results: Sequence[TextResult], documents: "Sequence[Document]", units: Units, sha256: str
) -> dict[str, Any]:
    def one(result: TextResult) -> dict[str, Any]:
        measured = result.measured
        row: dict[str, Any] = {
            "checkpoint": result.checkpoint,
            "tokenizer": {"kind": result.tokenizer, "fingerprint": result.fingerprint},
            "weights": result.weights,
            "dtype": result.dtype,
            "device": result.device,
            "context": result.protocol.context,
            "stride": result.protocol.stride,
            "guide": result.protocol.guide,
            "bos": result.bos,
            "tokens": result.tokens,
            "tokens_unknown": result.unknown,
            "tokens_scored": measured.tokens,
            "windows": measured.windows,
            "trained_on": result.trained_on,
        }
        for name, count in (("token", result.tokens), *vars(units).items()):
            nats, error = result.nats_each(count)
            if name != "token" and not result.is_of_the_text:
                row[f"per_{name}"] = None
                continue
            row[f"per_{name}"] = {
                "nats": nats,
                "standard_error": error,
                "bits": nats * NATS_TO_BITS,
                "bits_standard_error": error * NATS_TO_BITS,
                "perplexity": figures.finite(_exp(nats)),
            }
        if measured.bin_counts.sum():
            row["expected_calibration_error"] = measured.calibration_error()
        if result is not results[0]:
            row["difference"] = difference(result, results[0], units)
        return row

    return {
        "texts": [document.name for document in documents],
        "sha256": sha256,
        "words": units.word,
        "bytes": units.byte,
        "characters": units.character,
        "results": [one(result) for result in results],
    }


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or the whole path where two are alike."""
    names = [named(Path(path)).name for path in paths]
    return list(paths) if len(set(names)) < len(names) else names


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
