"""The state of a run that a snapshot stores besides tensors: where it is, and its best evaluation so far."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gptcli.checkpoints.layout import STATE
from gptcli.config.recipe import RecipeConfig
from gptcli.training.deadline import is_undecided
from gptcli.training.run_plan import Plan


@dataclass(frozen=True)
class Best:
    """The evaluation with the lowest validation loss: a row of metrics.jsonl, whose ``step`` counts from 0.

    Losses are in nats a token; ``train_loss`` is None in runs of versions that did not store it.
    """

    step: int
    train_loss: float | None
    val_loss: float


@dataclass
class Progress:
    """The state of a run that a snapshot stores besides tensors.

    Attributes:
        step: steps done, skipped ones included; also the position in the data and in the schedule.
        evaluated_at: ``step`` at the last evaluation, whose losses are ``train_loss`` and ``val_loss``, nats a token.
        best_loss: the lowest validation loss; ``waited`` evaluations since then have not been lower.
        best: the evaluation whose weights are kept: the first with ``best_loss``; None without a validation text.
        skipped: steps that changed no weight; ``bad_in_a_row``: the latest of them, without excused ones.
        cooldown_start: the step at which the cooldown began, in a run for a fixed time.
        rate_factor: factor of the schedule's learning rate; under 1 after a rollback.
        seconds: wall-clock time of all sessions.
    """

    step: int = 0
    evaluated_at: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    best_loss: float | None = None
    waited: int = 0
    best: Best | None = None
    skipped: int = 0
    bad_in_a_row: int = 0
    cooldown_start: int | None = None
    rate_factor: float = 1.0
    seconds: float = 0.0

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Progress":
        """The progress in a state.json; older versions name the best snapshot instead of the best evaluation."""
        known = {field.name: stored[field.name] for field in fields(cls) if field.name in stored}
        if known.get("best") is not None:
            known["best"] = Best(**known["best"])
        elif stored.get("best_snapshot") is not None:
            known["best"] = Best(stored["best_snapshot"] - 1, None, stored["best_snapshot_loss"])
        return cls(**known)

    @classmethod
    def at(cls, snapshot: Path) -> "Progress":
        """The progress that the snapshot's state.json has."""
        return cls.of(json.loads((snapshot / STATE).read_text(encoding="utf-8"))["progress"])

    def rank(self, train_loss: float, val_loss: float) -> bool:
        """Record an evaluation after ``step`` steps; whether its weights are the best so far."""
        if math.isfinite(val_loss) and (self.best_loss is None or val_loss < self.best_loss):
            self.best_loss, self.waited = val_loss, 0
        else:
            self.waited += 1
        if not math.isfinite(val_loss) or (self.best is not None and val_loss >= self.best.val_loss):
            return False
        self.best = Best(self.step - 1, train_loss, val_loss)
        return True

    def to_go_on(self, recipe: RecipeConfig, plan: Plan) -> dict[str, object]:
        """The settings of a run that has ended with which it goes on: each of its limits that is reached, doubled."""
        more: dict[str, object] = {}
        if self.step >= plan.total_steps and recipe.max_steps is not None:
            more["max_steps"] = 2 * self.step
        elif self.step >= plan.total_steps:
            more["epochs"] = 2 * math.ceil(self.step / plan.steps_per_epoch)
        if recipe.early_stop is not None and self.waited >= recipe.early_stop:
            more["early_stop"] = 2 * self.waited
        if recipe.max_time is not None and self.seconds >= recipe.max_time:
            more["max_time"] = f"{2 * math.ceil(self.seconds)}s"
        return more

    def ended(self, recipe: RecipeConfig, total_steps: int) -> str | None:
        """Why the run has ended, or None if it has not."""
        has_total = not is_undecided(recipe)
        if has_total and self.step > total_steps:
            return f"{self.step} steps are done, more than the {total_steps} that it is to have"
        if has_total and self.step == total_steps:
            return f"all {total_steps} steps are done"
        if recipe.early_stop is not None and self.waited >= recipe.early_stop:
            return f"the validation loss was no better for {self.waited} evaluations (early_stop)"
        if recipe.max_time is not None and self.seconds >= recipe.max_time:
            return f"{self.seconds:.0f} seconds have passed (max_time)"
        return None
