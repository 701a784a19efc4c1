"""A training run: what the machine decides of it, its model and its directory, and the events of its loop."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gptcli.checkpoints import checkpoint, run_lock
from gptcli.checkpoints.checkpoint import Checkpoint
from gptcli.checkpoints.layout import LOSS_PICTURE, METRICS
from gptcli.config.fields import as_dict
from gptcli.config.model import GPTConfig
from gptcli.config.training import TrainConfig
from gptcli.data.dataset import Corpus
from gptcli.device import allocator, peak_flops, placement
from gptcli.device.placement import Precision
from gptcli.errors import GptcliError
from gptcli.kernels.cpu import train_kernels
from gptcli.kernels.cpu.train_kernels import TrainKernels
from gptcli.model import cost
from gptcli.model.gpt import GPTModel
from gptcli.tokenizers import Tokenizer
from gptcli.training import batch_size, block_compiler, distributed, loss_plots, samples, tensorboard, trainer
from gptcli.training.distributed import World
from gptcli.training.events import Evaluated, Event
from gptcli.training.run_plan import make_plan
from gptcli.training.snapshots import Snapshot, Store


class Run:
    """Everything between an opened corpus and a finished run directory.

    In this order: `prepared` is entered, `begin` makes the model and the directory, `events` trains, `finish` draws.

    Args:
        path: the run's directory.
        recipe: how to train. Its dtype is decided by ``dtype``, and ``accumulate`` too where ``choose_parts`` says so.
        corpus: what to learn.
        tokenizer: that the corpus was encoded with.
        model_config: the model's shape.
        origin: a checkpoint to take the first weights from; None for new ones.
        source: what the snapshots say of the texts.
        snapshot: where to go on; None for a new run.
        device, dtype, threads: as the options of these names say.
        force: a new run may replace what is at ``path``.
        choose_parts: compute a step in as few parts as memory has room for.
        world: the processes that share every step.
        report: called with a line that says what was chosen, or takes a while.
        warn: called with a line that no user should miss.

    Attributes:
        placement: where the run computes; ``threads`` is on how many CPU threads.
        plan: windows and steps.
        first_step: the step that comes next, 0 for a new run.
        sample_ids: the prompt of the samples; empty where there are none.

        Once `prepared` is entered:
        recipe: as it was given, with the dtype and ``accumulate`` that are used.
        precision: what matrices are multiplied in.
        kernels: numba's part of a step; None where torch does it all.
        compiles: whether torch.compile makes the blocks' kernels.
        memory_needed, memory_free: bytes of the device, a forecast of the process's peak and what it can have.

        After `begin`:
        peak: what the device can do at most; None where that is not known, and in every process but the first.
        model: on its device, to be trained in place.

    Raises:
        GptcliError: there is no such device, a GPU has no such dtype, a batch cannot be shared out among the processes,
            or a package that the recipe needs is missing.
    """

    precision: Precision
    kernels: TrainKernels | None
    compiles: bool
    memory_needed: int
    memory_free: int
    peak: peak_flops.Peak | None
    model: GPTModel
    store: Store

    def __init__(
        self,
        path: Path,
        recipe: TrainConfig,
        corpus: Corpus,
        tokenizer: Tokenizer,
        model_config: GPTConfig,
        origin: Checkpoint | None,
        *,
        source: dict[str, Any],
        snapshot: Snapshot | None = None,
        device: str,
        dtype: str,
        threads: int | None,
        force: bool,
        choose_parts: bool = False,
        world: World,
        report: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        if recipe.log == "tensorboard":
            tensorboard.require()
        self.path, self.force, self.recipe, self.corpus, self.tokenizer = path, force, recipe, corpus, tokenizer
        self.model_config, self.origin, self.snapshot = model_config, origin, snapshot
        self.world, self.report, self.warn = world, report, warn
        self.placement = distributed.place(self.world, placement.choose(device, dtype))
        self.dtype = dtype
        self.threads = placement.set_threads(threads)
        allocator.reuse_freed_memory()  # already for --batch-size auto
        self.plan = make_plan(corpus, recipe)
        distributed.check_share(self.world, self.plan.batch_size)
        self.source, self.choose_parts = source, choose_parts
        self.sample_ids: list[int] = []
        if recipe.sample_every:
            self.sample_ids = samples.prompt_ids(recipe.sample_prompt, tokenizer, corpus, report)
        self.first_step: int = snapshot.progress["step"] if snapshot else 0
        self._lock = ExitStack()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Join the other processes and choose what the machine decides; at the end, part from them.

        Raises:
            GptcliError: within the context as well: the device's memory is used up, or another process is lost.
        """
        for line in self.plan.notes:
            self.warn(line)
        distributed.join(self.world, self.placement.device)
        try:
            self.precision = self.world.gather(self._choose_precision())[0]  # GPUs may differ
            self.recipe = replace(self.recipe, dtype=self.precision.name)
            if self.choose_parts:
                self.recipe = replace(self.recipe, accumulate=self._fitting_parts())
            self.kernels = self._open_kernels()
            self.compiles = self._compiles()
            self._forecast_memory()
            yield
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
            self._lock.close()
            distributed.leave()

    def begin(self) -> None:
        """Make the model and, for a new run, its directory, which this process then holds the lock of.

        Raises:
            GptcliError: the directory cannot be written, or another process holds it.
        """
        self.peak = peak_flops.peak(self.placement.device, self.precision.dtype) if self.world.is_first else None
        self.model = self._make_model()
        self.model.use(self.kernels)
        facts = {
            "recipe": as_dict(self.recipe), "source": self.source, "threads": self.threads,
            "device": self.placement.device.type,
        }  # fmt: skip
        keep, every = self.recipe.keep, self.recipe.save_every
        self.store = Store(self.path, self.model_config, self.tokenizer, facts, keep, every)
        if self.snapshot is None and self.world.is_first:
            self.store.begin(checkpoint.to_file(self.model), asdict(trainer.Progress()), self.force)
            no_locks = self._lock.enter_context(run_lock.held(self.path))  # a run that goes on holds it already
            if no_locks is not None:
                self.warn(no_locks)

    def events(self, should_stop: Callable[[], bool] = lambda: False) -> Generator[Event, None, None]:
        """Train, and write metrics and event files on the way.

        Args:
            should_stop: asked before every step; True saves and ends the run after a last evaluation.

        Yields:
            what `trainer.train` yields. Whoever leaves after a `Saved` loses nothing but that evaluation.

        Raises:
            GptcliError: training diverged, or a file cannot be written.
        """
        recipe = replace(self.recipe, compile=self.compiles)
        peak = self.peak.flops * self.world.size if self.peak else None
        with_log = recipe.log == "tensorboard" and self.world.is_first
        with closing(tensorboard.EventLog(self.path, self.first_step)) if with_log else nullcontext() as log:
            for event in trainer.train(
                self.model, self.corpus, recipe, should_stop, self.store, self.snapshot, self.world, peak
            ):
                if isinstance(event, Evaluated) and self.world.is_first:
                    checkpoint.append_metrics(self.path, asdict(event))
                if log is not None:
                    log.record(event)
                yield event

    def finish(self) -> None:
        """Draw the losses of all sessions into the run's directory."""
        if self.world.is_first and (self.path / METRICS).exists():
            rows, per_epoch = checkpoint.read_metrics(self.path), self.plan.steps_per_epoch * self.plan.tokens_per_step
            loss_plots.draw_losses(rows, per_epoch, self.path / LOSS_PICTURE, title=self.path.name)

    def is_sampled(self, epoch: int) -> bool:
        """Whether a sample is due at the end of ``epoch``, and this process can make it."""
        # A model in shards cannot speak in one process alone.
        can = self.world.is_first and not self.recipe.shard
        return can and bool(self.sample_ids) and epoch % self.recipe.sample_every == 0

    def sample(self) -> str:
        """The model's greedy continuation of the samples' prompt, on one line."""
        self.model.eval()
        text = samples.sample(self.model, self.sample_ids, self.tokenizer, self.recipe.seed)
        self.model.train()
        return text

    def known_prompt(self) -> str:
        """A prompt that the tokenizer can encode: the samples', else a word of the text."""
        return samples.known_prompt(self.recipe.sample_prompt, self.tokenizer, self.corpus)

    def _choose_precision(self) -> Precision:
        """As --dtype says; a run that goes on keeps what it began with."""
        if self.snapshot is not None:
            return Precision(self.recipe.dtype, "as before")
        return placement.training_precision(self.dtype, self.placement.device)

    def _fitting_parts(self) -> int:
        """The fewest parts of a step that fit into memory."""
        windows = self.plan.batch_size // self.world.size
        device, T = self.placement.device, self.plan.context_length
        parts = batch_size.fewest_parts(self.model_config, self.recipe, windows, T, device, self.world)
        if parts is None:
            raise GptcliError(
                f"Not even one window of {T} tokens fits into the memory of {device}.",
                "Try --recompute, a smaller --size or a shorter --context-length.",
            )
        how = f"in {parts} parts of at most {-(-windows // parts)}" if parts > 1 else "at once"
        self.report(f"Memory has room to compute the {windows} windows of a step {how} (--accumulate {parts}).")
        return parts

    def _open_kernels(self) -> TrainKernels | None:
        """The compiled kernels of a training step, where a step is large enough for them to pay and numba works."""
        large = train_kernels.is_worthwhile(self.plan.tokens_per_step, self.model_config.emb_dim)
        on_cpu = self.placement.device.type == "cpu" and self.precision.name == "float32"
        if not (on_cpu and large) or self.recipe.compile:
            return None
        kernels = train_kernels.open_kernels(self.report)
        if isinstance(kernels, str):
            self.report(f"Steps take a tenth longer: numba cannot compile here ({kernels}).")
            return None
        return kernels

    def _compiles(self) -> bool:
        """Whether blocks are compiled: as --compile says, else by the run's size."""
        tokens = self.plan.total_steps * self.plan.tokens_per_step
        flops = cost.training_flops_rule(self.model_config) * tokens
        chosen, line = block_compiler.choose(self.recipe.compile, self.placement.device, flops, self.world.size)
        if line:
            self.report(line)
        return chosen

    def _forecast_memory(self) -> None:
        rows = -(-self.plan.batch_size // (self.world.size * self.recipe.accumulate))
        device, length, again = self.placement.device, self.plan.context_length, self.recipe.recompute
        on_cpu = device.type == "cpu"
        itemsize = 4 if on_cpu else self.precision.dtype.itemsize
        memory = cost.training_memory(self.model_config, rows, length, again, on_cpu=on_cpu, itemsize=itemsize)
        if on_cpu:
            allocator.reuse_freed_memory(expected=memory.resident)
        self.memory_needed = memory.resident + placement.resident_memory() if on_cpu else memory.peak
        self.memory_free = placement.available_memory(device)

    def _make_model(self) -> GPTModel:
        torch.manual_seed(self.recipe.seed)
        if self.snapshot is None and self.origin is None:
            return GPTModel(self.model_config, self.recipe.init).to(self.placement.device)
        model = GPTModel(self.model_config, init=None)
        if self.origin is not None:
            model.load_state_dict(self.origin.tensors)
        return model.to(self.placement.device)
