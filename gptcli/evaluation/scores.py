"""A checkpoint measured on texts or on a task, as values: what `gptcli.evaluate` returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.checkpoints import checkpoint
from gptcli.config.compute import ComputeConfig
from gptcli.config.evaluation import PerplexityConfig, TaskConfig
from gptcli.data import documents
from gptcli.device import placement
from gptcli.errors import SettingError
from gptcli.evaluation import task_files, task_run, tasks
from gptcli.evaluation.task_files import Item
from gptcli.evaluation.tasks import Figure
from gptcli.evaluation.text_measurement import TextMeasurement
from gptcli.evaluation.text_results import NATS_TO_BITS, Units


@dataclass(frozen=True)
class TextScores:
    """The likelihood of texts.

    Attributes:
        loss: mean negative log-likelihood of the scored tokens, in nats a token.
        standard_error: of ``loss``, in nats.
        perplexity: exp(loss).
        word_perplexity: the perplexity of a word (words are separated by white space).
        bits_per_byte: mean negative log-likelihood of a UTF-8 byte, in bits; like ``word_perplexity`` NaN where some
            words of the texts are not in a word vocabulary.
        tokens: number of scored tokens.
        windows: number of windows.
        context, stride: of the windows, in tokens.
        bos: whether the end-of-text id was before each text.
        unknown: tokens that stand for words outside the vocabulary.
    """

    loss: float
    standard_error: float
    perplexity: float
    word_perplexity: float
    bits_per_byte: float
    tokens: int
    windows: int
    context: int
    stride: int
    bos: bool
    unknown: int = 0


@dataclass(frozen=True)
class TaskScores:
    """The results of a task.

    Attributes:
        figures: by name ("accuracy", …) the mean over the items and its standard error: accuracies in [0, 1], and under
            "log_likelihood" the perplexity of the last word.
        items: number of items.
        rows: the results of each item, in the order of the file.
    """

    figures: dict[str, Figure]
    items: int
    rows: list[dict[str, Any]]


def read_items(files: Sequence[str], settings: TaskConfig) -> list[Item]:
    """The items of the one file in ``files``.

    Raises:
        GptcliError: there are several files, or the file cannot be read or has no items of the task.
    """
    assert settings.task is not None
    if len(files) != 1:
        raise SettingError(f"{{task}} takes one file, and there are {len(files)}.", "Give one file of JSON lines.")
    return task_files.read_items(Path(files[0]), settings.task, settings.convention, settings.limit)


def task_setting(file: str, settings: TaskConfig, bos: bool | None) -> dict[str, Any]:
    """What the results of a task depend on beside the model and the number of items."""
    convention = settings.convention if settings.task == "lambada" else None
    return {"task": settings.task, "file": file, "convention": convention, "bos": bool(bos)}


def score_texts(path: Path, texts: Sequence[str], settings: PerplexityConfig, compute: ComputeConfig) -> TextScores:
    """The likelihood of ``texts`` (files, folders, globs) under the checkpoint ``path``.

    Raises:
        GptcliError: the checkpoint or a text cannot be read, a setting does not suit the model, or there is too little
            text.
    """
    placed = placement.place(compute)
    found = documents.read_documents(texts, encoding=settings.encoding, errors=settings.errors)
    result = TextMeasurement(checkpoint.load(path), found, settings, placed).measure()
    units, measured = Units.of(found), result.measured
    return TextScores(
        measured.mean,
        measured.standard_error,
        _exp(measured.mean),
        _exp(result.nats_each(units.word)[0]) if result.is_of_the_text else math.nan,
        result.nats_each(units.byte)[0] * NATS_TO_BITS if result.is_of_the_text else math.nan,
        measured.tokens,
        measured.windows,
        result.protocol.context,
        result.protocol.stride,
        result.bos,
        result.unknown,
    )


def score_task(
    path: Path, files: Sequence[str], task: TaskConfig, settings: PerplexityConfig, compute: ComputeConfig
) -> TaskScores:
    """The results of the checkpoint ``path`` on the items in the one file of JSON lines.

    Raises:
        GptcliError: the checkpoint or an item cannot be read, or what `read_items` raises.
    """
    placed = placement.place(compute)
    items, setting = read_items(files, task), task_setting(files[0], task, settings.bos)
    with task_run.opened(checkpoint.load(path), items, setting, None, settings.batch_size, placed) as run:
        for _ in run.run():
            pass
        rows = run.rows()
    return TaskScores(tasks.summarise(rows), len(rows), rows)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
