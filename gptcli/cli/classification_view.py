"""gptcli evaluate of a classifier, and what it prints."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from gptcli.checkpoints import overwrite
from gptcli.cli import render
from gptcli.config.compute import ComputeConfig
from gptcli.config.evaluation import PerplexityConfig, TaskConfig, check_source
from gptcli.config.fields import fields_of
from gptcli.errors import GptcliError, SettingError

if TYPE_CHECKING:
    from gptcli.evaluation.classification import LabelScores
    from gptcli.inference.calibration import Calibration

MOST_COLUMNS = 12  # labels up to which the whole confusion matrix is printed
WORST = 10  # pairs of labels that are printed where there are more
NONE = "–"


def check_settings(perplexity: PerplexityConfig, scored: TaskConfig, checkpoints: Sequence[Path]) -> None:
    """Raise GptcliError for a setting that a classifier does not have."""
    if len(checkpoints) > 1:
        raise GptcliError("A classifier is measured alone.", "Give --checkpoint once.")
    for settings in (perplexity, scored):
        for name, each in fields_of(type(settings)).items():
            if name not in ("encoding", "errors", "part") and getattr(settings, name) != each.default:
                raise SettingError(f"{{{name}}} is not for a classifier.", f"Leave {{{name}}} out.")


def evaluate(
    checkpoint: Path,
    adapter: Path | None,
    texts: list[str],
    fields: str | None,
    reading: PerplexityConfig,
    compute: ComputeConfig,
    plot: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure the classifier on rows with labels, print the figures, draw them and write a line for every row."""
    from gptcli.evaluation import classification, classification_plots
    from gptcli.inference.classifier import Classifier

    check_source(texts, reading.part)
    if out is not None:
        overwrite.check_result(out, "jsonl")
    classifier = Classifier(
        checkpoint, adapter=adapter, device=compute.device, dtype=compute.dtype, threads=compute.threads
    )
    checkpoint = classifier.path
    if reading.part is not None:
        rows = classification.read_part(classifier, reading.part, fields)
        texts = [f"its own {reading.part} part"]
    else:
        rows = classification.read(classifier, texts, fields, reading.encoding, reading.errors)
    started = perf_counter()
    with render.progress(len(rows), "row", checkpoint.name) as bar:
        scores = classification.measure(classifier, rows, bar.update)
    seconds, tokens = perf_counter() - started, sum(len(each.ids) for each in rows)
    render.detail(f"{seconds:.1f} s, {tokens / seconds:,.0f} tokens/s.")
    if scores.cut:
        context = classifier.config.context_length
        render.warn(f"{scores.cut:,} rows have more than {context:,} tokens: only their first {context:,} are read.")
    files = ", ".join(Path(text).name for text in texts[:3]) + (", …" if len(texts) > 3 else "")
    show(scores, checkpoint, files, as_json)
    if out is not None:
        _write(out, scores)
    if plot is not None:
        title = f"{checkpoint.name} on {files}: accuracy {scores.accuracy:.1%} of {scores.rows:,} rows"
        classification_plots.draw(scores, plot, title)
        render.note(f"The plot is in {plot}.")


def _write(out: Path, scores: "LabelScores") -> None:
    try:
        with out.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in scores.predictions)
    except OSError as error:
        raise GptcliError(
            f"{out} cannot be written: {error.strerror or error}.", "Give a file in a folder that is there."
        ) from error
    render.note(f"Every row's prediction is in {out}.")


def show(scores: "LabelScores", checkpoint: Path, files: str, as_json: bool) -> None:
    """Print the figures of one classifier."""
    if as_json:
        found = asdict(scores)
        del found["predictions"]
        render.print_json({"checkpoint": str(checkpoint), "files": files, **found})
        return
    columns = [("label", "left"), *((name, "right") for name in ("rows", "predicted", "precision", "recall", "F1"))]
    cells = [
        [each.label, f"{each.rows:,}", f"{each.predicted:,}", *map(_percent, (each.precision, each.recall, each.f1))]
        for each in scores.figures
    ]
    render.print_table(f"{checkpoint} on {files}", columns, cells)
    _show_confusion(scores)
    lines = [_line(scores.before, "as trained")]
    if scores.after is None:
        lines.append("The run has no fitted temperature.")
    else:
        lines.append(_line(scores.after, f"at the run's temperature, {scores.after.temperature:.2f}"))
    for line in lines:
        render.print_line(line)
    render.print_line(
        f"{checkpoint.name}: accuracy {scores.accuracy:.2%} ± {scores.standard_error:.2%}, macro F1 "
        f"{scores.macro_f1:.3f}, on {scores.rows:,} rows of {files}; always naming the most frequent label: "
        f"{scores.most_frequent:.2%}"
    )


def _show_confusion(scores: "LabelScores") -> None:
    labels = scores.labels
    if len(labels) <= MOST_COLUMNS:
        columns = [("actual \\ predicted", "left"), *((label, "right") for label in labels)]
        cells = [[label, *(f"{count:,}" for count in row)] for label, row in zip(labels, scores.confusion, strict=True)]
        render.print_table("Confusion matrix", columns, cells)
        return
    pairs: Sequence[tuple[int, str, str]] = sorted(
        (
            (count, labels[actual], labels[predicted])
            for actual, row in enumerate(scores.confusion)
            for predicted, count in enumerate(row)
            if count and actual != predicted
        ),
        reverse=True,
    )
    columns = [("actual", "left"), ("predicted", "left"), ("rows", "right")]
    render.print_table(
        "Most frequent confusions", columns, [[actual, predicted, f"{n:,}"] for n, actual, predicted in pairs[:WORST]]
    )


def _line(calibration: "Calibration", when: str) -> str:
    return f"Calibration error {calibration.error:.4f}, {calibration.nats:.4f} nats a row, {when}."


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"
