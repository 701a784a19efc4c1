"""Prepare a new run: open its texts and determine the shape of its model, new or from a checkpoint."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptcli.checkpoints import checkpoint, layout, overwrite
from gptcli.checkpoints.checkpoint import Checkpoint
from gptcli.checkpoints.run_end import is_worth_resuming
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.data import documents, rows
from gptcli.data.open import (
    Callbacks,
    TextOptions,
    cache_beside,
    input_paths,
    open_texts,
    prepared_folder,
    refuse_decoding,
)
from gptcli.errors import SettingError
from gptcli.training.budget import Budget
from gptcli.training.distributed import World
from gptcli.training.run import Run

# In format 2 a folder's READMEs are no texts, and an evaluation of the whole validation part scores its short last
# window as well. In format 3 an evaluation of a share of that part reads windows from all over it, not the first ones.
# Runs that began before go on as they were.
SOURCE_FORMAT = 3


def new_run(
    path: Path,
    texts: TextOptions,
    recipe: RecipeConfig,
    runtime: RuntimeConfig,
    model_config: GPTConfig,
    *,
    shape: Mapping[str, Any],
    named: Collection[str],
    tokenizer: str | None,
    init_from: Path | None,
    force: bool,
    world: World,
    callbacks: Callbacks,
    budget: Budget | None = None,
) -> Run:
    """A run at ``path``; so far only the token shards of a large text have been written, beside ``path``.

    Args:
        path: the run's directory.
        texts: the texts to train on.
        recipe: how to train; with a checkpoint, its ``context_length`` is used only if ``shape`` has one.
        model_config: the shape of a new model; its vocab_size is replaced by the tokenizer's, its context_length by
            that of the windows.
        shape: the fields of the shape that were given, None for the others; a checkpoint must have the same values.
        named: those of encoding, errors, allow_special that were given; prepared tokens allow none of them.
        tokenizer: the kind of tokenizer; None for the checkpoint's, that of prepared tokens, or gpt2.
        init_from: a checkpoint, or its name under checkpoints/, to take weights, tokenizer and shape from.
        runtime, force, world: as `Run` takes them.
        callbacks: called while texts are opened, and later by the run.
        budget: chooses what a recipe with a ``for_time`` leaves open.

    Raises:
        GptcliError: ``path`` must not be overwritten; a text or the checkpoint cannot be read, or contradicts the
            options; and all that `Run` raises.
    """
    origin_path = checkpoint.find(init_from) if init_from is not None else None
    if prepared_folder(texts.texts) is None:
        rows.refuse_rows(texts.texts)
        documents.find(texts.texts)  # a text that is not there is told before a run that is
    if budget is not None:
        budget.check(recipe, origin_path, world.size)
    inputs = input_paths(texts.texts) + ([origin_path] if origin_path is not None else [])
    instead = f"Resume it (gptcli train --resume {path})" if is_worth_resuming(path) else ""
    overwrite.check_output(path, force=force, inputs=inputs, instead=instead)
    refuse_decoding(prepared_folder(texts.texts), named)
    origin = checkpoint.load(origin_path) if origin_path is not None else None
    if origin is not None:
        layout.require_language_model(origin.path, origin.config)
    corpus, its_tokenizer, names = open_texts(
        texts, tokenizer, origin.tokenizer if origin else None, cache_beside(path), callbacks,
        replace=force, processes=world.size, trained=budget.tokenizer if budget else None,
    )  # fmt: skip
    if budget is not None:
        model_config, recipe, runtime = budget.choose(corpus, its_tokenizer, model_config, recipe, runtime)
    if origin is None:
        window = min(recipe.context_length, len(corpus.train) - 1)
        model_config = model_config.with_changes(vocab_size=its_tokenizer.vocab_size, context_length=window)
    else:
        model_config = continued_shape(origin, shape)
        if shape.get("context_length") is None:
            window = min(RecipeConfig.context_length, origin.config.context_length)
            recipe = replace(recipe, context_length=window)
    source = {
        "texts": names, "encoding": texts.encoding, "errors": texts.errors, "allow_special": texts.allow_special,
        "format": SOURCE_FORMAT,
        "characters": corpus.characters, "tokens": len(corpus.train) + len(corpus.validation),
        "sha256": corpus.fingerprint, "init_from": str(origin.path.absolute()) if origin else None,
    }  # fmt: skip
    return Run(
        path, recipe, runtime, corpus, its_tokenizer, model_config, origin,
        source=source, force=force, world=world, report=callbacks.report, warn=callbacks.warn,
        started=budget.started if budget else None,
    )  # fmt: skip


def continued_shape(origin: Checkpoint, shape: Mapping[str, Any]) -> GPTConfig:
    """The checkpoint's shape, with the given dropout rate; windows may be shorter than its context.

    Args:
        origin: the checkpoint.
        shape: the fields that were given, None for the others.

    Raises:
        SettingError: another field differs from the checkpoint's, or the windows are longer than its context.
    """
    for name, value in shape.items():
        theirs = getattr(origin.config, name)
        if name == "context_length" and value is not None and value > theirs:
            raise SettingError(
                f"{{context_length}} {value} is larger than the context of {origin.path}, {theirs}.",
                f"Give at most {theirs}: its position embeddings end there.",
            )
        if name not in ("context_length", "drop_rate") and value is not None and value != theirs:
            raise SettingError(
                f"{{{name}}} is {value}, but {origin.path} has {theirs}.",
                "Leave it out: with {init_from} the checkpoint decides the shape.",
            )
    return origin.config.with_changes(drop_rate=shape.get("drop_rate"))
