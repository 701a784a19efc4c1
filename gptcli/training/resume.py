"""Resume a run from its newest snapshot, and refuse texts and settings that differ from the run's own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gptcli.checkpoints import checkpoint, layout, run_lock
from gptcli.checkpoints.adapters import find_base
from gptcli.config.fields import fields_of
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig, split
from gptcli.data.dataset import Corpus
from gptcli.data.examples import ExampleSet
from gptcli.data.open import Callbacks, TextOptions, cache_beside, open_texts
from gptcli.device.resources import usable_cpus
from gptcli.errors import GptcliError, SettingError, quoted
from gptcli.model.dropout_mask import MASKS
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.choice import Choice, choose
from gptcli.training import calibration, snapshots
from gptcli.training.deadline import decided
from gptcli.training.distributed import World
from gptcli.training.finetune import open_examples, settings_of
from gptcli.training.progress import Progress
from gptcli.training.run import Run
from gptcli.training.run_plan import changed_horizon, make_plan

# Settings that a resumed run may change: its length, and all of its runtime.
MAY_CHANGE = tuple(
    name for part in (RecipeConfig, RuntimeConfig) for name, each in fields_of(part).items() if each.setting.on_resume
)
Settings = TypeVar("Settings", RecipeConfig, RuntimeConfig)
TEXTS = ("texts", "encoding", "errors", "allow_special")  # compared with the snapshot's facts["source"]
LENGTHS = frozenset({"epochs", "max_steps", "max_time"})
CONTRADICTIONS = ("out", "force", "init_from", "size", "for_time")
_NEW = "Give the text that the run began with, or start a new run from its weights with {init_from}."


@contextmanager
def resumed(
    run: Path, given: Mapping[str, Any], *, world: World, callbacks: Callbacks, started: float | None = None
) -> Iterator[Run]:
    """The run ``run`` at its newest whole snapshot; within the context this process holds the run's lock.

    Args:
        run: its directory, or its name under checkpoints/.
        given: what was set for this session by name: settings of the recipe, the runtime and the model, and how to
            read the texts. Where it has no ``threads``, the run's own number is used, and without a ``device``, the
            best one of this machine.
        world: the processes that share every step.
        callbacks: called while the run is opened, and later by the run.
        started: `time.perf_counter` when this session's time began; None for when it trains.

    Raises:
        GptcliError: there is no such run, another process holds its lock, it has ended, or its text or settings
            have changed.
    """
    for name in CONTRADICTIONS:
        if name in given:
            raise SettingError(
                f"{{{name}}} cannot be combined with {{resume}}: the run keeps its settings and its directory.",
                "Leave one of the two out.",
            )
    path = checkpoint.find(run)
    if path.is_file():
        its = layout.ROOT / path.stem
        known = f"Its run: gptcli train --resume {quoted(str(its))}" if its.is_dir() else ""
        raise GptcliError(f"{path} is a file, not a run.", known or "gptcli checkpoints lists the runs.")
    snapshots.check_resumable(path)
    with run_lock.held(path) if world.is_first else nullcontext() as no_locks:
        if no_locks is not None:
            callbacks.warn(no_locks)
        yield _opened(path, given, world, callbacks, started)


def _opened(path: Path, given: Mapping[str, Any], world: World, callbacks: Callbacks, started: float | None) -> Run:
    snapshot, passed_over = snapshots.newest(path)
    opened = checkpoint.load(snapshot.path)
    began, runtime = _settings(snapshot.facts)
    finetune = settings_of(snapshot.facts)
    _refuse_changes(path, began, opened.config, opened.tokenizer, finetune, given)
    progress = Progress.of(snapshot.progress)
    began = decided(began, progress.cooldown_start)
    recipe, runtime = _changed_by(began, given), _changed_by(runtime, given)
    if began.for_time is not None and LENGTHS & given.keys():  # it is no longer for a fixed time
        recipe = _of_so_many_steps(recipe, given)
    elif began.for_time is not None and given.get("early_stop") is not None:
        raise SettingError(
            f"{path} was begun with {{for_time}}, which cannot be combined with {{early_stop}}: the time decides how "
            "many steps there are.",
            "Leave it out: the best weights are kept in any case.",
        )
    runtime.check_with(recipe)
    source = snapshot.facts["source"]
    _refuse_other(path, source, given, ("encoding", "errors", "allow_special"))
    corpus: Corpus | ExampleSet
    if finetune is not None:
        texts = given.get("texts") or source["texts"]
        corpus = open_examples(texts, finetune, opened.tokenizer, recipe.context_length, recipe.batch_size)
    else:
        corpus = _open_texts(path, source, recipe, opened.tokenizer, given, world, callbacks)
    if corpus.fingerprint != source["sha256"]:
        raise SettingError(_changed(path, source, corpus.characters, corpus.tokens), _NEW)
    origin = checkpoint.load(find_base(snapshot.path)) if layout.is_adapter(snapshot.path) else None
    if origin is not None and opened.config.labels:
        origin = origin.as_classifier(opened.config.labels, recipe.seed)
    plan = make_plan(corpus, recipe)
    ended = progress.ended(recipe, plan.total_steps)
    is_complete = snapshots.is_published(path, snapshot) and not calibration.is_due(path, corpus)
    if ended is not None and is_complete:
        name = quoted(str(path))
        again = f"gptcli train --resume {name}" if finetune is None else f"gptcli finetune --resume {name}"
        more = (f"--{name.replace('_', '-')} {value}" for name, value in progress.to_go_on(recipe, plan).items())
        raise GptcliError(
            f"{path} has ended: {ended}.",
            f"To go on, give it more: {again} {' '.join(more)}",
        )
    for line in passed_over:
        callbacks.warn(line)
    callbacks.report(f"Going on with {path} after step {snapshot.progress['step']}.")
    horizon = changed_horizon(make_plan(corpus, began), plan, recipe, progress.step, progress.rate_factor)
    if horizon is not None:
        callbacks.report(horizon)
    if snapshot.facts["recipe"].get("dtype") == "auto":
        known = "precision" in snapshot.facts
        how = ", as it began" if known else ": its snapshots do not say what that was"
        callbacks.report(f"The run was begun with dtype auto and goes on in {recipe.dtype}{how}.")
    run = Run(
        path, recipe, runtime, corpus, opened.tokenizer, opened.config, origin,
        source=source, snapshot=snapshot, force=False, world=world,
        report=callbacks.report, warn=callbacks.warn, started=started, finetune=finetune,
    )  # fmt: skip
    is_on_cpu = run.placement.device.type == "cpu"
    if snapshot.facts.get("dropout") != MASKS and opened.config.drop_rate > 0 and is_on_cpu:
        callbacks.report(
            "This run was begun by an older version, whose dropout had other random numbers: from here on they are "
            "a hash of seed, step and place."
        )
    return run


def _open_texts(
    path: Path, source: dict[str, Any], recipe: RecipeConfig, tokenizer: Tokenizer, given: Mapping[str, Any],
    world: World, callbacks: Callbacks,
) -> Corpus:  # fmt: skip
    options = TextOptions(
        given.get("texts") or source["texts"], recipe.train_share, source["encoding"], source["errors"],
        source["allow_special"], readmes="format" not in source,
    )  # fmt: skip
    corpus, _, _ = open_texts(
        options, None, tokenizer, cache_beside(path), callbacks, replace=False, processes=world.size, advice=_NEW
    )
    return corpus


def _refuse_changes(
    path: Path,
    recipe: RecipeConfig,
    config: GPTConfig,
    tokenizer: Tokenizer,
    finetune: FinetuneConfig | None,
    given: Mapping[str, Any],
) -> None:
    for name, value in given.items():
        if name in (*MAY_CHANGE, *TEXTS) or (name, value) == ("dtype", "auto"):
            continue
        if name == "tokenizer":
            chosen = choose(value, layout.ROOT)
            same = chosen.matches(tokenizer.kind, tokenizer.fingerprint, tokenizer.vocab_size)
            value, before = (value, value) if same else (str(chosen), str(Choice(tokenizer.kind, tokenizer=tokenizer)))
        else:
            its = next((each for each in (recipe, config, finetune) if hasattr(each, name)), None)
            if its is None:
                raise SettingError(
                    f"{{{name}}} is a setting of fine-tuning, and {path} was begun by gptcli train.",
                    f"Leave it out, or fine-tune its weights: gptcli finetune DATA --init-from {quoted(str(path))}",
                )
            before = getattr(its, name)
        if value != before:
            raise SettingError(
                f"{{{name}}} is {value}, but {path} began with {before}.",
                f"Leave it out; what may change is {', '.join(f'{{{name}}}' for name in MAY_CHANGE)}.",
            )


def _changed_by(settings: Settings, given: Mapping[str, Any]) -> Settings:
    changes = {k: v for k, v in given.items() if k in MAY_CHANGE and k in fields_of(type(settings))}
    return replace(settings, **changes)


def _of_so_many_steps(recipe: RecipeConfig, given: Mapping[str, Any]) -> RecipeConfig:
    """The recipe of a run that was for a fixed time, and is to have ``given`` steps or epochs in its place."""
    if not {"epochs", "max_steps"} & given.keys():
        raise SettingError(
            "{max_time} alone does not say how many steps a run is to have that was begun with {for_time}.",
            "Give {max_steps} or {epochs}, too; without any of them, the run goes on for the rest of its time.",
        )
    return replace(recipe, for_time=None, cooldown_start=None, max_steps=given.get("max_steps"))


def _settings(facts: dict[str, Any]) -> tuple[RecipeConfig, RuntimeConfig]:
    """What a run was computed with, on this machine's best device.

    Older snapshots have all settings in one table, and may have dtype "auto" in it; their fact "precision" names the
    dtype used. Another number of threads changes the order of sums, and so rounding: it stays where this CPU has them.
    """
    recipe, runtime = split(facts["recipe"] | facts.get("runtime", {}))
    if recipe.dtype == "auto":
        recipe = replace(recipe, dtype=facts.get("precision", "float32"))
    return recipe, replace(runtime, device="auto", threads=min(int(facts["threads"]), usable_cpus()))


def _refuse_other(path: Path, source: dict[str, Any], given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name in given and given[name] != source[name]:
            raise SettingError(f"{{{name}}} is {given[name]}, but {path} began with {source[name]}.", "Leave it out.")


def _changed(path: Path, source: dict[str, Any], characters: int, tokens: int) -> str:
    names = ", ".join(source["texts"])
    if tokens == source["tokens"] and characters == source["characters"]:
        return f"The text of {path} ({names}) is another one, though it has {characters:,} characters as before."
    return (
        f"The text of {path} ({names}) has changed: {source['characters']:,} characters, {source['tokens']:,} tokens "
        f"then; {characters:,}, {tokens:,} now."
    )
