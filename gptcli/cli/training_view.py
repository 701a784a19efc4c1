"""A training run as its user sees it: header, bar, evaluation lines, samples, checkpoint, picture."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli.cli import render
from gptcli.config import PRESETS, GPTConfig, SamplingConfig, TrainConfig, as_dict
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.corpus import Corpus
    from gptcli.model import GPTModel
    from gptcli.tokenizers import Tokenizer
    from gptcli.training import Evaluated

SLOW_RUN_SECONDS = 3600
SAMPLE_TOKENS = 50
SECONDS_BETWEEN_SAVES = 60


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
        device: str,
        threads: int | None,
        force: bool,
    ) -> None:
        from gptcli import device as devices
        from gptcli.training import make_plan

        self.path, self.force, self.recipe, self.corpus, self.tokenizer = path, force, recipe, corpus, tokenizer
        self.model_config, self.origin = model_config, origin
        self.placement = devices.choose(device)
        self.threads = devices.set_threads(threads)
        devices.reuse_freed_memory()
        self.plan = make_plan(corpus, recipe)
        self.sample_ids = self._sample_ids()
        self.step = 0
        self.saved_at = 0.0
        self.last: Evaluated | None = None

    def go(self) -> None:
        from gptcli import checkpoint, curves, training
        from gptcli.device import peak_memory

        for line in self.plan.notes:
            render.warn(line)
        self._print_header()
        model = self._make_model()
        # Before the first step, so that a full disk is known now and not at the end.
        checkpoint.create(self.path, model, self.tokenizer, self._state(), force=self.force)
        self.saved_at = time.monotonic()
        with _stop_on_ctrl_c() as stopped, render.progress(self.plan.total_steps, "step") as bar:
            for event in training.train(model, self.corpus, self.recipe, stopped):
                if isinstance(event, training.Stepped):
                    self.step = event.step + 1
                    bar.update()
                    bar.set_postfix_str(f"loss {event.loss:.3f}, {event.tokens_per_second:,.0f} tokens/s")
                    self._forecast_time(event.tokens_per_second)
                elif isinstance(event, training.Evaluated):
                    self._report(event, bar)
                else:
                    if time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES:
                        self._save(model)
                    self._print_sample(model, event.epoch, bar)
            self._save(model)
            interrupted = stopped()
        peak = render.human_bytes(peak_memory(self.placement.device))
        if self.last is not None:
            rows, per_epoch = checkpoint.read_metrics(self.path), self.plan.steps_per_epoch * self.plan.tokens_per_step
            curves.draw_losses(rows, per_epoch, self.path / "loss.png", title=self.path.name)
        if interrupted:
            render.warn(f"Stopped by Ctrl-C after step {self.step} of {self.plan.total_steps}.")
        render.note(f"The checkpoint is in {self.path} (peak memory {peak}). Speak with it:")
        render.note(f'  gptcli generate "{self.recipe.sample_prompt}" --checkpoint {self.path}')
        render.print_text(str(self.path))
        if interrupted:
            raise typer.Exit(130)

    def _make_model(self) -> "GPTModel":
        import torch

        from gptcli.model import GPTModel

        torch.manual_seed(self.recipe.seed)
        if self.origin is None:
            return GPTModel(self.model_config, self.recipe.init).to(self.placement.device)
        model = GPTModel(self.model_config, init=None)
        model.load_state_dict(self.origin.tensors)
        return model.to(self.placement.device)

    def _save(self, model: "GPTModel") -> None:
        from gptcli import checkpoint

        checkpoint.update(self.path, model, self.tokenizer, self._state())
        self.saved_at = time.monotonic()

    def _print_header(self) -> None:
        from gptcli import accounting
        from gptcli.device import available_memory, resident_memory

        plan, config = self.plan, self.model_config
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
            f"{accounting.parameter_count(config):,} parameters ({config.n_layers} layers, {config.n_heads} heads, "
            f"{config.emb_dim} wide) on {self.placement.device}, {self.threads} threads, float32 "
            f"({self.placement.reason})."
        )
        on_cpu = self.placement.device.type == "cpu"
        need = accounting.training_memory(config, plan.batch_size, plan.context_length, on_cpu=on_cpu).peak
        need += resident_memory() if on_cpu else 0
        have = available_memory(self.placement.device)
        render.note(f"Forecast: {render.human_bytes(need)} of memory at the peak; {render.human_bytes(have)} are free.")
        if need > have:
            render.warn(
                f"This will probably not fit: it takes {render.human_bytes(need)}, and {render.human_bytes(have)} are "
                f"free. {self._advice()}"
            )

    def _advice(self) -> str:
        if self.model_config.emb_dim > PRESETS["mini"].emb_dim and self.origin is None:
            return "What helps most: a smaller model, --size mini or --size tiny."
        return "What helps most: fewer epochs (--epochs), or --max-steps; for memory a smaller --batch-size."

    def _forecast_time(self, tokens_per_second: float) -> None:
        """After the first steps: how long the run will take."""
        if self.step != min(3, self.plan.total_steps):
            return
        left = (self.plan.total_steps - self.step) * self.plan.tokens_per_step / tokens_per_second
        evaluations = self.plan.total_steps / self.recipe.eval_every * self.recipe.eval_batches
        left += evaluations * self.plan.tokens_per_step / (3 * tokens_per_second)
        render.note(f"Forecast: about {render.human_time(left)} to go.")
        if left > SLOW_RUN_SECONDS:
            render.warn(f"That is long for a first look. {self._advice()}")

    def _report(self, row: "Evaluated", bar: Any) -> None:
        from gptcli import checkpoint

        self.last = row
        checkpoint.append_metrics(self.path, asdict(row))
        validation = f", Val loss {row.val_loss:.3f}" if row.val_loss is not None else ""
        _say(bar, f"Ep {row.epoch} (Step {row.step:06d}): Train loss {row.train_loss:.3f}{validation}")

    def _print_sample(self, model: "GPTModel", epoch: int, bar: Any) -> None:
        if not self.sample_ids or epoch % self.recipe.sample_every or render.verbosity.quiet:
            return
        from gptcli.generation import generate

        model.eval()
        tokens = generate(
            model, self.sample_ids, max_new_tokens=SAMPLE_TOKENS, sampling=SamplingConfig(temperature=0.0),
            seed=self.recipe.seed, eot_id=self.tokenizer.eot_id,
        )  # fmt: skip
        text = self.tokenizer.decode([*self.sample_ids, *(token.id for token in tokens)])
        model.train()
        _say(bar, "  " + " ".join(text.split()))

    def _sample_ids(self) -> list[int]:
        """The sample prompt's ids; the text's own beginning where its vocabulary has no such words."""
        if self.recipe.sample_every == 0:
            return []
        try:
            return list(self.tokenizer.encode(self.recipe.sample_prompt))
        except GptcliError as error:
            ids: list[int] = self.corpus.train[:8].tolist()
            render.note(f"{error.message} Samples continue {self.tokenizer.decode(ids)!r} instead.")
            return ids

    def _state(self) -> dict[str, Any]:
        """What the checkpoint says of the run."""
        state: dict[str, Any] = {"step": self.step, "recipe": as_dict(self.recipe)}
        if self.last is not None:
            state |= {"train_loss": self.last.train_loss, "val_loss": self.last.val_loss}
        return state


def _say(bar: Any, text: str) -> None:
    """A line above the bar."""
    if not render.verbosity.quiet:
        bar.clear()
        render.note(text)
        bar.refresh()


@contextmanager
def _stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C ends the run after the step under way; a second one ends it at once."""
    asked = False

    def handle(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        render.warn("Finishing this step and writing a checkpoint; Ctrl-C again stops at once.")

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
