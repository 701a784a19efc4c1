"""What goes wrong in a run, noticed while it trains: each kind is said once."""

import math
from collections.abc import Callable

from gptcli.config.model import PRESET_RATES, PRESETS, GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.training.events import Evaluated, Event
from gptcli.training.loss_plots import when

FIRST_STEPS = 20  # an untrained model is worse than guessing: that is reported from so many steps after the warm-up on
RISE = 0.3  # nats by which the training loss exceeds its lowest value so far before it counts as rising
WAIT = 3  # evaluations without a better validation loss before the run counts as memorising
TOO_HIGH = 5  # times the suitable rate; a fifth of it is too low


def suited_rate(config: GPTConfig) -> float:
    """A peak learning rate for AdamW and Adam that suits a model of this width: that of the nearest preset."""
    return PRESET_RATES[min(PRESET_RATES, key=lambda name: abs(math.log(PRESETS[name].emb_dim / config.emb_dim)))]


def lower_rate(config: GPTConfig, recipe: RecipeConfig) -> float:
    """A rate for a run whose own was too high."""
    tenth = recipe.learning_rate / 10
    return min(suited_rate(config), tenth) if recipe.optimizer in ("adamw", "adam") else tenth


def other_rate(config: GPTConfig, recipe: RecipeConfig, first: float, last: float) -> float | None:
    """A rate for a run whose training loss, ``first`` and now ``last``, is above that of guessing.

    None where its own is neither too high nor too low, and it only takes more steps.
    """
    if last > first + RISE or recipe.learning_rate > TOO_HIGH * suited_rate(config):
        return lower_rate(config, recipe)
    return 10 * recipe.learning_rate if recipe.learning_rate < suited_rate(config) / TOO_HIGH else None


class Trouble:
    """A subscriber that says when training goes wrong.

    Args:
        config: the model's shape.
        recipe: how it is trained.
        say: called with a line, in which ``{early_stop}`` stands for a setting, as in a `SettingError`.
    """

    name = "The warnings"

    def __init__(self, config: GPTConfig, recipe: RecipeConfig, say: Callable[[str], None]) -> None:
        self.config, self.recipe, self.say = config, recipe, say
        self._said: set[str] = set()
        self._lowest: Evaluated | None = None  # by training loss
        self._first: float | None = None  # training loss
        self._best: tuple[int, float] | None = None  # step and validation loss
        self._waited = 0

    def start(self) -> None:
        suited = suited_rate(self.config)
        if self.recipe.optimizer in ("adamw", "adam") and self.recipe.learning_rate > TOO_HIGH * suited:
            self._once("rate", f"A learning rate of {self.recipe.learning_rate:g} is high: {suited:g} suits this size.")

    def on(self, event: Event) -> None:
        if isinstance(event, Evaluated):
            self._evaluated(event)

    def end(self) -> None:
        pass

    def _evaluated(self, row: Evaluated) -> None:
        guessing, lowest = math.log(self.config.n_outputs), self._lowest
        loss = row.train_loss if row.val_loss is None else max(row.train_loss, row.val_loss)
        rate = f"{{learning_rate}} {lower_rate(self.config, self.recipe):g}"
        self._first = row.train_loss if self._first is None else self._first
        other = other_rate(self.config, self.recipe, self._first, row.train_loss)
        if row.step >= self.recipe.warmup_steps + FIRST_STEPS and row.train_loss > guessing and other is not None:
            fault = "too high" if other < self.recipe.learning_rate else "too low"
            self._once(
                "guessing",
                f"The loss, {loss:.2f}, is above that of guessing, {guessing:.2f} (the log of "
                f"{self.config.n_outputs:,} {'labels' if self.config.labels else 'tokens'}): the learning rate is "
                f"{fault}, try {{learning_rate}} {other:g}.",
            )
        elif lowest is not None and row.train_loss > lowest.train_loss + RISE:
            self._once(
                "rising",
                f"The training loss has risen from {lowest.train_loss:.3f} {when(lowest.step)} to "
                f"{row.train_loss:.3f}: the learning rate is probably too high, try {rate}.",
            )
        if lowest is None or row.train_loss < lowest.train_loss:
            self._lowest = row
        if row.val_loss is None:
            return
        if self._best is None or row.val_loss < self._best[1]:
            self._best, self._waited = (row.step, row.val_loss), 0
            return
        self._waited += 1
        if self._waited == WAIT and self._lowest is row:
            # The time of a run for a fixed time cannot be combined with it.
            end = f"; {{early_stop}} {WAIT} would end the run here" if self.recipe.for_time is None else ""
            self._once(
                "memorising",
                f"The run memorises: the validation loss was lowest {when(self._best[0])} ({self._best[1]:.3f}), and "
                f"only the training loss still falls. Those weights are kept{end}.",
            )

    def _once(self, kind: str, line: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self.say(line)
