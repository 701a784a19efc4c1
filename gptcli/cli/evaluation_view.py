"""What ``gptcli evaluate`` prints: one table, and one line to quote."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli import figures, render

if TYPE_CHECKING:
    from gptcli.data.documents import Document
    from gptcli.evaluation.perplexity import Measured, Protocol

NATS_TO_BITS = 1 / math.log(2)
RIGHT = "right"


@dataclass(frozen=True)
class TextResult:
    """What one checkpoint gave to the texts.

    Attributes:
        checkpoint: its path.
        tokenizer, fingerprint: kind and SHA-256 of its tokenizer.
        weights: how the checkpoint holds them, float32, int8 or int4.
        dtype, device: computed in and on.
        bos: whether the end-of-text id was before each text.
        protocol: the windows.
        measured: the likelihoods.
        tokens: of the texts, scored or not.
    """

    checkpoint: str
    tokenizer: str
    fingerprint: str
    weights: str
    dtype: str
    device: str
    bos: bool
    protocol: "Protocol"
    measured: "Measured"
    tokens: int

    def how(self) -> str:
        """The protocol in a phrase."""
        first = "after the end-of-text id" if self.bos else "first token not scored"
        guide = ", windows of transformers' guide" if self.protocol.guide else ""
        return f"context {self.protocol.context:,}, stride {self.protocol.stride:,}{guide}, {first}"

    def precision(self) -> str:
        """Of weights and arithmetic in a phrase."""
        return self.dtype if self.weights == "float32" else f"{self.weights} weights, {self.dtype}"

    def nats_each(self, units: int) -> tuple[float, float]:
        """Nats a unit of which the texts have ``units``, and the standard error.

        Where some tokens are not scored, they count as average ones.
        """
        share = self.tokens / units
        return self.measured.mean * share, self.measured.standard_error * share


@dataclass(frozen=True)
class Units:
    """How long the texts are: words between white space, UTF-8 bytes, characters."""

    word: int
    byte: int
    character: int

    @classmethod
    def of(cls, documents: "Sequence[Document]") -> "Units":
        texts = [document.text for document in documents]
        return cls(
            sum(len(text.split()) for text in texts),
            sum(len(text.encode("utf-8", "replace")) for text in texts),
            sum(len(text) for text in texts),
        )


def show_texts(results: Sequence[TextResult], documents: "Sequence[Document]", as_json: bool) -> None:
    """Print the result of one or several checkpoints on the same texts."""
    units, sha256 = Units.of(documents), _sha256(documents)
    names = ", ".join(Path(document.name).name for document in documents[:3]) + (", …" if len(documents) > 3 else "")
    if as_json:
        render.print_json(_texts_as_json(results, documents, units, sha256))
        return
    if len(results) == 1:
        _print_one(results[0], names, units, sha256)
    else:
        _print_several(results, names, units, sha256)
    for result in results:
        render.print_text(_quote(result, names, units, sha256))


def _print_one(result: TextResult, names: str, units: Units, sha256: str) -> None:
    rows = []
    for name, count in (("token", result.tokens), *vars(units).items()):
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
        f"SHA-256 of the text: {sha256}"
    )
    render.print_table(f"{result.checkpoint} on {names}", columns, rows, caption)


def _print_several(results: Sequence[TextResult], names: str, units: Units, sha256: str) -> None:
    first = results[0]
    rows = []
    for result in results:
        bits, bits_error = (value * NATS_TO_BITS for value in result.nats_each(units.byte))
        change = "" if result is first else _change(difference(result, first, units))
        rows.append(
            [
                result.checkpoint,
                result.weights,
                result.tokenizer,
                f"{result.measured.tokens:,}",
                f"{result.measured.mean:.4f} ± {result.measured.standard_error:.4f}",
                figures.number(_exp(result.measured.mean)),
                figures.number(_exp(result.nats_each(units.word)[0])),
                f"{bits:.4f} ± {bits_error:.4f}",
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
    )
    render.print_table(f"{len(results)} checkpoints on {names}", columns, rows, caption)


def difference(result: TextResult, first: TextResult, units: Units) -> dict[str, Any]:
    """``result`` less ``first``: in nats a token where they scored the same tokens, else in bits a byte."""
    if result.fingerprint == first.fingerprint and result.measured.is_paired_with(first.measured):
        value, error = result.measured.difference(first.measured)
        return {"unit": "nats a token", "value": value, "standard_error": error, "paired": True}
    (a, a_error), (b, b_error) = result.nats_each(units.byte), first.nats_each(units.byte)
    return {
        "unit": "bits a byte",
        "value": (a - b) * NATS_TO_BITS,
        "standard_error": math.hypot(a_error, b_error) * NATS_TO_BITS,
        "paired": False,
    }


def _change(change: dict[str, Any]) -> str:
    how = "" if change["paired"] else ", not paired"
    digits = 6 if abs(change["value"]) < 0.001 else 4
    return f"{change['value']:+.{digits}f} ± {change['standard_error']:.{digits}f} {change['unit']}{how}"


def _quote(result: TextResult, names: str, units: Units, sha256: str) -> str:
    mean, error = result.measured.mean, result.measured.standard_error
    bits = result.nats_each(units.byte)[0] * NATS_TO_BITS
    word = figures.number(_exp(result.nats_each(units.word)[0]))
    return (
        f"{Path(result.checkpoint).name}: perplexity {figures.with_error(_exp(mean), _exp(mean) * error)} a token "
        f"({word} a word, {bits:.4f} bits a byte) on {names} "
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
            "tokens_scored": measured.tokens,
            "windows": measured.windows,
        }
        for name, count in (("token", result.tokens), *vars(units).items()):
            nats, error = result.nats_each(count)
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
    names = [Path(path).name for path in paths]
    return list(paths) if len(set(names)) < len(names) else names


def _sha256(documents: "Sequence[Document]") -> str:
    """Of the texts in UTF-8, one after the other."""
    import hashlib

    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.text.encode("utf-8", "replace"))
    return digest.hexdigest()


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
