"""The training loop. It yields events and prints nothing."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from gptcli.checkpoints.checkpoint import all_finite
from gptcli.checkpoints.tensor_files import Tensors
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import DEFAULT_RUNTIME, RuntimeConfig
from gptcli.data.batches import Batches
from gptcli.data.dataset import Corpus
from gptcli.data.examples import ExampleSet
from gptcli.device.placement import peak_memory, sent
from gptcli.errors import GptcliError, SettingError
from gptcli.model.cost import training_flops_rule
from gptcli.model.gpt import GPTModel
from gptcli.model.lora import is_adapted
from gptcli.training import snapshot_rows
from gptcli.training.best_weights import BestWeights
from gptcli.training.deadline import Deadline, decided, is_undecided
from gptcli.training.distributed import ALONE, World
from gptcli.training.events import (
    CooldownBegan,
    EpochEnded,
    Evaluated,
    Event,
    Noted,
    RolledBack,
    Saved,
    Skipped,
    Stepped,
)
from gptcli.training.losses import MeanLoss, loss_of
from gptcli.training.optimizers import learning_rate
from gptcli.training.pace import Ahead, Pace
from gptcli.training.progress import Progress
from gptcli.training.run_plan import batches_of, evaluation_windows, make_plan
from gptcli.training.snapshots import Snapshot, Store, newest
from gptcli.training.step import Launched, Stepper

BAD_STEPS = 3  # bad steps in a row (loss or gradient not finite) that cause a rollback
LOWER_RATE = 0.25  # factor of the learning rate after a rollback


@torch.no_grad()
def mean_loss(
    model: GPTModel,
    windows: Batches,
    numbers: Sequence[int],
    batch_size: int,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
    with_rest: bool = False,
) -> float:
    """Mean cross-entropy in nats a token over the windows ``numbers``, without dropout.

    ``with_rest`` adds the tokens behind the last window, which are too few for one.

    ``forward`` computes the mean loss of a batch's inputs and targets; the default calls the model without autocast.
    """
    loss: Callable[[Tensor, Tensor], Tensor] = forward or MeanLoss(model)
    was_training = model.training
    model.eval()
    losses, counts = [], []  # of each batch: the mean loss, and how much it counts
    batches = (windows.batch(numbers[start : start + batch_size]) for start in range(0, len(numbers), batch_size))
    rest = windows.rest() if with_rest else None
    for batch in chain(batches, () if rest is None else (rest,)):
        inputs, targets = (sent(part, model.device) for part in batch)
        losses.append(loss(inputs, targets))
        counts.append(windows.weight(batch[1]))
    model.train(was_training)
    found: list[float] = torch.stack(losses).tolist()  # one read at the end: no waits between batches
    return sum(value * count for value, count in zip(found, counts, strict=True)) / sum(counts)


def train(
    model: GPTModel,
    corpus: Corpus | ExampleSet,
    recipe: RecipeConfig,
    runtime: RuntimeConfig = DEFAULT_RUNTIME,
    should_stop: Callable[[], bool] = lambda: False,
    store: Store | None = None,
    snapshot: Snapshot | None = None,
    world: World = ALONE,
    peak: float | None = None,
    started: float | None = None,
) -> Iterator[Event]:
    """Train ``model`` in place, by the plan of `make_plan`.

    Between two events the model is in train mode and may be saved or sampled; an average of weights is in it only at an
    epoch's end. On a GPU a `Stepped` may be yielded after the next step was launched; an evaluation, an epoch's end and
    a snapshot wait for every step before them.

    Args:
        model: on its device, the same in every process, or its shards; those need a ``snapshot`` to take values from.
        corpus: the tokens or the examples to train on.
        recipe: how to train.
        runtime: how to compute and when to save.
        should_stop: called before every step; True ends the session: a save, then a last evaluation.
        store: writes snapshots, in the first process only; None for no snapshots.
        snapshot: the one to resume from; None for a new run.
        world: the processes that share every step.
        peak: peak FLOP/s of all devices together, for `Stepped.mfu`; None where not known.
        started: `time.perf_counter` when this session's time began; None for now.

    Yields:
        a `Stepped` or `Skipped` a step, an `Evaluated` every ``eval_every`` steps, at the end and with examples before
        the first, an `EpochEnded` an epoch, a `CooldownBegan` where a clock decides it, a `Saved` when due and at last.

    Raises:
        GptcliError: loss or gradient was infinite or NaN in `BAD_STEPS` steps in a row, again after one rollback.
    """
    return _Run(model, corpus, recipe, runtime, store, world, peak).events(should_stop, snapshot, started)


class _Run:
    def __init__(
        self, model: GPTModel, corpus: Corpus | ExampleSet, recipe: RecipeConfig, runtime: RuntimeConfig,
        store: Store | None, world: World, peak: float | None,
    ) -> None:  # fmt: skip
        self.model, self.recipe, self.runtime, self.store, self.world = model, recipe, runtime, store, world
        self.given, self.corpus, self.separate = recipe, corpus, isinstance(corpus, ExampleSet)
        self.plan = make_plan(corpus, recipe)
        self.windows, self.validation = batches_of(corpus, recipe)
        self.evaluated = evaluation_windows(self.windows, self.validation, recipe, self.plan.batch_size)
        self.scores_rest = recipe.eval_all  # the validation tokens behind the last whole window as well
        self.stepper = Stepper(model, recipe, runtime, world, loss_of(model, corpus))
        self.progress, self.best = Progress(), BestWeights(model, world)
        self.tokens_per_second_at_peak = peak / training_flops_rule(model.config, is_adapted(model)) if peak else None
        self.rate, self.grad_norm, self.pace = recipe.learning_rate, 0.0, Pace()
        self.deadline = None if recipe.for_time is None else Deadline(recipe, runtime.save_every)
        self.began = 0.0
        self.order: tuple[int, Sequence[int]] = (0, [])
        self.launched: deque[tuple[int, int, float, Launched]] = deque()  # step, epoch, rate, result
        self.step_seconds = 0.0  # spent on launching since the last outcome was read
        self.saved_at = 0

    def events(
        self, should_stop: Callable[[], bool], snapshot: Snapshot | None, started: float | None
    ) -> Iterator[Event]:
        torch.manual_seed(self.recipe.seed + self.world.rank)
        self.model.train()
        if snapshot is not None:
            self._restore(snapshot)
        if self.separate and self.progress.step == 0:  # what it begins with may be the best
            yield self._evaluate(1)
        self.began = (time.perf_counter() if started is None else started) - self.progress.seconds
        stopped = self.world.any(should_stop())
        while not stopped and not self.world.first_says(self._ended()):
            step, epoch = self.progress.step, self._epoch(self.progress.step)
            if self.deadline is not None:
                yield from self._cooldown_if_due(self.deadline)
            self._launch(step, epoch)
            evaluates = (step + self.separate) % self.recipe.eval_every == 0
            ends_epoch = self.progress.step % self.plan.steps_per_epoch == 0
            yield from self._finished(but=0 if evaluates or ends_epoch else int(self.stepper.is_late))
            self.progress.seconds = time.perf_counter() - self.began
            if self.progress.bad_in_a_row >= BAD_STEPS:
                yield self._roll_back()
                continue
            if evaluates:
                yield self._evaluate(epoch)
            if ends_epoch:
                told = time.perf_counter()
                with self.stepper.average.in_model():
                    yield EpochEnded(epoch, self.progress.step)
                self.pace.epoch_ended(time.perf_counter() - told)
            if self._save_due():
                yield from self._finished()
                if not self.progress.bad_in_a_row:
                    yield self._save()
            stopped = self.world.any(should_stop())
        yield from self._finished()
        is_early = stopped and not self.world.first_says(self._ended())
        if is_early and self._unsaved():  # before the evaluation, whose row a resumed run then cuts from metrics.jsonl
            yield self._save()
        if self.progress.evaluated_at != self.progress.step:
            yield self._evaluate(self._epoch(self.progress.step - 1))
            if is_early and self.store is not None:
                self.world.while_first(partial(self.store.evaluated, asdict(self.progress)))
        if self._unsaved():
            yield self._save()

    def _ended(self) -> bool:
        return self.progress.ended(self.recipe, self.plan.total_steps) is not None

    def _cooldown_if_due(self, deadline: Deadline) -> Iterator[Event]:
        step, elapsed = self.progress.step, time.perf_counter() - self.began
        deadline.reached(elapsed)
        if is_undecided(self.recipe) and self.world.first_says(deadline.is_due(step, elapsed)):
            self._begin_cooldown(step)
            yield CooldownBegan(step, self.plan.total_steps)

    def _begin_cooldown(self, step: int | None) -> None:
        """Give a run for a fixed time its number of steps; None: take it back."""
        self.recipe = decided(self.given, step)
        self.progress.cooldown_start = self.recipe.cooldown_start if self.recipe.for_time is not None else None
        self.plan = make_plan(self.corpus, self.recipe)

    def _epoch(self, step: int) -> int:
        return step // self.plan.steps_per_epoch + 1

    def _batch(self, step: int, epoch: int) -> tuple[Tensor, Tensor, float | None]:
        """Inputs and targets of ``step`` that this process computes, and the whole step's weight (`Batches.step`)."""
        if self.order[0] != epoch:
            self.order = epoch, self.windows.order(self.recipe.seed, epoch)
        size = self.plan.batch_size
        first = step % self.plan.steps_per_epoch * size
        return self.windows.step(self.order[1][first : first + size], self.world.share(size))

    def _launch(self, step: int, epoch: int) -> None:
        started = time.perf_counter()
        self.rate = learning_rate(self.recipe, step, self.plan.schedule_steps) * self.progress.rate_factor
        inputs, targets, total = self._batch(step, epoch)
        launched = self.stepper.launch(inputs, targets, self.rate, step, total)
        self.launched.append((step, epoch, self.rate, launched))
        self.step_seconds += time.perf_counter() - started
        self.progress.step += 1

    def _finished(self, but: int = 0) -> Iterator[Event]:
        """The events of launched steps, except the last ``but``, which a GPU may still be computing."""
        while len(self.launched) > but:
            started = time.perf_counter()
            step, epoch, rate, launched = self.launched.popleft()
            outcome = launched.outcome()
            self.pace.stepped(self.plan.tokens_per_step, self.step_seconds + time.perf_counter() - started)
            self.step_seconds = 0.0
            if outcome.updated:
                self.progress.bad_in_a_row, self.grad_norm = 0, outcome.grad_norm
                yield Stepped(
                    step, epoch, outcome.loss, self.pace.tokens_per_second, outcome.grad_norm, rate, self._mfu(),
                    self._seconds_left(),
                )  # fmt: skip
            else:
                self.progress.skipped += 1
                self.progress.bad_in_a_row += not outcome.excused
                yield Skipped(step, outcome.loss, outcome.grad_norm)
        yield from map(Noted, self.stepper.notes)
        self.stepper.notes.clear()

    def _mfu(self) -> float | None:
        return self.pace.tokens_per_second / peak if (peak := self.tokens_per_second_at_peak) else None

    def _seconds_left(self) -> float | None:
        plan, recipe, total = self.plan, self.recipe, self.plan.total_steps
        step, tokens, save_every = self.progress.step, plan.tokens_per_step, self.runtime.save_every
        ahead = Ahead.after(step, total, plan.steps_per_epoch, tokens, recipe.eval_every, save_every)
        if recipe.for_time is not None:
            return max(recipe.for_time - self.progress.seconds, 0.0)
        left = self.pace.seconds_left(ahead)
        if left is None or recipe.max_time is None:
            return left
        return min(left, max(recipe.max_time - self.progress.seconds, 0.0))

    def _evaluate(self, epoch: int) -> Evaluated:
        started, progress = time.perf_counter(), self.progress
        size = -(-self.plan.batch_size // ((self.runtime.accumulate or 1) * self.world.size))  # the windows of one part
        forward = self.stepper.forward
        with self.stepper.average.in_model():
            train_loss = mean_loss(self.model, self.windows, self.evaluated[0], size, forward)
            val_loss = None
            if self.validation is not None:
                val_loss = mean_loss(self.model, self.validation, self.evaluated[1], size, forward, self.scores_rest)
                if self.world.first_says(progress.rank(train_loss, val_loss)):
                    self.best.keep()
        progress.train_loss, progress.val_loss, progress.evaluated_at = train_loss, val_loss, progress.step
        took = time.perf_counter() - started
        progress.seconds += took
        tokens = sum(map(len, self.evaluated)) * self.plan.tokens_per_step // self.plan.batch_size
        self.pace.evaluated(tokens, took)
        if self.deadline is not None:
            self.deadline.evaluated(took)
        return Evaluated(
            progress.step - 1, epoch, progress.step * self.plan.tokens_per_step, train_loss, val_loss, self.rate,
            self.pace.tokens_per_second, progress.seconds, self.grad_norm, peak_memory(self.model.device),
            progress.skipped, self._mfu(),
        )  # fmt: skip

    def _save_due(self) -> bool:
        if self.store is None or self.progress.bad_in_a_row:
            return False
        # What has ended is saved after its last evaluation.
        return self.world.first_says(self.store.due(self.progress.step) and not self._ended())

    def _unsaved(self) -> bool:
        return self.store is not None and self.saved_at != self.progress.step

    def _save(self) -> Event:
        assert self.store is not None
        started = time.perf_counter()
        weights, state, progress = self.stepper.weights(), self.stepper.state(), self.progress
        if self.world.any(not all(map(all_finite, weights.values()))):
            if self._ended():
                raise self._diverged(progress.step - 1)
            return self._roll_back()
        self.saved_at = progress.step
        tensors: Sequence[Tensors] = (weights, state, self.best.unwritten())
        if self.stepper.is_sharded:
            self.world.while_all(partial(snapshot_rows.write, self.store.run, progress.step, self.world.rank, tensors))
        path = self.world.while_first(partial(self._write, self.store, tensors)) or self.store.run
        self.pace.saved(time.perf_counter() - started)
        if self.deadline is not None:
            self.deadline.saved(time.perf_counter() - started)
        return Saved(progress.step, path, self._ended())

    def _write(self, store: Store, tensors: Sequence[Tensors]) -> Path:
        """Write a snapshot of the tensors that `Store.save` takes, or of their rows that the processes have written."""
        if self.stepper.is_sharded:
            tensors = snapshot_rows.read(store.run, self.progress.step, self.world.size)
        weights, state, best = tensors
        return store.save(weights, state, asdict(self.progress), self.stepper.scaler.state_dict(), best)

    def _restore(self, snapshot: Snapshot) -> None:
        self.launched.clear()
        self.progress = Progress.of(snapshot.progress)
        self.saved_at = self.progress.step
        self._begin_cooldown(self.progress.cooldown_start)
        made_by = snapshot.facts.get("source", {"format": 0}).get("format", 1)  # see new_run.SOURCE_FORMAT
        self.scores_rest &= made_by != 1
        if made_by in (1, 2):
            self.evaluated = evaluation_windows(self.windows, self.validation, self.recipe, self.plan.batch_size, False)
        self.stepper.restore(snapshot.weights(), snapshot.state(), snapshot.scaler)
        best = snapshot.best_weights(self.progress.best.step) if self.progress.best is not None else None
        self.best.take(best)
        self.progress.best = None if best is None else self.progress.best
        if self.store is not None and self.world.is_first:
            self.store.cut_metrics(snapshot)

    def _roll_back(self) -> RolledBack:
        """Restore the last snapshot and lower the learning rate; a second call raises GptcliError."""
        failed_at = self.progress.step - 1
        if self.store is None or self.progress.rate_factor < 1:
            raise self._diverged(failed_at)
        self._restore(newest(self.store.run)[0])
        self.progress.rate_factor = LOWER_RATE
        return RolledBack(self.progress.step, LOWER_RATE)

    def _diverged(self, step: int) -> GptcliError:
        kept = " The last good checkpoint is kept." if self.store is not None else ""
        return SettingError(
            f"Loss or gradient is not finite at step {step} and just before: training has diverged.{kept}",
            f"Lower {{learning_rate}} (now {self.recipe.learning_rate:g}), or add {{warmup_steps}} 100.",
        )
