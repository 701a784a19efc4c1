"""gptcli train --resume RUN: the run as it was left, unless something that must not change has changed."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli import prepare, render, training_view
from gptcli.config.model import GPTConfig
from gptcli.config.training import TrainConfig
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.training.snapshots import Snapshot

# What may differ from one sitting to the next: how long, how often, where, and what does not change the arithmetic.
MAY_CHANGE = (
    *("epochs", "max_steps", "max_time", "early_stop", "save_every", "keep"),
    *("accumulate", "recompute", "compile", "shard", "log", "sample_every", "sample_prompt"),
)
SILENT = ("resume", "texts", "device", "threads", "quiet", "verbose", "debug")
CONTRADICTIONS = ("out", "force", "init_from", "size")


def resume(run: Path, given: dict[str, Any], *, device: str, threads: int | None) -> None:
    """Go on with the run ``run``, which nobody else may do meanwhile.

    Args:
        run: its directory, or its name under checkpoints/.
        given: the options and texts that the user named, by parameter.
        device: where to compute.
        threads: on how many; None for as many as before.

    Raises:
        GptcliError: there is no such run, another process is at it, it has ended, or its text or settings are not the
            same any more.
    """
    for name in CONTRADICTIONS:
        if name in given:
            raise GptcliError(
                f"{_flag(name)} cannot be combined with --resume: the run goes on as it began, where it is.",
                "Leave one of the two out.",
            )
    from gptcli.checkpoints import checkpoint, run_lock
    from gptcli.training import distributed, snapshots

    path = checkpoint.find(run)
    snapshots.check_resumable(path)
    first = distributed.from_environment().is_first
    with run_lock.held(path) if first else nullcontext() as no_locks:
        if no_locks is not None:
            render.warn(no_locks)
        _resumed(path, given, device=device, threads=threads).go()


def _resumed(path: Path, given: dict[str, Any], *, device: str, threads: int | None) -> "training_view.TrainingRun":
    from gptcli.checkpoints import checkpoint
    from gptcli.data.open import TextOptions, cache_beside, open_texts
    from gptcli.training import distributed, snapshots
    from gptcli.training.run_plan import make_plan
    from gptcli.training.trainer import Progress

    snapshot, passed_over = snapshots.newest(path)
    opened = checkpoint.load(snapshot.path)
    recipe = _recipe(path, snapshot, opened.config, opened.tokenizer.kind, given)
    source = snapshot.facts["source"]
    _refuse_other(path, source, given, ("encoding", "errors", "allow_special"))
    texts = given.get("texts") or source["texts"]
    options = TextOptions(texts, recipe.train_share, source["encoding"], source["errors"], source["allow_special"])
    corpus, _, _ = open_texts(
        options, None, opened.tokenizer, cache_beside(path), replace=False, advice=_NEW,
        processes=distributed.from_environment().size, prepare=prepare.run, report=render.note, warn=render.warn,
    )  # fmt: skip
    if corpus.fingerprint != source["sha256"]:
        raise GptcliError(_changed(path, source, corpus.characters, len(corpus.train) + len(corpus.validation)), _NEW)
    ended = Progress(**snapshot.progress).ended(recipe, make_plan(corpus, recipe).total_steps)
    if ended is not None:
        raise GptcliError(
            f"{path} has ended: {ended}.",
            f"To go on, give it more: gptcli train --resume {path} {_more(ended, recipe)}",
        )
    for line in passed_over:
        render.warn(line)
    render.note(f"Going on with {path} after step {snapshot.progress['step']}.")
    if snapshot.facts["recipe"].get("dtype") == "auto":
        known = "precision" in snapshot.facts
        how = ", as it began" if known else ": its snapshots do not say what that was"
        render.note(f"The run was begun with --dtype auto and goes on in {recipe.dtype}{how}.")
    return training_view.TrainingRun(
        path, recipe, corpus, opened.tokenizer, opened.config, None,
        source=source, snapshot=snapshot, device=device, dtype=recipe.dtype,
        threads=threads or _threads_before(snapshot), force=False,
    )  # fmt: skip


_NEW = "Give the text that the run began with, or start a new run from its weights with --init-from."


def _recipe(path: Path, snapshot: "Snapshot", config: GPTConfig, tokenizer: str, given: dict[str, Any]) -> TrainConfig:
    began = TrainConfig(**_settings(snapshot.facts))
    for name, value in given.items():
        if name in (*MAY_CHANGE, *SILENT, "encoding", "errors", "allow_special") or (name, value) == ("dtype", "auto"):
            continue
        if name == "tokenizer":
            before: Any = tokenizer
        else:
            before = getattr(began if hasattr(began, name) else config, name)
        if value != before:
            raise GptcliError(
                f"{_flag(name)} is {value}, but {path} began with {before}.",
                f"Leave it out; what may change is {', '.join(map(_flag, MAY_CHANGE[:-1]))}.",
            )
    return replace(began, **{name: value for name, value in given.items() if name in MAY_CHANGE})


def _settings(facts: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run. Older ones may say "auto" for the dtype, and beside the recipe what that was."""
    recipe: dict[str, Any] = facts["recipe"]
    if recipe.get("dtype") == "auto":
        return recipe | {"dtype": facts.get("precision", "float32")}
    return recipe


def _refuse_other(path: Path, source: dict[str, Any], given: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name in given and given[name] != source[name]:
            raise GptcliError(f"{_flag(name)} is {given[name]}, but {path} began with {source[name]}.", "Leave it out.")


def _changed(path: Path, source: dict[str, Any], characters: int, tokens: int) -> str:
    names = ", ".join(source["texts"])
    if tokens == source["tokens"] and characters == source["characters"]:
        return f"The text of {path} ({names}) is another one, though it has {characters:,} characters as before."
    return (
        f"The text of {path} ({names}) has changed: {source['characters']:,} characters, {source['tokens']:,} tokens "
        f"then; {characters:,}, {tokens:,} now."
    )


def _more(ended: str, recipe: TrainConfig) -> str:
    if "--early-stop" in ended:
        return f"--early-stop {2 * (recipe.early_stop or 1)}"
    if "--max-time" in ended:
        return f"--max-time {2 * (recipe.max_time or 1):.0f}s"
    return f"--max-steps {2 * recipe.max_steps}" if recipe.max_steps else f"--epochs {2 * recipe.epochs}"


def _threads_before(snapshot: "Snapshot") -> int:
    """As many as the run began with: another number changes the order of sums, and with it the last bits."""
    import os

    return min(int(snapshot.facts["threads"]), os.cpu_count() or 1)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
