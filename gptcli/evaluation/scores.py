"""A checkpoint measured on texts or on a task, as values: what `gptcli.evaluate` returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gptcli.checkpoints import checkpoint
from gptcli.data import documents
from gptcli.device import placement
from gptcli.errors import SettingError, nearest
from gptcli.evaluation import task_files, task_run, tasks
from gptcli.evaluation.task_files import Convention, Task
from gptcli.evaluation.tasks import Figure
from gptcli.evaluation.text_measurement import TextMeasurement, WindowOptions
from gptcli.evaluation.text_results import NATS_TO_BITS, Units


@dataclass(frozen=True)
class TextScores:
    """The likelihood of texts.

    Attributes:
        loss: mean negative log-likelihood of the scored tokens, in nats a token.
        standard_error: of ``loss``, in nats.
        perplexity: exp(loss).
        word_perplexity: the perplexity of a word (words are separated by white space).
        bits_per_byte: mean negative log-likelihood of a UTF-8 byte, in bits.
        tokens: number of scored tokens.
        windows: number of windows.
        context, stride: of the windows, in tokens.
        bos: whether the end-of-text id was before each text.
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


def score_texts(
    path: Path,
    texts: Sequence[str],
    windows: WindowOptions,
    *,
    encoding: str | None = None,
    errors: str = "strict",
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> TextScores:
    """The likelihood of ``texts`` (files, folders, globs) under the checkpoint ``path``.

    Raises:
        GptcliError: the checkpoint or a text cannot be read, a setting is out of range, or there is too little text.
    """
    placed = placement.choose(device, dtype)
    placement.set_threads(threads)
    found = documents.read_documents(texts, encoding=encoding, errors=errors)
    result = TextMeasurement(checkpoint.load(path), found, windows, placed).measure(lambda count: None)
    units, measured = Units.of(found), result.measured
    return TextScores(
        measured.mean,
        measured.standard_error,
        _exp(measured.mean),
        _exp(result.nats_each(units.word)[0]),
        result.nats_each(units.byte)[0] * NATS_TO_BITS,
        measured.tokens,
        measured.windows,
        result.protocol.context,
        result.protocol.stride,
        result.bos,
    )


def score_task(
    path: Path,
    file: Path,
    task: str,
    *,
    convention: str = "openai",
    limit: int | None = None,
    bos: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> TaskScores:
    """The results of the checkpoint ``path`` on the items in ``file``, JSON lines.

    Raises:
        GptcliError: there is no such task or convention, the checkpoint or an item cannot be read, or a setting is out
            of range.
    """
    for name, value, choices in (("task", task, get_args(Task)), ("convention", convention, get_args(Convention))):
        if value not in choices:
            raise SettingError(f"There is no {{{name}}} {value!r}.", nearest(str(value), choices))
    if limit is not None and limit < 1:
        raise SettingError(f"{{limit}} is {limit}, but it must be at least 1.", "Leave it out for every item.")
    placed = placement.choose(device, dtype)
    placement.set_threads(threads)
    items = task_files.read_items(file, task, convention, limit)  # type: ignore[arg-type]
    setting = {"task": task, "file": str(file), "convention": convention if task == "lambada" else None, "bos": bos}
    with task_run.opened(checkpoint.load(path), items, setting, None, batch_size, placed) as run:
        for _ in run.run():
            pass
        rows = run.rows()
    return TaskScores(tasks.summarise(rows), len(rows), rows)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
