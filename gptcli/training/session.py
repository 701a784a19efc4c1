"""A session of training as a function call: what `gptcli.train` and `gptcli.resume` are."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch

from gptcli.checkpoints import layout
from gptcli.config.fields import fields_of
from gptcli.config.finetune import FINETUNE_RUNTIME, FinetuneConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.data import documents
from gptcli.data.open import Callbacks, TextOptions
from gptcli.errors import GptcliError, SettingError, nearest
from gptcli.training import distributed, events
from gptcli.training import resume as resuming
from gptcli.training.budget import Budget
from gptcli.training.finetune import new_finetuning
from gptcli.training.new_run import new_run
from gptcli.training.run import Run

AnyPath = str | os.PathLike[str]

LOG = logging.getLogger("gptcli")
LOG.addHandler(logging.NullHandler())
_TRAINING = threading.Lock()  # a run seeds the generators of random numbers of the process


class StopTraining(Exception):  # noqa: N818, as StopIteration
    """Raised by ``on_event`` to end a session of training: a snapshot, a last evaluation, and `train` returns.

    Example:
        >>> import gptcli
        >>> def until_step_2(event: gptcli.events.Event) -> None:
        ...     if isinstance(event, gptcli.events.Stepped) and event.step == 2:
        ...         raise gptcli.StopTraining
        >>> run = gptcli.train("story.txt", "stopped", tokenizer="char",
        ...                    model=gptcli.GPTConfig(emb_dim=16, n_heads=2, n_layers=1, context_length=16),
        ...                    recipe=gptcli.RecipeConfig(max_steps=5), on_event=until_step_2)
        >>> gptcli.load_checkpoint(run).training["step"], gptcli.load_checkpoint(gptcli.resume(run)).training["step"]
        (3, 5)
    """


class ResumeSettings(TypedDict, total=False):
    """What may change when a run goes on: the fields of `RecipeConfig` that say how long it is and which weights its
    checkpoint holds, and all of `RuntimeConfig`. What is left out stays as the run began, except that the best device
    is used."""

    epochs: int
    max_steps: int | None
    max_time: float | None
    early_stop: int | None
    schedule_steps: int | None
    final: Literal["best", "last"]
    device: str
    threads: int | None
    accumulate: int | None
    recompute: bool
    compile: bool | None
    shard: bool
    save_every: int | None
    keep: int
    sample_every: int
    sample_prompt: str
    log: Literal["none", "tensorboard"]


def train(
    texts: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    model: GPTConfig | None = None,
    tokenizer: str | None = None,
    recipe: RecipeConfig = RecipeConfig(),  # noqa: B008, frozen
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008
    init_from: AnyPath | None = None,
    force: bool = False,
    encoding: str | None = None,
    errors: str = "strict",
    allow_special: bool = False,
    on_event: Callable[[events.Event], object] | None = None,
) -> Path:
    """Train a model; its directory is a checkpoint from the first step on.

    No signal handler is installed, so that any thread may train; one run at a time in a process. Ctrl-C
    (KeyboardInterrupt) leaves the run at its newest snapshot, from which `resume` goes on; to lose no step, raise
    `StopTraining` in ``on_event``. torch's random numbers are as before when the run has ended. On Linux, the process
    keeps freed memory for later steps from then on.

    Args:
        texts: files, folders (.txt and .md) and globs; or one folder of ``gptcli prepare``.
        out: the run's directory; its parents are made.
        model: the shape. Its vocab_size becomes the tokenizer's, and its context_length the length of the windows: the
            smaller one of the model's and the recipe's. None for GPT-2 small as the course trains it (no qkv bias, an
            output head of its own), or for the shape of ``init_from``.
        tokenizer: "gpt2", "char", "byte", "word", "bpe:N" for one of N tokens that is trained on the text, or a
            directory that holds one; None for gpt2, that of prepared tokens, or that of ``init_from``.
        recipe: what decides the weights. Lengths are in tokens, losses in nats a token, times in seconds. With a
            ``for_time``, what it and ``runtime`` have at the default is chosen, and where they are None also ``model``
            and ``tokenizer``; the time counts from the call.
        runtime: where and how to compute, and what to keep.
        init_from: a checkpoint to take weights, shape and tokenizer from.
        force: whether a run at ``out`` may be replaced.
        encoding, errors: how to decode texts, as `bytes.decode` takes them; None for UTF-8 or the byte-order mark.
        allow_special: read <|endoftext|> in the texts as the token.
        on_event: called in this thread with every event (see `gptcli.events`). If it raises `StopTraining`, the session
            ends; if it raises anything else, that is logged, and it is not called again.

    Returns:
        the run's directory.

    Raises:
        GptcliError: ``out`` exists; a text cannot be read; a setting is out of range or contradicts another; the loss
            diverged; the disk is full; another run trains in this process.

    Example:
        >>> import gptcli
        >>> losses = []
        >>> def keep(event: gptcli.events.Event) -> None:
        ...     if isinstance(event, gptcli.events.Evaluated):
        ...         losses.append(event.val_loss)
        >>> shape = gptcli.GPTConfig(emb_dim=16, n_heads=2, n_layers=1, context_length=16)
        >>> recipe = gptcli.RecipeConfig(max_steps=4, eval_every=2, learning_rate=1e-2)
        >>> run = gptcli.train("story.txt", "run", model=shape, tokenizer="char", recipe=recipe, on_event=keep)
        >>> run.name, len(losses), losses[-1] < losses[0]
        ('run', 3, True)
    """
    if init_from is None:
        base = model or GPTConfig(qkv_bias=False, tie_weights=False)
        window = min(recipe.context_length, base.context_length)
    else:
        for name, value in (("model", model), ("tokenizer", tokenizer)):
            if value is not None:
                raise SettingError(
                    f"{{{name}}} cannot be combined with {{init_from}}: the checkpoint decides it.",
                    "Leave one of the two out.",
                )
        base = layout.read_config(layout.find(os.fspath(init_from)))[0]
        window = min(recipe.context_length, base.context_length)
    runtime.check_with(recipe)
    budget = None
    if recipe.for_time is not None:
        budget = Budget(recipe.for_time, time.perf_counter(), _set(model, recipe, runtime), LOG.info)
    given = {"encoding": encoding, "errors": errors if errors != "strict" else None, "allow_special": allow_special}
    return _trained(
        lambda: new_run(
            Path(out), TextOptions(documents.path_names(texts), recipe.train_share, encoding, errors, allow_special),
            replace(recipe, context_length=window), runtime, base, shape={"context_length": window},
            named={name for name, value in given.items() if value}, tokenizer=tokenizer,
            init_from=None if init_from is None else Path(init_from), force=force,
            world=distributed.from_environment(), callbacks=Callbacks(LOG.info, LOG.warning), budget=budget,
        ), on_event,
    )  # fmt: skip


def finetune(
    data: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    init_from: AnyPath,
    settings: FinetuneConfig = FinetuneConfig(),  # noqa: B008, frozen
    runtime: RuntimeConfig = FINETUNE_RUNTIME,
    force: bool = False,
    on_event: Callable[[events.Event], object] | None = None,
) -> Path:
    """Fine-tune a checkpoint on texts, pairs, chats or labels, in a run of its own; the checkpoint is never changed.

    Args:
        data: .jsonl, .json, .csv or .tsv files with an example a row; .txt and .md files of running text; folders of
            them, and globs. A row has ``text``; ``prompt`` and ``completion``; ``instruction``, ``input`` and
            ``output``; ``messages``; ``text`` and ``label``, which makes a classifier; or ``prompt``, ``chosen`` and
            ``rejected``, for the method dpo.
        out: the run's directory; its parents are made.
        init_from: the checkpoint.
        settings: how to read and to learn the examples.
        runtime, force, on_event: as for `train`; an empty ``sample_prompt`` stands for that of an example.

    Returns:
        the run's directory, which `resume` goes on with.

    Raises:
        GptcliError: an example cannot be used (its file and line are named); and what `train` raises.

    Example:
        >>> import gptcli, json, pathlib
        >>> rows = [{"prompt": "the cat", "completion": " sat"}, {"prompt": "the dog", "completion": " sat"}]
        >>> _ = pathlib.Path("pairs.json").write_text(json.dumps(rows))
        >>> run = gptcli.finetune("pairs.json", "taught", init_from="checkpoints/demo",
        ...                       settings=gptcli.FinetuneConfig(max_steps=2))
        >>> gptcli.load_checkpoint(run).training["step"]
        2
    """
    return _trained(
        lambda: new_finetuning(
            Path(out), documents.path_names(data), settings, runtime, init_from=Path(init_from), force=force,
            world=distributed.from_environment(), callbacks=Callbacks(LOG.info, LOG.warning),
        ), on_event,
    )  # fmt: skip


def resume(
    run: AnyPath,
    *,
    on_event: Callable[[events.Event], object] | None = None,
    **changes: Unpack[ResumeSettings],
) -> Path:
    """Go on with a run that was stopped or killed, from its newest snapshot, as if it had never stopped.

    Args:
        run: the run's directory, or its name under checkpoints/.
        on_event: as for `train`.
        changes: see `ResumeSettings`.

    Returns:
        the run's directory.

    Raises:
        GptcliError: there is no such run or setting; the run has ended (give it more epochs or steps); its texts have
            changed; another process trains it; and what `train` raises.

    Example:
        >>> import gptcli
        >>> run = gptcli.train("story.txt", "short", tokenizer="char", recipe=gptcli.RecipeConfig(max_steps=2),
        ...                    model=gptcli.GPTConfig(emb_dim=16, n_heads=2, n_layers=1, context_length=16))
        >>> gptcli.load_checkpoint(gptcli.resume(run, max_steps=3)).training["step"]
        3
    """
    for name in changes:
        if name not in resuming.MAY_CHANGE:
            raise GptcliError(f"A run that goes on takes no {name!r}.", nearest(name, resuming.MAY_CHANGE))
    world, callbacks = distributed.from_environment(), Callbacks(LOG.info, LOG.warning)
    with resuming.resumed(Path(run), changes, world=world, callbacks=callbacks) as resumed:
        return _trained(lambda: resumed, on_event)


def _set(model: GPTConfig | None, recipe: RecipeConfig, runtime: RuntimeConfig) -> set[str]:
    """The settings that a run for a fixed time leaves as they are: a given shape, and what is not the default."""
    changed = {
        name for config in (recipe, runtime) for name, each in fields_of(type(config)).items()
        if getattr(config, name) != each.default
    }  # fmt: skip
    return changed if model is None else changed | set(fields_of(GPTConfig))


class _Callback:
    """``on_event`` as a subscriber, and whether it has asked to stop."""

    name = "on_event"

    def __init__(self, on_event: Callable[[events.Event], object] | None) -> None:
        self.on_event, self.stopped = on_event, False

    def start(self) -> None:
        pass

    def on(self, event: events.Event) -> None:
        try:
            if self.on_event is not None:
                self.on_event(event)
        except StopTraining:
            self.stopped = True
        except Exception:
            LOG.debug("on_event failed", exc_info=True)  # the warning has no traceback
            raise

    def end(self) -> None:
        pass


def _trained(make_run: Callable[[], Run], on_event: Callable[[events.Event], object] | None) -> Path:
    """Train until the end or `StopTraining`."""
    if not _TRAINING.acquire(blocking=False):
        raise GptcliError("Another run trains in this process.", "Train one after the other, or in two processes.")
    callback = _Callback(on_event)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            run = make_run()
            with run.prepared():
                run.begin()
                run.train([] if on_event is None else [callback], lambda: callback.stopped)
            return run.path
    finally:
        _TRAINING.release()
