"""A classifier on labelled rows: accuracy, precision, recall and F1 by label, the confusion matrix, and calibration."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from gptcli.checkpoints import layout
from gptcli.config.evaluation import Part, check_source
from gptcli.config.text import DecodingErrors
from gptcli.data import documents, forms, labels, rows, text_record
from gptcli.data.examples import Examples
from gptcli.data.labels import Labelled
from gptcli.data.rows import BadRowError
from gptcli.errors import GptcliError
from gptcli.inference.calibration import Calibration, calibration, probabilities
from gptcli.inference.classifier import Classifier, label_logits

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class LabelFigures:
    """The figures of one label.

    Attributes:
        label: its name.
        rows: that have it.
        predicted: rows that the classifier gave it.
        precision: the share of ``predicted`` that have it; None where there are none.
        recall: the share of ``rows`` that were given it; None where there are none.
        f1: the harmonic mean of both; None where there are neither rows nor predictions.
    """

    label: str
    rows: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class LabelScores:
    """A classifier measured on labelled rows.

    Attributes:
        labels: in the classifier's order.
        rows: number of rows.
        cut: rows with more tokens than the classifier's context.
        accuracy: the share of rows that were given their label, and ``standard_error`` of it.
        macro_f1: the mean F1 of the labels that rows have.
        most_frequent: the share of rows with the most frequent label: the accuracy of always naming it.
        figures: of each label.
        confusion: rows by actual label, then by predicted label.
        before, after: calibration at temperature 1, and at the run's; None if the run has no temperature.
        predictions: for each row its file and line, its label, the predicted one and its probability.
    """

    labels: tuple[str, ...]
    rows: int
    cut: int
    accuracy: float
    standard_error: float
    macro_f1: float
    most_frequent: float
    figures: list[LabelFigures]
    confusion: list[list[int]]
    before: Calibration
    after: Calibration | None
    predictions: list[dict[str, Any]] = field(repr=False)


def evaluate_labels(
    model: AnyPath | Classifier,
    files: AnyPath | Sequence[AnyPath] | None = None,
    *,
    part: Part | None = None,
    fields: str | None = None,
    encoding: str | None = None,
    errors: DecodingErrors = "strict",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    threads: int | None = None,
) -> LabelScores:
    """Measure a classifier on rows of texts with their labels.

    Args:
        model: the checkpoint of a classifier, or a `Classifier`, whose device and dtype are then used.
        files: .jsonl, .json, .csv or .tsv, folders and globs; each row has the fields text and label.
        part: instead of ``files`` a part of the run's own rows: "validation" (what it held out) or "train".
        fields: other names of the fields, as in "text=body,label=kind".
        encoding, errors: how to decode the files, as `bytes.decode` takes them; None for UTF-8 or the byte-order mark.
        device, dtype, threads: as for `Classifier`.

    Raises:
        GptcliError: the checkpoint is no classifier; a file or a row cannot be read; a label is none of the
            classifier's; both or neither of ``files`` and ``part`` are given; the run's rows have changed.

    Example:
        >>> import gptcli
        >>> scores = gptcli.evaluate_labels("animals", "rows.jsonl", device="cpu")
        >>> scores.rows, scores.labels, 0 <= scores.accuracy <= 1, sum(map(sum, scores.confusion))
        (4, ('cat', 'dog'), True, 4)
    """
    names = [] if files is None else documents.path_names(files)
    check_source(names, part)
    if not isinstance(model, Classifier):
        model = Classifier(model, device=device, dtype=dtype, threads=threads)
    if part is not None:
        return measure(model, read_part(model, part, fields))
    return measure(model, read(model, names, fields, encoding, errors))


def read(
    classifier: Classifier, files: Sequence[str], fields: str | None, encoding: str | None = None,
    errors: DecodingErrors = "strict",
) -> list[Labelled]:  # fmt: skip
    """The labelled rows of files, as ``classifier`` reads them.

    Args:
        classifier: whose tokenizer, context and labels count.
        files: .jsonl, .json, .csv or .tsv, folders of them, globs, - for stdin.
        fields: other names of the fields, as in text=body,label=kind; None for text and label.
        encoding, errors: how to decode them.

    Raises:
        GptcliError: a file cannot be read or holds no labelled rows, a row cannot be used, or has a label that the
            classifier has not learned.
    """
    mapping = forms.parse_fields(fields) if fields is not None else {}
    found: list[Labelled] = []
    for document in rows.read_files(files, encoding=encoding, errors=errors):
        if not rows.is_rows(document.name):
            raise GptcliError(
                f"{document.name} holds no labelled rows.",
                f"Give rows with text and label: {', '.join(rows.ROW_SUFFIXES)}.",
            )
        for row in rows.read(document, rows.refuse):
            form = forms.recognise(row, mapping)
            if form is not forms.LABEL:
                raise GptcliError(
                    f"{row.place} has {', '.join(row.fields)}, and no text with its label.",
                    "Give rows with the fields text and label, or say which ones they are.",
                )
            try:
                mapped = forms.mapped(row, form, mapping)
                found += labels.read([mapped], classifier.tokenizer, classifier.config.context_length, rows.refuse)
                labels.check_known(found[-1].row, found[-1].label, classifier.labels)
            except BadRowError as error:
                rows.refuse(error)
    if not found:
        raise GptcliError(f"{', '.join(files)} holds no row.", "Give rows with the fields text and label.")
    return found


def read_part(classifier: Classifier, part: Part, fields: str | None) -> list[Labelled]:
    """The rows that the classifier's run was trained on, or those that it held out, read again from where they were.

    Args:
        classifier: one that gptcli trained.
        part: train or validation.
        fields: as of `read`, as the run had them.

    Raises:
        GptcliError: the run does not know its rows, held none out, or they are not what they were.
    """
    record = text_record.read(classifier.path)
    recipe = layout.read_config(classifier.path)[1].get("training", {}).get("recipe")
    if record is None or recipe is None:
        raise GptcliError(
            f"{classifier.path} does not say which rows it was trained on.", "Give rows to measure it on instead."
        )
    found = record.train if part == "train" else record.validation
    if found is None:
        raise GptcliError(f"{classifier.path} held no rows out.", "Give rows to measure it on instead.")
    every = read(classifier, record.texts, fields, record.encoding, cast(DecodingErrors, record.errors))
    parts = labels.split(every, record.train_share, recipe["seed"])
    chosen = parts[0 if part == "train" else 1]
    examples = Examples([labels.example(each, classifier.labels) for each in chosen], 1) if chosen else None
    if examples is None or hashlib.sha256(examples.identity).hexdigest() != found.sha256:
        raise GptcliError(
            f"The rows of {classifier.path} ({', '.join(record.texts)}) are not what they were.",
            "Give rows to measure it on instead.",
        )
    return chosen


def measure(
    classifier: Classifier, found: Sequence[Labelled], advance: Callable[[int], object] = lambda rows: None
) -> LabelScores:
    """Classify every row and compare.

    Args:
        classifier: opened.
        found: at least one row, as `read` returns them.
        advance: called with the number of rows after each batch.

    Raises:
        GptcliError: a logit is NaN or infinite.
    """
    logits = label_logits(classifier.model, [each.ids for each in found], advance)
    actual = torch.tensor([classifier.labels.index(each.label) for each in found])
    count, kinds = len(found), len(classifier.labels)
    shares, predicted = probabilities(logits, classifier.temperature).max(dim=-1)
    confusion = torch.zeros(kinds, kinds, dtype=torch.int64)
    confusion.index_put_((actual, predicted), torch.ones_like(actual), accumulate=True)
    figures = [_figures(label, number, confusion) for number, label in enumerate(classifier.labels)]
    accuracy = int(confusion.diagonal().sum()) / count
    known = [each.f1 for each in figures if each.rows and each.f1 is not None]
    return LabelScores(
        labels=classifier.labels,
        rows=count,
        cut=sum(each.cut for each in found),
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / count),
        macro_f1=sum(known) / len(known),
        most_frequent=int(confusion.sum(dim=1).max()) / count,
        figures=figures,
        confusion=confusion.tolist(),
        before=calibration(logits, actual, 1.0),
        after=calibration(logits, actual, classifier.temperature) if classifier.is_calibrated else None,
        predictions=[
            {"file": each.row.file, "line": each.row.line, "label": each.label,
             "predicted": classifier.labels[place], "probability": share}
            for each, place, share in zip(found, predicted.tolist(), shares.tolist(), strict=True)
        ],
    )  # fmt: skip


def _figures(label: str, number: int, confusion: Tensor) -> LabelFigures:
    right, rows_of, predicted = (
        int(part) for part in (confusion[number, number], confusion[number].sum(), confusion[:, number].sum())
    )
    return LabelFigures(
        label, rows_of, predicted,
        right / predicted if predicted else None,
        right / rows_of if rows_of else None,
        2 * right / (rows_of + predicted) if rows_of + predicted else None,
    )  # fmt: skip
