"""A training run as its user sees it: header, bar, evaluation lines, samples, checkpoint, picture."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from gptcli.cli import render
from gptcli.cli.settings_command import flag
from gptcli.cli.stopping import stop_on_signals
from gptcli.cli.training_end import print_end
from gptcli.config.model import PRESETS
from gptcli.errors import with_names
from gptcli.training.pace import Forecast

if TYPE_CHECKING:
    from gptcli.training.events import Event
    from gptcli.training.run import Run
    from gptcli.training.subscribers import Subscriber

SLOW_RUN_SECONDS = 3600
WIDE = 512  # an emb_dim from which bfloat16 instructions are worth a line
LEAST_BAR = 10  # columns beside which figures are left out one by one


def show(run: "Run") -> None:
    """Train, and say what happens.

    Raises:
        GptcliError: what `Run` raises.
        typer.Exit: a signal has stopped the run.
    """
    from gptcli.training.trouble import Trouble

    with run.prepared():
        print_header(run)
        run.begin()
        bar = ProgressBar(run)
        trouble = Trouble(run.model_config, run.recipe, lambda line: bar.say(with_names(line, flag)))
        sampler = None if render.verbosity.quiet else run.sampler(lambda text: bar.say("  " + text))
        with stop_on_signals() as stop:
            subscribers: list[Subscriber] = [bar, trouble]
            subscribers += [] if sampler is None else [sampler]
            run.train(subscribers, stop.asked, lambda: stop.is_urgent)
        print_end(run, stop, bar.speed)
    if stop.number is not None and not run.has_ended:
        raise typer.Exit(128 + stop.number)


class ProgressBar:
    """The bar on stderr, and a line above it for what happens.

    Args:
        run: which one.

    Attributes:
        speed: of the last step, as the closing lines name it.
    """

    name = "The progress bar"

    def __init__(self, run: "Run") -> None:
        self.run, self.plan = run, run.plan
        self.step = run.first_step
        self.forecast, self.advised = Forecast(), False
        self.speed = ""

    def start(self) -> None:
        self._open = ExitStack()
        self.bar = self._open.enter_context(render.progress(self.plan.total_steps, "step", told=False))
        self.bar.update(self.step)

    def end(self) -> None:
        self._open.close()

    def say(self, text: str) -> None:
        """A line above the bar."""
        render.note(text)

    def on(self, event: "Event") -> None:
        from gptcli.training import events

        if isinstance(event, events.Stepped):
            self.step = event.step + 1
            self.bar.update()
            self.speed = f"{event.tokens_per_second:,.0f} tokens/s"
            if event.mfu is not None and self.run.peak is not None:
                reached = render.human_flops(event.mfu * self.run.peak.flops)
                # More than all is possible of no peak: then this one is too low, and a share of it says nothing.
                self.speed += f", {event.mfu:.0%} of the peak" if event.mfu <= 1 else f", {reached} beside the peak"
            left = f"{render.human_time(event.seconds_left)} left" if event.seconds_left is not None else ""
            count = f"step {self.step:,} of {self.plan.total_steps:,}"
            beside = beside_the_bar(f"loss {event.loss:.3f}", left, f"{event.tokens_per_second:,.0f} tokens/s", count)
            self.bar.set_description_str(beside, refresh=False)
            if event.seconds_left is not None and self.step < self.plan.total_steps:
                self._forecast_time(event.seconds_left)
        elif isinstance(event, events.Skipped):
            self.step = event.step + 1
            self.bar.update()
            self.say(f"Step {event.step} is skipped: loss {event.loss:g}, gradient norm {event.grad_norm:g}.")
        elif isinstance(event, events.RolledBack):
            self.bar.update(event.step - self.step)
            self.step = event.step
            share = f"{event.rate_factor:g} of its learning rate"
            self.plan, self.bar.total = self.run.plan, self.run.plan.total_steps
            self.say(f"Training has diverged: the run goes back to the snapshot after step {event.step}, with {share}.")
        elif isinstance(event, events.Evaluated):
            validation = f", Val loss {event.val_loss:.3f}" if event.val_loss is not None else ""
            when = f"Ep {event.epoch} (Step {event.step:06d})" if event.step >= 0 else "Before the first step"
            self.say(f"{when}: Train loss {event.train_loss:.3f}{validation}")
        elif isinstance(event, events.CooldownBegan):
            self.plan = self.run.plan
            self.bar.total = event.total_steps
            falls = f"The learning rate falls from step {event.step:,} on; the" * (self.run.recipe.schedule == "wsd")
            self.say(f"{falls or 'The'} run ends after {event.total_steps:,} steps.")
        elif isinstance(event, events.Noted):
            self.say(event.text)

    def _forecast_time(self, seconds_left: float) -> None:
        """How long the run will take, in a line once that is known and whenever it turns out to be otherwise."""
        if self.run.recipe.for_time is not None or not self.forecast.is_news(seconds_left):
            return
        self.say(f"Forecast: about {render.human_time(seconds_left)} to go.")
        if seconds_left > SLOW_RUN_SECONDS and not self.advised:
            self.advised = True
            render.warn(f"That is a long run for a first try. {_advice(self.run)}")


def beside_the_bar(*figures: str) -> str:
    """The figures that a line has room for beside a percentage and a bar; the first ones go first."""
    shown = ""
    for figure in filter(None, figures):
        longer = f"{shown} · {figure}" if shown else figure
        if shown and len("100%  ") + LEAST_BAR + len(longer) > render.width_of(sys.stderr):
            break
        shown = longer
    return shown


def print_header(run: "Run") -> None:
    """The lines before the first step: the text, the model, the machine, the forecast."""
    from gptcli.device.machine import multiplies_bfloat16
    from gptcli.model import cost

    plan, config, held_out = run.plan, run.model_config, run.corpus.validation
    together = f", {run.world.size} processes" if run.world.size > 1 else ""
    render.note(
        f"{run.corpus.characters:,} characters, {run.corpus.tokens:,} tokens "
        f"({run.tokenizer.kind}, vocabulary {config.vocab_size:,}): {len(run.corpus.train):,} to train on, "
        f"{0 if held_out is None else len(held_out):,} to validate."
    )
    preferences = run.finetune is not None and run.finetune.method == "dpo"
    kind = "windows of" if run.finetune is None else "pairs of at most" if preferences else "examples of at most"
    render.note(
        f"{plan.train_windows:,} {kind} {plan.context_length} tokens, {plan.batch_size} a step: "
        f"{plan.steps_per_epoch:,} steps an epoch, {plan.total_steps:,} in all."
    )
    render.note(
        f"{cost.parameter_count(config):,} parameters ({config.n_layers} layers, {config.n_heads} heads, "
        f"{config.emb_dim} wide) on {run.placement.name} ({run.placement.reason}), {run.threads} threads, "
        f"{run.precision.name} ({run.precision.reason}){together}."
    )
    wide = run.placement.device.type == "cpu" and config.emb_dim >= WIDE
    if wide and run.dtype == "auto" and multiplies_bfloat16():
        render.note("This CPU has bfloat16 instructions: --dtype bfloat16 is 1.8 to 2.8 times as fast for wide models.")
    need, have = render.human_bytes(run.memory_needed), render.human_bytes(run.memory_free)
    render.note(f"Forecast: {need} of memory at the peak; {have} are free.")
    if run.memory_needed > run.memory_free:
        render.warn(f"This will probably not fit: it takes {need}, and {have} are free. {_advice(run)}")
    total, resuming = (render.human_bytes(n) for n in (run.disk_needed.total, run.disk_needed.for_resuming))
    render.note(
        f"Weights and snapshots take at most {total} of disk, {resuming} of it only to resume: gptcli checkpoints NAME "
        "--prune frees it."
    )
    if run.disk_needed.total > run.disk_free:
        render.note(f"The disk has only {render.human_bytes(run.disk_free)} free. --keep 1 takes less.")


def _advice(run: "Run") -> str:
    if run.model_config.emb_dim > PRESETS["mini"].emb_dim and run.origin is None:
        return "What helps most: a smaller model, --size mini or --size tiny."
    return "What helps most: fewer epochs (--epochs), or --max-steps; for memory a smaller --batch-size."
