"""Resume a run from its newest snapshot, and refuse texts and settings that differ from the run's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptcli.checkpoints import checkpoint, run_lock
from gptcli.config.model import GPTConfig
from gptcli.config.training import TrainConfig
from gptcli.data.open import Callbacks, TextOptions, cache_beside, open_texts
from gptcli.errors import GptcliError
from gptcli.training import snapshots
from gptcli.training.distributed import World
from gptcli.training.run import Run
from gptcli.training.run_plan import make_plan
from gptcli.training.snapshots import Snapshot
from gptcli.training.trainer import Progress

# Settings that a resumed run may change: its length, saves, logging and samples, and how a step is computed (parts,
# recomputation, compilation, shards) without a change of the optimization.
MAY_CHANGE = (
    *("epochs", "max_steps", "max_time", "early_stop", "save_every", "keep"),
    *("accumulate", "recompute", "compile", "shard", "log", "sample_every", "sample_prompt"),
)
TEXTS = ("texts", "encoding", "errors", "allow_special")  # compared with the snapshot's facts["source"]
CONTRADICTIONS = ("out", "force", "init_from", "size")
_NEW = "Give the text that the run began with, or start a new run from its weights with --init-from."


@contextmanager
def resumed(
    run: Path, given: dict[str, Any], *, device: str, threads: int | None, world: World, callbacks: Callbacks
) -> Iterator[Run]:
    """The run ``run`` at its newest whole snapshot; within the context this process holds the run's lock.

    Args:
        run: its directory, or its name under checkpoints/.
        given: the options of this command: settings of the recipe and the model, and how to read the texts.
        device: where to compute.
        threads: number of CPU threads; None for the number that the run began with.
        world: the processes that share every step.
        callbacks: called while the run is opened, and later by the run.

    Raises:
        GptcliError: there is no such run, another process holds its lock, it has ended, or its text or settings
            have changed.
    """
    for name in CONTRADICTIONS:
        if name in given:
            raise GptcliError(
                f"{_flag(name)} cannot be combined with --resume: the run goes on as it began, where it is.",
                "Leave one of the two out.",
            )
    path = checkpoint.find(run)
    snapshots.check_resumable(path)
    with run_lock.held(path) if world.is_first else nullcontext() as no_locks:
        if no_locks is not None:
            callbacks.warn(no_locks)
        yield _opened(path, given, device, threads, world, callbacks)


def _opened(
    path: Path, given: dict[str, Any], device: str, threads: int | None, world: World, callbacks: Callbacks
) -> Run:
    snapshot, passed_over = snapshots.newest(path)
    opened = checkpoint.load(snapshot.path)
    recipe = _recipe(path, snapshot, opened.config, opened.tokenizer.kind, given)
    source = snapshot.facts["source"]
    _refuse_other(path, source, given, ("encoding", "errors", "allow_special"))
    texts = given.get("texts") or source["texts"]
    options = TextOptions(texts, recipe.train_share, source["encoding"], source["errors"], source["allow_special"])
    corpus, _, _ = open_texts(
        options, None, opened.tokenizer, cache_beside(path), callbacks,
        replace=False, processes=world.size, advice=_NEW,
    )  # fmt: skip
    if corpus.fingerprint != source["sha256"]:
        tokens = len(corpus.train) + len(corpus.validation)
        raise GptcliError(_changed(path, source, corpus.characters, tokens), _NEW)
    ended = Progress(**snapshot.progress).ended(recipe, make_plan(corpus, recipe).total_steps)
    if ended is not None:
        raise GptcliError(
            f"{path} has ended: {ended}.",
            f"To go on, give it more: gptcli train --resume {path} {_more(ended, recipe)}",
        )
    for line in passed_over:
        callbacks.warn(line)
    callbacks.report(f"Going on with {path} after step {snapshot.progress['step']}.")
    if snapshot.facts["recipe"].get("dtype") == "auto":
        known = "precision" in snapshot.facts
        how = ", as it began" if known else ": its snapshots do not say what that was"
        callbacks.report(f"The run was begun with --dtype auto and goes on in {recipe.dtype}{how}.")
    return Run(
        path, recipe, corpus, opened.tokenizer, opened.config, None,
        source=source, snapshot=snapshot, device=device, dtype=recipe.dtype,
        threads=threads or _threads_before(snapshot), force=False, world=world,
        report=callbacks.report, warn=callbacks.warn,
    )  # fmt: skip


def _recipe(path: Path, snapshot: Snapshot, config: GPTConfig, tokenizer: str, given: dict[str, Any]) -> TrainConfig:
    began = TrainConfig(**_settings(snapshot.facts))
    for name, value in given.items():
        if name in (*MAY_CHANGE, *TEXTS) or (name, value) == ("dtype", "auto"):
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
    """The recipe of a run. Older snapshots may have dtype "auto"; their fact "precision" names the dtype used."""
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


def _threads_before(snapshot: Snapshot) -> int:
    """The run's number of threads, at most this CPU's: another number changes the order of sums, and so rounding."""
    return min(int(snapshot.facts["threads"]), os.cpu_count() or 1)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
