"""Prepare a run that fine-tunes a checkpoint: its examples, its recipe, its model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptcli.checkpoints import checkpoint, layout, overwrite
from gptcli.checkpoints.adapters import refuse_adapter
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.data import documents, example_files, rows
from gptcli.data.example_files import Encoded
from gptcli.data.examples import Example, Examples, ExampleSet, Pairs
from gptcli.data.open import Callbacks, input_paths
from gptcli.data.templates import TEMPLATES
from gptcli.tokenizers import Tokenizer
from gptcli.training import trainable
from gptcli.training.distributed import World
from gptcli.training.new_run import SOURCE_FORMAT, continued_shape
from gptcli.training.run import Run


def new_finetuning(
    path: Path,
    texts: Sequence[str],
    settings: FinetuneConfig,
    runtime: RuntimeConfig,
    *,
    init_from: Path,
    force: bool,
    world: World,
    callbacks: Callbacks,
) -> Run:
    """A run at ``path`` that fine-tunes a checkpoint, which it never changes; nothing has been written so far.

    Args:
        path: the run's directory.
        texts: files and folders of rows or of running text, globs and ``-``.
        settings: how to read and to learn the examples.
        init_from: the checkpoint, or its name under checkpoints/.
        runtime, force, world: as `Run` takes them.
        callbacks: called with what was read, and later by the run.

    Raises:
        GptcliError: ``path`` must not be overwritten; a file or the checkpoint cannot be read, an example cannot be
            used; and all that `Run` raises.
    """
    origin_path = checkpoint.find(init_from)
    documents.find(texts, rows.SUFFIXES)  # a file that is not there is told before a run that is
    begun = any((path / layout.SNAPSHOTS).glob("step-*"))
    instead = f"Resume it (gptcli finetune --resume {path})" if begun else ""
    overwrite.check_output(path, force=force, inputs=[*input_paths(texts), origin_path], instead=instead)
    origin = checkpoint.load(origin_path)
    shape = {"context_length": settings.context_length, "drop_rate": settings.drop_rate}
    if settings.adapter is not None:
        refuse_adapter(origin_path)
    context = settings.context_length or continued_shape(origin, shape).context_length
    encoded = example_files.encode(texts, settings, origin.tokenizer, context)
    if encoded.labels:
        if origin.config.labels not in ((), encoded.labels):
            callbacks.warn(
                f"{origin.path} has other labels, {', '.join(origin.config.labels)}: the new head gets random weights."
            )
        origin = origin.as_classifier(encoded.labels, settings.seed)
    else:
        layout.require_language_model(origin.path, origin.config)
    config = continued_shape(origin, shape)
    trainable.check(config, settings.train)
    for line in encoded.said:
        callbacks.report(line)
    for line in encoded.notes:
        callbacks.warn(line)
    per_row = 2 if settings.method == "dpo" else 1  # examples
    recipe = settings.recipe(len(encoded.train) // per_row, encoded.length * per_row, context)
    corpus, tokenizer = _example_set(encoded, recipe.batch_size, settings), origin.tokenizer
    tokenizer.chat_template = encoded.template or tokenizer.chat_template
    if settings.template is not None and settings.template not in TEMPLATES:
        settings = replace(settings, template=str(Path(settings.template).absolute()))
    source = {
        "texts": [text if text == "-" else str(Path(text).absolute()) for text in texts],
        "encoding": settings.encoding, "errors": settings.errors, "allow_special": False, "format": SOURCE_FORMAT,
        "characters": corpus.characters, "tokens": corpus.tokens, "sha256": corpus.fingerprint,
        "init_from": str(origin.path.absolute()),
    }  # fmt: skip
    return Run(
        path, recipe, runtime, corpus, tokenizer, config, origin,
        source=source, force=force, world=world, report=callbacks.report, warn=callbacks.warn, finetune=settings,
    )  # fmt: skip


def settings_of(facts: Mapping[str, Any]) -> FinetuneConfig | None:
    """The settings of a run that fine-tunes, from its snapshot's facts; None for another run."""
    stored = facts.get("finetune")
    return None if stored is None else FinetuneConfig(**stored)


def open_examples(
    texts: Sequence[str], settings: FinetuneConfig, tokenizer: Tokenizer, context: int, batch_size: int
) -> ExampleSet:
    """The examples of a run that is resumed; its template is the one that its tokenizer has.

    Raises:
        GptcliError: a file cannot be read, or an example cannot be used.
    """
    encoded = example_files.encode(texts, replace(settings, template=None), tokenizer, context)
    return _example_set(encoded, batch_size, settings)


def _example_set(encoded: Encoded, batch_size: int, settings: FinetuneConfig) -> ExampleSet:
    if settings.method == "dpo":
        train = Pairs(_in_pairs(encoded.train), batch_size)
        held_out = Pairs(_in_pairs(encoded.validation), batch_size, len(train)) if encoded.validation else None
        return ExampleSet(train, held_out, encoded.characters, prompt=encoded.prompt, beta=settings.dpo_beta)
    validation = Examples(encoded.validation, batch_size) if encoded.validation else None
    return ExampleSet(
        Examples(encoded.train, batch_size), validation, encoded.characters,
        prompt=encoded.prompt, label_weights=encoded.label_weights,
    )  # fmt: skip


def _in_pairs(examples: Sequence[Example]) -> list[tuple[Example, Example]]:
    return list(zip(examples[::2], examples[1::2], strict=True))
