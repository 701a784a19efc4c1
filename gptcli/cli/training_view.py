"""A training run as its user sees it: header, bar, evaluation lines, samples, checkpoint, picture."""

import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from gptcli.cli import render
from gptcli.cli.stopping import Stop, stop_on_signals
from gptcli.config.model import PRESETS
from gptcli.training.pace import Forecast

if TYPE_CHECKING:
    from gptcli.training.events import Event
    from gptcli.training.run import Run

SLOW_RUN_SECONDS = 3600
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # without tqdm's own rate and time left


def show(run: "Run") -> None:
    """Train, and say what happens.

    Raises:
        GptcliError: what `Run` raises.
        typer.Exit: a signal has stopped the run.
    """
    stop = _TrainingView(run).train()
    if stop.number is not None:
        raise typer.Exit(128 + stop.number)


class _TrainingView:
    def __init__(self, run: "Run") -> None:
        self.run, self.plan = run, run.plan
        self.step = run.first_step
        self.forecast, self.advised = Forecast(), False
        self.speed = ""

    def train(self) -> Stop:
        from gptcli.training.events import Saved

        run = self.run
        with run.prepared():
            self._print_header()
            run.begin()
            with (
                stop_on_signals() as stop,
                render.progress(self.plan.total_steps, "step", bar_format=BAR) as bar,
                closing(run.events(stop.asked)) as events,
            ):
                bar.update(self.step)
                for event in events:
                    self._show(event, bar)
                    if stop.number == signal.SIGTERM and isinstance(event, Saved):
                        break  # whoever sends it does not wait for an evaluation
            run.finish()
            self._print_end(stop)
        return stop

    def _show(self, event: "Event", bar: Any) -> None:
        from gptcli.training import events

        if isinstance(event, events.Stepped):
            self.step = event.step + 1
            bar.update()
            self.speed = f"{event.tokens_per_second:,.0f} tokens/s"
            if event.mfu is not None and self.run.peak is not None:
                reached = render.human_flops(event.mfu * self.run.peak.flops)
                # More than all is possible of no peak: then this one is too low, and a share of it says nothing.
                self.speed += f", {event.mfu:.0%} of the peak" if event.mfu <= 1 else f", {reached} beside the peak"
            left = f", {render.human_time(event.seconds_left)} left" if event.seconds_left is not None else ""
            bar.set_postfix_str(f"loss {event.loss:.3f}, {event.tokens_per_second:,.0f} tokens/s{left}")
            if event.seconds_left is not None and self.step < self.plan.total_steps:
                self._forecast_time(event.seconds_left, bar)
        elif isinstance(event, events.Skipped):
            self.step = event.step + 1
            bar.update()
            _say(bar, f"Step {event.step} is skipped: loss {event.loss:g}, gradient norm {event.grad_norm:g}.")
        elif isinstance(event, events.RolledBack):
            bar.update(event.step - self.step)
            self.step = event.step
            share = f"{event.rate_factor:g} of its learning rate"
            _say(
                bar, f"Training has diverged: the run goes back to the snapshot after step {event.step}, with {share}."
            )
        elif isinstance(event, events.Evaluated):
            validation = f", Val loss {event.val_loss:.3f}" if event.val_loss is not None else ""
            _say(bar, f"Ep {event.epoch} (Step {event.step:06d}): Train loss {event.train_loss:.3f}{validation}")
        elif isinstance(event, events.Noted):
            _say(bar, event.text)
        elif isinstance(event, events.EpochEnded) and self.run.is_sampled(event.epoch) and not render.verbosity.quiet:
            _say(bar, "  " + self.run.sample())

    def _print_header(self) -> None:
        from gptcli.device.machine import multiplies_bfloat16
        from gptcli.model import cost

        run, plan, config = self.run, self.plan, self.run.model_config
        together = f", {run.world.size} processes" if run.world.size > 1 else ""
        render.note(
            f"{run.corpus.characters:,} characters, {run.corpus.tokens:,} tokens "
            f"({run.tokenizer.kind}, vocabulary {config.vocab_size:,}): {len(run.corpus.train):,} to train on, "
            f"{len(run.corpus.validation):,} to validate."
        )
        render.note(
            f"{plan.train_windows:,} windows of {plan.context_length} tokens, {plan.batch_size} a step: "
            f"{plan.steps_per_epoch:,} steps an epoch, {plan.total_steps:,} in all."
        )
        render.note(
            f"{cost.parameter_count(config):,} parameters ({config.n_layers} layers, {config.n_heads} heads, "
            f"{config.emb_dim} wide) on {run.placement.name} ({run.placement.reason}), {run.threads} threads, "
            f"{run.precision.name} ({run.precision.reason}){together}."
        )
        if run.placement.device.type == "cpu" and run.dtype == "auto" and multiplies_bfloat16():
            render.note(
                "This CPU has bfloat16 instructions: --dtype bfloat16 is several times as fast for wide models."
            )
        need, have = render.human_bytes(run.memory_needed), render.human_bytes(run.memory_free)
        render.note(f"Forecast: {need} of memory at the peak; {have} are free.")
        if run.memory_needed > run.memory_free:
            render.warn(f"This will probably not fit: it takes {need}, and {have} are free. {self._advice()}")

    def _print_end(self, stop: Stop) -> None:
        from gptcli.device.placement import peak_memory

        run = self.run
        if stop.number is not None:
            what = "Ctrl-C" if stop.number == signal.SIGINT else "SIGTERM"
            render.warn(f"Stopped by {what} after step {self.step} of {self.plan.total_steps}. Go on with:")
            render.note(f"  gptcli train --resume {render.quoted(str(run.path))}")
        elif self.step < self.plan.total_steps:
            render.note(
                f"The run ended after step {self.step} of {self.plan.total_steps}, as --max-time or --early-stop says."
            )
        if run.peak is not None and self.speed:
            most = f"{render.human_flops(run.peak.flops)} in {run.precision.name}, {run.peak.source}"
            render.note(f"{self.speed} ({most}), counting 6 FLOPs a parameter and token.")
        peak_bytes = render.human_bytes(peak_memory(run.placement.device))
        render.note(f"The checkpoint is in {run.path} (peak memory {peak_bytes}). Speak with it:")
        render.note(
            f"  gptcli generate {render.quoted(run.known_prompt())} --checkpoint {render.quoted(str(run.path))}"
        )
        render.print_text(str(run.path))

    def _advice(self) -> str:
        if self.run.model_config.emb_dim > PRESETS["mini"].emb_dim and self.run.origin is None:
            return "What helps most: a smaller model, --size mini or --size tiny."
        return "What helps most: fewer epochs (--epochs), or --max-steps; for memory a smaller --batch-size."

    def _forecast_time(self, seconds_left: float, bar: Any) -> None:
        """How long the run will take, in a line once that is known and whenever it turns out to be otherwise."""
        if not self.forecast.is_news(seconds_left):
            return
        _say(bar, f"Forecast: about {render.human_time(seconds_left)} to go.")
        if seconds_left > SLOW_RUN_SECONDS and not self.advised:
            self.advised = True
            render.warn(f"That is long for a first look. {self._advice()}")


def _say(bar: Any, text: str) -> None:
    """A line above the bar."""
    if not render.verbosity.quiet:
        bar.clear()
        render.note(text)
        bar.refresh()
