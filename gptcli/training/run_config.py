"""A run's config.toml: what it really used, as a file that `gptcli train --config` repeats it from."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli import __version__
from gptcli.checkpoints.atomic import atomic_write
from gptcli.checkpoints.checkpoint import cannot_write
from gptcli.checkpoints.layout import SETTINGS
from gptcli.config.fields import as_dict, fields_of
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.model import GPTConfig, ShapeChanges
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.config.sources import to_toml
from gptcli.config.text import TextConfig
from gptcli.data.open import prepared_folder
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.training.deadline import is_undecided
from gptcli.training.progress import Progress
from gptcli.training.run_plan import Plan

WITH_ORIGIN = ("context_length", "drop_rate")  # the shape that --init-from leaves open


@dataclass(frozen=True)
class Used:
    """What a run used.

    Attributes:
        source: the facts about its texts, as its snapshots have them.
        tokenizer: the tokenizer's kind.
        model: the model's shape.
        recipe, runtime: with the dtype, the device, the threads and the parts that were used.
        plan: its numbers of steps.
        processes: how many shared every step.
        finetune: the settings of a run on examples.
    """

    source: dict[str, Any]
    tokenizer: str
    model: GPTConfig
    recipe: RecipeConfig
    runtime: RuntimeConfig
    plan: Plan
    processes: int
    finetune: FinetuneConfig | None = None

    @property
    def again(self) -> str:
        """The command that repeats it."""
        if self.finetune is None:
            return "gptcli train --config FILE --out ANOTHER"
        return "gptcli finetune --config FILE --out ANOTHER"


def write(path: Path, run: Used, last_snapshot: Path | None = None) -> None:
    """Write config.toml into a run's directory, atomically.

    Args:
        path: the run's directory.
        run: what it used.
        last_snapshot: of a session that is over. Where a clock or --early-stop ended the run, max_steps becomes the
            number of its steps.

    Raises:
        GptcliError: the disk is full or not writable.
    """
    lines = [f"What this run used; {run.again} repeats it (gptcli {__version__})."]
    if run.processes > 1:
        lines.append(f"It ran in {run.processes} processes.")
    steps = None if last_snapshot is None else _steps_of_an_early_end(run, last_snapshot)
    if steps is not None:
        lines.append(f"max_time or early_stop ended it after {steps} steps, which max_steps stands for.")
        if run.recipe.schedule != "constant":
            lines.append(f"Its schedule was planned for {run.plan.schedule_steps} steps, schedule_steps.")
    if run.recipe.for_time is not None and not is_undecided(run.recipe):
        lines.append(f"Its {run.recipe.for_time:g} seconds gave it cooldown_start and max_steps.")
    file = path / SETTINGS
    try:
        with atomic_write(file) as partial:
            partial.write_text(to_toml(_values(path, run, steps), "\n".join(lines)), encoding="utf-8", newline="\n")
    except OSError as error:
        raise cannot_write(file, error) from error


def _steps_of_an_early_end(run: Used, snapshot: Path) -> int | None:
    progress = Progress.at(snapshot)
    is_early = progress.step < run.plan.total_steps and progress.ended(run.recipe, run.plan.total_steps) is not None
    return progress.step if is_early else None


def _values(path: Path, run: Used, steps: int | None) -> Iterator[tuple[str, str, Any]]:
    if run.finetune is not None:
        yield from _finetuning(path, run, run.finetune, steps)
        return
    yield "Input", "texts", [_beside(text, path) for text in run.source["texts"]]
    yield "Input", "texts_sha256", run.source["sha256"]
    if prepared_folder(run.source["texts"]) is None:
        yield from _section(TextConfig, {name: run.source[name] for name in fields_of(TextConfig)})
    origin = run.source.get("init_from")
    shape = {name: getattr(run.model, name) for name in fields_of(ShapeChanges)}
    shape["context_length"] = run.recipe.context_length
    if origin is None:
        # A trained vocabulary is in the run itself.
        yield "Model", "tokenizer", "." if run.tokenizer == BPETokenizer.kind else run.tokenizer
    else:
        yield "Model", "init_from", _beside(origin, path)
        shape = {name: shape[name] for name in WITH_ORIGIN}
    yield from _section(ShapeChanges, shape)
    recipe = _recipe(run, steps)
    yield from _section(RecipeConfig, {name: value for name, value in recipe.items() if name not in shape})
    yield from _section(RuntimeConfig, as_dict(run.runtime))


def _finetuning(path: Path, run: Used, settings: FinetuneConfig, steps: int | None) -> Iterator[tuple[str, str, Any]]:
    yield "Input", "texts", [_beside(text, path) for text in run.source["texts"]]
    yield "Input", "texts_sha256", run.source["sha256"]
    yield "Input", "init_from", _beside(run.source["init_from"], path)
    values = as_dict(settings)
    recipe = _recipe(run, steps) | {"drop_rate": run.model.drop_rate}
    values |= {name: value for name, value in recipe.items() if name in values}
    values["early_stop"] = values["early_stop"] or 0
    if settings.template is not None and Path(settings.template).is_absolute():
        values["template"] = _beside(settings.template, path)
    yield from _section(FinetuneConfig, values)
    yield from _section(RuntimeConfig, as_dict(run.runtime))


def _recipe(run: Used, steps: int | None) -> dict[str, Any]:
    """The recipe; where ``steps`` is given, a run that ends after so many steps."""
    recipe = as_dict(run.recipe)
    if is_undecided(run.recipe):
        recipe["max_steps"] = None
    elif run.recipe.for_time is not None:
        recipe["for_time"] = None
    if steps is not None:
        recipe |= {"max_steps": steps, "max_time": None, "early_stop": None}
        recipe |= {"for_time": None}
        recipe["schedule_steps"] = None if run.recipe.schedule == "constant" else run.plan.schedule_steps
    return recipe


def _section(config: type, values: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name, value in values.items():
        about = fields_of(config)[name].setting
        yield about.panel or "", about.called or name, about.in_file(value)


def _beside(text: str, run: Path) -> str:
    """A path relative to the run's directory, absolute where there is no way between the two."""
    if text == "-":
        return text
    try:
        return Path(os.path.relpath(text, run)).as_posix()
    except ValueError:  # another drive of Windows
        return text
