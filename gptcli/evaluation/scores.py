"""A checkpoint measured on texts or on a task, as values: what `gptcli.evaluate` returns."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

from gptcli.checkpoints import checkpoint, layout
from gptcli.config.compute import ComputeConfig
from gptcli.config.evaluation import Convention, Part, PerplexityConfig, Task, TaskConfig, check_source, check_together
from gptcli.config.text import DecodingErrors
from gptcli.data import documents, text_record
from gptcli.device import placement
from gptcli.errors import GptcliError, SettingError
from gptcli.evaluation import task_files, task_run, tasks
from gptcli.evaluation.task_files import Item
from gptcli.evaluation.tasks import Figure
from gptcli.evaluation.text_measurement import TextMeasurement
from gptcli.evaluation.text_results import NATS_TO_BITS, Units
from gptcli.inference.text_model import TextModel

AnyPath = str | os.PathLike[str]
Dtype = Literal["float32", "bfloat16", "float16"]


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


@overload
def evaluate(
    model: AnyPath | TextModel,
    texts: AnyPath | Sequence[AnyPath] | None = None,
    *,
    part: Part | None = None,
    stride: int | None = None,
    context: int | None = None,
    guide: bool = False,
    bos: bool | None = None,
    batch_size: int | None = None,
    encoding: str | None = None,
    errors: str = "strict",
    device: str = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
) -> TextScores: ...


@overload
def evaluate(
    model: AnyPath | TextModel,
    texts: AnyPath,
    *,
    task: Task,
    convention: Convention = "openai",
    limit: int | None = None,
    bos: bool | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
) -> TaskScores: ...


def evaluate(
    model: AnyPath | TextModel,
    texts: AnyPath | Sequence[AnyPath] | None = None,
    *,
    part: Part | None = None,
    task: Task | None = None,
    stride: int | None = None,
    context: int | None = None,
    guide: bool = False,
    convention: Convention = "openai",
    limit: int | None = None,
    bos: bool | None = None,
    batch_size: int | None = None,
    encoding: str | None = None,
    errors: str = "strict",
    device: str = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
) -> TextScores | TaskScores:
    """Measure a model on texts (its loss and perplexity), or on a task (its accuracy).

    Args:
        model: a checkpoint, or a `TextModel`, whose checkpoint is then measured.
        texts: files, folders (.txt and .md) and globs; for a task its one file of JSON lines.
        part: instead of ``texts`` a part of the run's own, read again from where they were: "validation" (what it held
            out) or "train".
        task: "lambada" (last word), "choices" (endings) or "cloze" (a blank); None measures texts.
        stride: tokens from one window to the next; None for half the context, 1 is exact.
        context: tokens that a window reads; None for the model's context.
        guide: windows that hold their targets, as in the perplexity guide of transformers.
        convention: of lambada: "openai" writes curly quotes, `` and '' as plain ones, "raw" leaves them.
        limit: the number of items to take from a task; None for all.
        bos: whether the end-of-text id is before each text or item; None: before texts, if the tokenizer has one.
        batch_size: windows or items at once; None for about 4,096 tokens.
        encoding, errors: how to decode texts, as `bytes.decode` takes them; None for UTF-8 or the byte-order mark.
        device, dtype, threads: as for `load`; float16 and bfloat16 as well.

    Returns:
        a `TextScores` (nats, bits, perplexities), or with ``task`` a `TaskScores` (accuracies in [0, 1]).

    Raises:
        GptcliError: a file cannot be read or has no item; a setting is out of range; fewer than 2 tokens to score; both
            or neither of ``texts`` and ``part`` are given; the texts of the run are not known, or have changed.

    Example:
        >>> import gptcli
        >>> scores = gptcli.evaluate("checkpoints/demo", "story.txt", stride=8)
        >>> scores.tokens, scores.context, scores.perplexity < 2
        (623, 16, True)
        >>> gptcli.evaluate("checkpoints/demo", part="validation").tokens
        62
    """
    settings = PerplexityConfig(stride, context, guide, bos, batch_size, encoding, cast(DecodingErrors, errors), part)
    scored, compute = TaskConfig(task, convention, limit), ComputeConfig(device, dtype, threads)
    names = [] if texts is None else documents.path_names(texts)
    check_together(scored, settings)
    check_source(names, part)
    path = _checkpoint_of(model)
    if task is None:
        return score_texts(path, names, settings, compute)
    return score_task(path, names, scored, settings, compute)


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
    """The likelihood of ``texts`` (files, folders, globs), or of the run's part that the settings name.

    Args:
        path: the checkpoint.
        texts: empty where the settings name a part.
        settings, compute: how to read and measure, and where.

    Raises:
        GptcliError: the checkpoint or a text cannot be read, a setting does not suit the model, or there is too little
            text.
    """
    placed = placement.place(compute)
    if settings.part is None:
        found = documents.read_documents(texts, encoding=settings.encoding, errors=settings.errors)
    else:
        found = text_record.open_part(path, settings.part)
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


def _checkpoint_of(model: AnyPath | TextModel) -> Path:
    if isinstance(model, str | os.PathLike):
        return layout.find(os.fspath(model))
    if model.quantize is not None:
        raise GptcliError(
            f"The model was packed in {model.quantize} when it was loaded, and {model.path} is not.",
            "Write a packed checkpoint with gptcli.quantize, and evaluate that one.",
        )
    return model.path


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
