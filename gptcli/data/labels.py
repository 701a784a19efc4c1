"""Labelled rows as examples of a classifier: the labels, the class at a text's last token, the split, the weights."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.checkpoints.classifier import text_ids
from gptcli.data import forms
from gptcli.data.examples import Example
from gptcli.data.rows import BadRowError, Row
from gptcli.errors import GptcliError
from gptcli.model.loss import IGNORED
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.offsets import special_texts

UNBALANCED = 1.5  # times the rows of the rarest label that the most frequent one has, above which labels are weighted
MOST_SHARE = 0.5  # of the rows: with more labels than that, they are no classes
_SHOWN = 8
_SKIP = "{skip_bad} leaves such rows out."


@dataclass(frozen=True)
class Labelled:
    """A row that was read: where, its text, its label and its tokens."""

    row: Row
    text: str
    label: str
    ids: list[int]
    cut: bool


def label_of(row: Row) -> str:
    """The label of a mapped row as a text; a whole number and a truth value are names as well.

    Raises:
        BadRowError: it is empty, a fraction, or no single value.
    """
    value = row.fields["label"]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value.strip()
    shown = repr(value)[:40]
    if isinstance(value, float):
        raise BadRowError(
            f"{row.place}: the label {shown} is a fraction, not the name of a class.",
            f"A classifier learns names, as in low, middle, high; name ranges of the number. {_SKIP}",
        )
    what = "is empty" if value is None or isinstance(value, str) else f"is {shown}, not a name"
    raise BadRowError(f"{row.place}: the label {what}.", f"Expected: a name, such as spam. {_SKIP}")


def read(
    rows: Sequence[Row], tokenizer: Tokenizer, context: int, on_bad: Callable[[BadRowError], None]
) -> list[Labelled]:
    """The rows that can be used.

    Args:
        rows: mapped to `forms.LABEL`.
        tokenizer: the classifier's.
        context: the most tokens that it reads.
        on_bad: called with the error of every other row; it may raise it.
    """
    found = []
    for row in rows:
        try:
            text, label = forms.text_of(row), label_of(row)
            _refuse_special(row, text, tokenizer)
            ids, cut = text_ids(text, tokenizer, context)
        except BadRowError as error:
            on_bad(error)
        except GptcliError as error:
            on_bad(BadRowError(f"{row.place}: {error.message}", f"{error.hint} {_SKIP}"))
        else:
            found.append(Labelled(row, text, label, ids, cut))
    return found


def _refuse_special(row: Row, text: str, tokenizer: Tokenizer) -> None:
    """Raise BadRowError for the text of a special token: AutoTokenizer takes it for the token, which pads."""
    special = next((token for token in special_texts(tokenizer) if token in text), None)
    if special is not None:
        raise BadRowError(f"{row.place} has {special!r} in it, which is a special token.", f"Remove it. {_SKIP}")


def labels_of(found: Sequence[Labelled]) -> tuple[str, ...]:
    """The labels of rows to train on, sorted, whole numbers by their value.

    Raises:
        GptcliError: there is one only, or so many that they are no classes.
    """
    counts = Counter(each.label for each in found)
    file = found[0].row.file
    if len(counts) == 1:
        raise GptcliError(
            f"{file}: all {len(found):,} rows have the label {found[0].label!r:.60}.",
            "A classifier chooses between at least 2 labels: add rows with others.",
        )
    if len(counts) > MOST_SHARE * len(found):
        numbers = " They are numbers: name ranges of them, as in low, middle, high." if _are_numbers(counts) else ""
        raise GptcliError(
            f"{file}: {len(found):,} rows have {len(counts):,} labels, among them {_listed(sorted(counts))}.",
            f"A label is the name of a class that several rows have; check which field holds the label.{numbers}",
        )
    return tuple(sorted(counts, key=int) if _are_numbers(counts) else sorted(counts))


def example(each: Labelled, labels: Sequence[str]) -> Example:
    """The tokens of a text, with the number of its label at the last one.

    Raises:
        BadRowError: the label is not among ``labels``.
    """
    check_known(each.row, each.label, labels)
    return Example(each.ids, [IGNORED] * (len(each.ids) - 1) + [labels.index(each.label)])


def check_known(row: Row, label: str, labels: Sequence[str]) -> None:
    """Raise BadRowError for a label that the classifier has not learned."""
    if label not in labels:
        raise BadRowError(
            f"{row.place}: the label {label!r:.60} is none that the classifier has learned: {_listed(labels)}.",
            f"Correct it, or train on rows that have it. {_SKIP}",
        )


def split(found: Sequence[Labelled], train_share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """A random share of the rows of every label to train on, and the rest.

    A label with two rows or more has one in each part where anything is held out; one with a single row is trained on.
    """
    train, validation = [], []
    for label in sorted({each.label for each in found}):
        numbers = [number for number, each in enumerate(found) if each.label == label]
        random.Random(f"{seed} {label}").shuffle(numbers)
        held_out = round((1 - train_share) * len(numbers))
        if train_share < 1 and len(numbers) > 1:
            held_out = min(max(1, held_out), len(numbers) - 1)
        validation += numbers[: held_out if len(numbers) > 1 else 0]
        train += numbers[held_out if len(numbers) > 1 else 0 :]
    return [found[number] for number in sorted(train)], [found[number] for number in sorted(validation)]


def weights(train: Sequence[Labelled], labels: Sequence[str]) -> tuple[float, ...]:
    """The weight of each label in the loss, n / (labels · rows of the label); empty where labels are balanced.

    The mean over all rows is 1, and every label counts as much as every other.
    """
    counts = Counter(each.label for each in train)
    if max(counts.values()) <= UNBALANCED * min(counts.values()):
        return ()
    return tuple(len(train) / (len(labels) * counts[label]) for label in labels)


def lines(found: Sequence[Labelled], labels: Sequence[str], class_weights: Sequence[float]) -> list[str]:
    """What is said of the labels: how many rows each has, and its weight."""
    counts = Counter(each.label for each in found)
    shown = ", ".join(f"{label!r:.40} {counts[label]:,}" for label in labels[:_SHOWN])
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    numbers = " The labels are numbers, and taken as names." if _are_numbers(labels) else ""
    told = [f"{len(labels)} labels: {shown}{more}.{numbers}"]
    if class_weights:
        low, high = min(class_weights), max(class_weights)
        told.append(
            "The labels are unbalanced: in the loss a row counts inversely to how frequent its label is, "
            f"{low:.2f} for {labels[list(class_weights).index(low)]!r:.40} to "
            f"{high:.2f} for {labels[list(class_weights).index(high)]!r:.40}."
        )
    return told


def _are_numbers(labels: Any) -> bool:
    return all(re.fullmatch("-?[0-9]+", label) for label in labels)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN:,} more" if len(labels) > _SHOWN else ""
    return ", ".join(repr(label)[:40] for label in labels[:_SHOWN]) + more
