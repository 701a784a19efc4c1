"""A training run as its user sees it: header, bar, evaluation lines, samples, checkpoint, picture."""

import signal
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli.cli import render
from gptcli.cli.stopping import stop_on_signals
from gptcli.config.fields import as_dict
from gptcli.config.model import PRESETS, GPTConfig
from gptcli.config.training import TrainConfig
from gptcli.errors import GptcliError
from gptcli.training.pace import Forecast

if TYPE_CHECKING:
    from gptcli.checkpoints.checkpoint import Checkpoint
    from gptcli.data.dataset import Corpus
    from gptcli.device.placement import Precision
    from gptcli.kernels.cpu.train_kernels import TrainKernels
    from gptcli.model.cost import TrainingMemory
    from gptcli.model.gpt import GPTModel
    from gptcli.tokenizers import Tokenizer
    from gptcli.training.events import Evaluated, Event
    from gptcli.training.snapshots import Snapshot

SLOW_RUN_SECONDS = 3600
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # without tqdm's own rate and time left


class TrainingRun:
    """Everything between a prepared corpus and a finished run directory."""

    def __init__(
        self,
        path: Path,
        recipe: TrainConfig,
        corpus: "Corpus",
        tokenizer: "Tokenizer",
        model_config: GPTConfig,
        origin: "Checkpoint | None",
        *,
        source: dict[str, Any],
        snapshot: "Snapshot | None" = None,
        device: str,
        dtype: str,
        threads: int | None,
        force: bool,
        choose_parts: bool = False,
    ) -> None:
        from gptcli.device import placement
        from gptcli.training import distributed, samples, tensorboard
        from gptcli.training.run_plan import make_plan

        if recipe.log == "tensorboard":
            tensorboard.require()
        self.path, self.force, self.recipe, self.corpus, self.tokenizer = path, force, recipe, corpus, tokenizer
        self.model_config, self.origin, self.snapshot = model_config, origin, snapshot
        self.world = distributed.from_environment()
        render.verbosity.rank = self.world.rank
        self.placement = distributed.place(self.world, placement.choose(device, dtype))
        self.dtype = dtype
        self.threads = placement.set_threads(threads)
        placement.reuse_freed_memory()  # already for --batch-size auto
        self.plan = make_plan(corpus, recipe)
        distributed.check_share(self.world, self.plan.batch_size)
        self.source, self.choose_parts = source, choose_parts
        self.sample_ids = []
        if recipe.sample_every:
            self.sample_ids = samples.prompt_ids(recipe.sample_prompt, tokenizer, corpus, render.note)
        self.step: int = snapshot.progress["step"] if snapshot else 0
        self.forecast, self.advised = Forecast(), False
        self.last: Evaluated | None = None
        self.speed = ""
        self.lock = ExitStack()

    def go(self) -> None:
        import torch

        from gptcli.device import peak_flops, placement
        from gptcli.training import distributed

        for line in self.plan.notes:
            render.warn(line)
        distributed.join(self.world, self.placement.device)
        try:
            self.precision: Precision = self.world.gather(self._choose_precision())[0]  # GPUs may differ
            self.recipe = replace(self.recipe, dtype=self.precision.name)
            if self.choose_parts:
                self.recipe = replace(self.recipe, accumulate=self._fitting_parts())
            self.kernels = self._open_kernels()
            self.compiles = self._compiles()
            self.memory = self._expected_memory()
            if self.placement.device.type == "cpu":
                placement.reuse_freed_memory(expected=self.memory.resident)
            self._print_header()
            self.peak = peak_flops.peak(self.placement.device, self.precision.dtype) if self.world.is_first else None
            self._train()
        except torch.OutOfMemoryError as error:
            raise GptcliError(
                f"{self.placement.device} has no room left: {str(error).splitlines()[0]}",
                "Try --batch-size auto, --recompute, or for a run that goes on a larger --accumulate.",
            ) from error
        except RuntimeError as error:
            if self.world.size == 1:
                raise
            raise distributed.lost(self.world, error, self.path) from error
        finally:
            self.lock.close()
            distributed.leave()

    def _train(self) -> None:
        from gptcli.checkpoints import run_lock
        from gptcli.checkpoints.checkpoint import read_metrics, to_file
        from gptcli.checkpoints.layout import LOSS_PICTURE, METRICS
        from gptcli.device.placement import peak_memory
        from gptcli.training import events, loss_plots, samples, tensorboard, trainer
        from gptcli.training.snapshots import Store

        model = self._make_model()
        model.use(self.kernels)
        facts = {
            "recipe": as_dict(self.recipe), "source": self.source, "threads": self.threads,
            "device": self.placement.device.type,
        }  # fmt: skip
        recipe = replace(self.recipe, compile=self.compiles)
        store = Store(self.path, self.model_config, self.tokenizer, facts, recipe.keep, recipe.save_every)
        if self.snapshot is None and self.world.is_first:
            store.begin(to_file(model), asdict(trainer.Progress()), self.force)
            no_locks = self.lock.enter_context(run_lock.held(self.path))  # a run that goes on holds it already
            if no_locks is not None:
                render.warn(no_locks)
        with_events = recipe.log == "tensorboard" and self.world.is_first
        with (
            stop_on_signals() as stop,
            render.progress(self.plan.total_steps, "step", bar_format=BAR) as bar,
            closing(tensorboard.EventLog(self.path, self.step)) if with_events else nullcontext() as log,
        ):
            bar.update(self.step)
            peak = self.peak.flops * self.world.size if self.peak else None
            run = trainer.train(model, self.corpus, recipe, stop.asked, store, self.snapshot, self.world, peak)
            for event in run:
                self._tell(event, model, bar)
                if log is not None:
                    log.tell(event)
                if stop.number == signal.SIGTERM and isinstance(event, events.Saved):
                    break  # whoever sends it does not wait for an evaluation
        if self.world.is_first and (self.path / METRICS).exists():
            rows, per_epoch = read_metrics(self.path), self.plan.steps_per_epoch * self.plan.tokens_per_step
            loss_plots.draw_losses(rows, per_epoch, self.path / LOSS_PICTURE, title=self.path.name)
        if stop.number is not None:
            what = "Ctrl-C" if stop.number == signal.SIGINT else "SIGTERM"
            render.warn(f"Stopped by {what} after step {self.step} of {self.plan.total_steps}. Go on with:")
            render.note(f"  gptcli train --resume {render.quoted(str(self.path))}")
        elif self.step < self.plan.total_steps:
            render.note(
                f"The run ended after step {self.step} of {self.plan.total_steps}, as --max-time or --early-stop says."
            )
        if self.peak is not None and self.speed:
            most = f"{render.human_flops(self.peak.flops)} in {self.precision.name}, {self.peak.source}"
            render.note(f"{self.speed} ({most}), counting 6 FLOPs a parameter and token.")
        peak_bytes = render.human_bytes(peak_memory(self.placement.device))
        render.note(f"The checkpoint is in {self.path} (peak memory {peak_bytes}). Speak with it:")
        prompt = render.quoted(samples.known_prompt(recipe.sample_prompt, self.tokenizer, self.corpus))
        render.note(f"  gptcli generate {prompt} --checkpoint {render.quoted(str(self.path))}")
        render.print_text(str(self.path))
        if stop.number is not None:
            raise typer.Exit(128 + stop.number)

    def _tell(self, event: "Event", model: "GPTModel", bar: Any) -> None:
        from gptcli.training import events

        if isinstance(event, events.Stepped):
            self.step = event.step + 1
            bar.update()
            self.speed = f"{event.tokens_per_second:,.0f} tokens/s"
            if event.mfu is not None and self.peak is not None:
                reached = render.human_flops(event.mfu * self.peak.flops)
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
        elif isinstance(event, events.WentBack):
            bar.update(event.step - self.step)
            self.step = event.step
            share = f"{event.rate_factor:g} of its learning rate"
            _say(
                bar, f"Training has diverged: the run goes back to the snapshot after step {event.step}, with {share}."
            )
        elif isinstance(event, events.Evaluated):
            self._report(event, bar)
        elif isinstance(event, events.Noted):
            _say(bar, event.text)
        elif isinstance(event, events.EpochEnded):
            self._print_sample(model, event.epoch, bar)

    def _make_model(self) -> "GPTModel":
        import torch

        from gptcli.model.gpt import GPTModel

        torch.manual_seed(self.recipe.seed)
        if self.snapshot is None and self.origin is None:
            return GPTModel(self.model_config, self.recipe.init).to(self.placement.device)
        model = GPTModel(self.model_config, init=None)
        if self.origin is not None:
            model.load_state_dict(self.origin.tensors)
        return model.to(self.placement.device)

    def _print_header(self) -> None:
        from gptcli.device.machine import multiplies_bfloat16
        from gptcli.device.placement import available_memory, resident_memory
        from gptcli.model import cost

        plan, config = self.plan, self.model_config
        together = f", {self.world.size} processes" if self.world.size > 1 else ""
        render.note(
            f"{self.corpus.characters:,} characters, {self.corpus.tokens:,} tokens "
            f"({self.tokenizer.kind}, vocabulary {config.vocab_size:,}): {len(self.corpus.train):,} to train on, "
            f"{len(self.corpus.validation):,} to validate."
        )
        render.note(
            f"{plan.train_windows:,} windows of {plan.context_length} tokens, {plan.batch_size} a step: "
            f"{plan.steps_per_epoch:,} steps an epoch, {plan.total_steps:,} in all."
        )
        render.note(
            f"{cost.parameter_count(config):,} parameters ({config.n_layers} layers, {config.n_heads} heads, "
            f"{config.emb_dim} wide) on {self.placement.name} ({self.placement.reason}), {self.threads} threads, "
            f"{self.precision.name} ({self.precision.reason}){together}."
        )
        on_cpu = self.placement.device.type == "cpu"
        if on_cpu and self.dtype == "auto" and multiplies_bfloat16():
            render.note(
                "This CPU has bfloat16 instructions: --dtype bfloat16 is several times as fast for wide models."
            )
        need = self.memory.resident + resident_memory() if on_cpu else self.memory.peak
        have = available_memory(self.placement.device)
        render.note(f"Forecast: {render.human_bytes(need)} of memory at the peak; {render.human_bytes(have)} are free.")
        if need > have:
            render.warn(
                f"This will probably not fit: it takes {render.human_bytes(need)}, and {render.human_bytes(have)} are "
                f"free. {self._advice()}"
            )

    def _expected_memory(self) -> "TrainingMemory":
        from gptcli.model import cost

        rows = -(-self.plan.batch_size // (self.world.size * self.recipe.accumulate))
        on_cpu = self.placement.device.type == "cpu"
        itemsize = 4 if on_cpu else self.precision.dtype.itemsize
        length, again = self.plan.context_length, self.recipe.recompute
        return cost.training_memory(self.model_config, rows, length, again, on_cpu=on_cpu, itemsize=itemsize)

    def _choose_precision(self) -> "Precision":
        """As --dtype says; a run that goes on keeps what it began with."""
        from gptcli.device.placement import Precision, training_precision

        if self.snapshot is not None:
            return Precision(self.recipe.dtype, "as before")
        return training_precision(self.dtype, self.placement.device)

    def _open_kernels(self) -> "TrainKernels | None":
        """The compiled kernels of a training step, where a step is large enough for them to pay and numba works."""
        from gptcli.kernels.cpu import train_kernels

        large = train_kernels.is_worthwhile(self.plan.tokens_per_step, self.model_config.emb_dim)
        on_cpu = self.placement.device.type == "cpu" and self.precision.name == "float32"
        if not (on_cpu and large) or self.recipe.compile:
            return None
        kernels = train_kernels.open_kernels(render.note)
        if isinstance(kernels, str):
            render.note(f"Steps take a tenth longer: numba cannot compile here ({kernels}).")
            return None
        return kernels

    def _compiles(self) -> bool:
        """Whether blocks are compiled: as --compile says, else by the run's size."""
        from gptcli.model import cost
        from gptcli.training import block_compiler

        tokens = self.plan.total_steps * self.plan.tokens_per_step
        flops = cost.training_flops_rule(self.model_config) * tokens
        chosen, line = block_compiler.choose(self.recipe.compile, self.placement.device, flops, self.world.size)
        if line:
            render.note(line)
        return chosen

    def _fitting_parts(self) -> int:
        """The fewest parts of a step that fit into memory."""
        from gptcli.training import batch_size

        windows = self.plan.batch_size // self.world.size
        device, T = self.placement.device, self.plan.context_length
        parts = batch_size.fewest_parts(self.model_config, self.recipe, windows, T, device, self.world)
        if parts is None:
            raise GptcliError(
                f"Not even one window of {T} tokens fits into the memory of {device}.",
                "Try --recompute, a smaller --size or a shorter --context-length.",
            )
        how = f"in {parts} parts of at most {-(-windows // parts)}" if parts > 1 else "at once"
        render.note(f"Memory has room to compute the {windows} windows of a step {how} (--accumulate {parts}).")
        return parts

    def _advice(self) -> str:
        if self.model_config.emb_dim > PRESETS["mini"].emb_dim and self.origin is None:
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

    def _report(self, row: "Evaluated", bar: Any) -> None:
        from gptcli.checkpoints import checkpoint

        self.last = row
        if self.world.is_first:
            checkpoint.append_metrics(self.path, asdict(row))
        validation = f", Val loss {row.val_loss:.3f}" if row.val_loss is not None else ""
        _say(bar, f"Ep {row.epoch} (Step {row.step:06d}): Train loss {row.train_loss:.3f}{validation}")

    def _print_sample(self, model: "GPTModel", epoch: int, bar: Any) -> None:
        from gptcli.training import samples

        if self.recipe.shard or not self.world.is_first:  # a model in shards cannot speak in one process alone
            return
        if not self.sample_ids or epoch % self.recipe.sample_every or render.verbosity.quiet:
            return
        model.eval()
        _say(bar, "  " + samples.sample(model, self.sample_ids, self.tokenizer, self.recipe.seed))
        model.train()


def _say(bar: Any, text: str) -> None:
    """A line above the bar."""
    if not render.verbosity.quiet:
        bar.clear()
        render.note(text)
        bar.refresh()
