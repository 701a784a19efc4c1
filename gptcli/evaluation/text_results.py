"""Perplexity results by token, word, byte and character, and their differences. Does not import torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptcli.data.documents import Document
    from gptcli.evaluation.perplexity import Measured, Protocol

NATS_TO_BITS = 1 / math.log(2)


@dataclass(frozen=True)
class TextResult:
    """The result of one checkpoint on the texts.

    Attributes:
        checkpoint: its path.
        tokenizer, fingerprint: kind and SHA-256 of its tokenizer.
        weights: format of the weights in the checkpoint: float32, int8 or int4.
        dtype, device: of the computation.
        bos: whether the end-of-text id was before each text.
        protocol: how texts were cut into windows.
        measured: the sums of likelihoods.
        tokens: tokens of the texts, scored or not, without the end-of-text ids in front.
        unknown: how many of them stand for any word that is not in the vocabulary.
        trained_on: the share of the texts that the checkpoint was trained on, in [0, 1]; None where it is not known.
        held_out: whether the part of its run's texts that was held out can be read, and so be measured.
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
    unknown: int = 0
    trained_on: float | None = None
    held_out: bool = False

    def how(self) -> str:
        """The protocol, for a table's caption."""
        first = "after the end-of-text id" if self.bos else "first token not scored"
        guide = ", windows of transformers' guide" if self.protocol.guide else ""
        return f"context {self.protocol.context:,}, stride {self.protocol.stride:,}{guide}, {first}"

    def precision(self) -> str:
        """The precision of weights and arithmetic, for a table."""
        return self.dtype if self.weights == "float32" else f"{self.weights} weights, {self.dtype}"

    @property
    def is_of_the_text(self) -> bool:
        """Whether the tokens are the text: one for unknown words is easy to predict, and says less than the words."""
        return self.unknown == 0

    def nats_each(self, units: int) -> tuple[float, float]:
        """Mean nats per unit (word, byte, character), of which the texts have ``units``, and its standard error.

        Tokens that are not scored count with the mean of the scored ones.
        """
        share = self.tokens / units
        return self.measured.mean * share, self.measured.standard_error * share


@dataclass(frozen=True)
class Units:
    """The length of the texts in words (separated by white space), UTF-8 bytes and characters."""

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


def remarks(results: Sequence[TextResult]) -> list[str]:
    """A line on every checkpoint that was trained on the texts, and one where that makes a comparison unfair, or might.

    ``{part}`` in a line stands for the setting, as in a `SettingError`.
    """
    lines = [
        f"{result.checkpoint} was trained on {result.trained_on:.0%} of this text."
        + (" {part} validation, without a text, measures the rest." if result.held_out else "")
        for result in results
        if result.trained_on
    ]
    known = [(result.checkpoint, result.trained_on) for result in results if result.trained_on is not None]
    unknown = dict.fromkeys(result.checkpoint for result in results if result.trained_on is None)
    if len({round(share, 3) for _, share in known}) > 1:
        told = ", ".join(f"{checkpoint} {share:.0%}" for checkpoint, share in known)
        lines.append(f"The comparison is not fair: the checkpoints were trained on different shares of it ({told}).")
    if unknown and any(share for _, share in known):
        lines.append(f"The comparison may not be fair: whether {' and '.join(unknown)} saw this text is not known.")
    return lines


def difference(result: TextResult, first: TextResult, units: Units) -> dict[str, Any] | None:
    """``result`` minus ``first``: in nats a token where both scored the same tokens, else in bits a byte.

    None where bits a byte would compare a text with one that has unknown words.
    """
    if result.fingerprint == first.fingerprint and result.measured.is_paired_with(first.measured):
        value, error = result.measured.difference(first.measured)
        return {"unit": "nats a token", "value": value, "standard_error": error, "paired": True}
    if not (result.is_of_the_text and first.is_of_the_text):
        return None
    (a, a_error), (b, b_error) = result.nats_each(units.byte), first.nats_each(units.byte)
    return {
        "unit": "bits a byte",
        "value": (a - b) * NATS_TO_BITS,
        "standard_error": math.hypot(a_error, b_error) * NATS_TO_BITS,
        "paired": False,
    }
