"""The numbers of windows and steps of a run, known before its first step."""

from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.config.recipe import RecipeConfig
from gptcli.data.batches import Batches
from gptcli.data.dataset import Corpus, Windows
from gptcli.data.examples import Examples, ExampleSet, Pairs
from gptcli.training.optimizers import learning_rate


@dataclass(frozen=True)
class Plan:
    """The numbers of windows and steps of a run.

    Attributes:
        context_length: T of a training window, of the longest example, or of the longest pair's two answers together.
        batch_size: windows or examples per step, over all processes.
        train_windows, validation_windows: the numbers of windows or examples.
        tokens_per_step: tokens that a step reads, on average where examples differ in length.
        steps_per_epoch, total_steps: optimizer steps; an epoch leaves out the windows at the end of its random order
            that do not fill a batch.
        schedule_steps: the steps that the schedule of the learning rate is planned for.
        notes: one line for each setting that was reduced because the text is short.
    """

    context_length: int
    batch_size: int
    train_windows: int
    validation_windows: int
    tokens_per_step: int
    steps_per_epoch: int
    total_steps: int
    schedule_steps: int
    notes: tuple[str, ...]


def make_plan(corpus: Corpus | ExampleSet, recipe: RecipeConfig) -> Plan:
    """The plan of training on ``corpus`` by ``recipe``."""
    if isinstance(corpus, ExampleSet):
        train, validation = corpus.train, corpus.validation
        return _plan(train, validation, train.batch_size, train.tokens * train.batch_size // len(train), recipe, ())
    return _windows_plan(corpus, recipe)


def _windows_plan(corpus: Corpus, recipe: RecipeConfig) -> Plan:
    notes = []
    train = _train_windows(corpus, recipe)
    if train.context_length < recipe.context_length:
        notes.append(
            f"The training text has {len(corpus.train)} tokens, too few for a window of {recipe.context_length}: "
            f"windows of {train.context_length} instead."
        )
    validation = _validation_windows(corpus, recipe)
    if validation is not None and validation.context_length < train.context_length:
        notes.append(
            f"The validation text has {len(corpus.validation)} tokens: it is evaluated in one window of "
            f"{validation.context_length}."
        )
    batch_size = min(recipe.batch_size, len(train))
    if batch_size < recipe.batch_size:
        notes.append(
            f"The text gives {len(train)} windows, fewer than a batch of {recipe.batch_size}: a step takes all of them."
        )
    return _plan(train, validation, batch_size, batch_size * train.context_length, recipe, tuple(notes))


def _plan(
    train: Batches, validation: Batches | None, batch_size: int, tokens: int, recipe: RecipeConfig,
    notes: tuple[str, ...],
) -> Plan:  # fmt: skip
    steps_per_epoch = len(train) // batch_size
    total_steps = steps_per_epoch * recipe.epochs if recipe.max_steps is None else recipe.max_steps
    return Plan(
        train.context_length,
        batch_size,
        len(train),
        len(validation) if validation else 0,
        tokens,
        steps_per_epoch,
        total_steps,
        total_steps if recipe.schedule_steps is None else recipe.schedule_steps,
        notes,
    )


def batches_of(corpus: Corpus | ExampleSet, recipe: RecipeConfig) -> tuple[Batches, Batches | None]:
    """The windows or examples to train on, and those to validate on; None without any."""
    if isinstance(corpus, ExampleSet):
        return corpus.train, corpus.validation
    return _train_windows(corpus, recipe), _validation_windows(corpus, recipe)


def _train_windows(corpus: Corpus, recipe: RecipeConfig) -> Windows:
    """The windows to train on, ``stride`` tokens apart (the context length unless given)."""
    return Windows(corpus.train, recipe.context_length, recipe.stride or recipe.context_length)


def _validation_windows(corpus: Corpus, recipe: RecipeConfig) -> Windows | None:
    """The windows to validate on, adjacent, so that no token counts twice; None without a validation text."""
    if len(corpus.validation) < 2:
        return None
    return Windows(corpus.validation, recipe.context_length, recipe.context_length)


def evaluation_windows(
    windows: Batches, validation: Batches | None, recipe: RecipeConfig, batch_size: int, spread: bool = True
) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of the train and validation windows of every evaluation: fixed, so that losses are comparable.

    Windows of the whole validation text, or without ``spread`` the first ones: neighbours are much alike.
    """
    count = recipe.eval_batches * batch_size
    train = windows.order(recipe.seed, 0)[:count]
    if isinstance(validation, Examples | Pairs):
        return train, validation.by_length() if recipe.eval_all else validation.order(recipe.seed, 0)[:count]
    validation_count = len(validation) if validation else 0
    count = validation_count if recipe.eval_all else min(count, validation_count)
    return train, [i * validation_count // count for i in range(count)] if spread else range(count)


def changed_horizon(before: Plan, after: Plan, recipe: RecipeConfig, step: int, factor: float = 1.0) -> str | None:
    """One line on the learning rate of ``step`` by the plan of a run and by its new one; None where it is the same.

    ``factor`` is that of all rates after a rollback.
    """
    planned = factor * learning_rate(recipe, step, before.schedule_steps)
    rate = factor * learning_rate(recipe, step, after.schedule_steps)
    if rate == planned:
        return None
    return (
        f"The {recipe.schedule} schedule now ends after {after.schedule_steps} steps, not {before.schedule_steps}: "
        f"it goes on at a learning rate of {rate:.2e}; by the earlier plan it would be {planned:.2e}."
    )
