"""How a model is measured, and how long that is timed: frozen dataclasses, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from gptcli.config.fields import check, in_panel, like, setting
from gptcli.config.text import DecodingErrors, TextConfig
from gptcli.errors import SettingError

Task = Literal["lambada", "choices", "cloze"]
Convention = Literal["openai", "raw"]
Part = Literal["validation", "train"]
Peer = Literal["transformers", "ctranslate2"]
PERPLEXITY = "Perplexity of a text"

window = in_panel(PERPLEXITY)
task_setting = in_panel("Tasks")
amount = in_panel("Amounts")


@dataclass(frozen=True)
class PerplexityConfig:
    """How the tokens of a text become windows, and the text is read. `bos` is for items of tasks as well.

    Raises:
        SettingError: a value is outside its range.
    """

    stride: int | None = window(
        None, "Tokens from one window to the next (default: half the context); 1 is exact.", common=True
    )
    context: int | None = window(None, "Tokens a window reads (default: the model's context).", common=True)
    guide: bool = window(False, "Windows that hold their targets, as in the perplexity guide of transformers.")
    bos: bool | None = window(
        None, "The end-of-text id before each text or item (default: for texts, if the tokenizer has one)."
    )
    batch_size: int | None = window(None, "Windows or items at once (default: about 4,096 tokens).", at_least=1)
    encoding: str | None = like(TextConfig, "encoding", panel=PERPLEXITY)
    errors: DecodingErrors = like(TextConfig, "errors", "strict", panel=PERPLEXITY)
    part: Part | None = window(
        None, "Instead of a text, a part of the run's own: validation (held out) or train.", common=True
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RowsConfig:
    """How rows of texts are read.

    Raises:
        SettingError: a value is outside its range.
    """

    fields: str | None = setting(
        None, "Other names of the rows' fields, as in text=body,label=kind.", panel="Rows", metavar="NAMES", common=True
    )
    encoding: str | None = like(TextConfig, "encoding", panel="Rows")
    errors: DecodingErrors = like(TextConfig, "errors", "strict", panel="Rows")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TaskConfig:
    """Which task is scored, on how many items.

    Raises:
        SettingError: a value is outside its range or none of its choices.
    """

    task: Task | None = task_setting(None, "lambada (last word), choices (endings) or cloze (a blank).", common=True)
    convention: Convention = task_setting(
        "openai", "For lambada: openai replaces curly quotes, `` and '' by plain ones; raw changes none."
    )
    limit: int | None = task_setting(
        None,
        "Measure only this number of items, the first ones.",
        at_least=1,
        hint="Leave it out for every item.",
        common=True,
    )

    def __post_init__(self) -> None:
        check(self)


def check_together(scored: TaskConfig, read: PerplexityConfig, *, plot: object = None, out: object = None) -> None:
    """Raise SettingError for a setting of texts that is set with a task, or one of tasks without one.

    Args:
        scored, read: the settings.
        plot, out: files that a command writes of texts, and of tasks; None where one is not given.
    """
    for_texts = {
        "stride": read.stride, "context": read.context, "guide": read.guide or None, "encoding": read.encoding,
        "part": read.part, "plot": plot,
    }  # fmt: skip
    for_tasks = {
        "limit": scored.limit, "convention": None if scored.convention == "openai" else scored.convention, "out": out,
    }  # fmt: skip
    task = scored.task
    for name, value in (for_tasks if task is None else for_texts).items():
        if value is not None and task is None:
            raise SettingError(f"{{{name}}} goes with {{task}}.", f"Name a {{task}}: {', '.join(get_args(Task))}.")
        if value is not None:
            raise SettingError(f"{{{name}}} goes with a text, not with {{task}}.", f"Leave {{{name}}} out.")
    if task is not None and task != "lambada" and scored.convention != "openai":
        raise SettingError(f"{{convention}} belongs to {{task}} lambada, not to {task}.", "Leave it out.")


def check_source(texts: Sequence[str], part: Part | None) -> None:
    """Raise SettingError unless there are either texts (or rows) to measure on, or a part of the run's own."""
    if bool(texts) == (part is not None):
        what = "{part} measures on the run's own data, and no other" if texts else "There is nothing to measure on"
        raise SettingError(f"{what}.", "Give a file, or {part} validation for what a run held out, and not both.")


@dataclass(frozen=True)
class BenchConfig:
    """How much of each work is timed, and how often.

    Raises:
        SettingError: a value is outside its range or none of its choices.
    """

    repetitions: int = amount(5, "Repetitions of each measurement.", at_least=1, common=True)
    tokens: int = amount(64, "Tokens to decode in a repetition.", at_least=1)
    prompt: int = amount(512, "Tokens of the prompt that prefill reads.", at_least=1)
    batch: int = amount(8, "Sequences at once.", at_least=1)
    rows: int = amount(4, "Windows of a training step.", at_least=1)
    length: int | None = amount(None, "Tokens of a window in training (256, or the context).", at_least=1)
    against: Peer | None = amount(
        None, "Another program to measure in turns: transformers or ctranslate2.", common=True
    )

    def __post_init__(self) -> None:
        check(self)
