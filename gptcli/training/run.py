"""A training run: the settings that depend on the machine, its model, its directory, and its events."""

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gptcli.checkpoints import checkpoint, layout, run_lock
from gptcli.checkpoints.adapters import Base, NewAdapter
from gptcli.checkpoints.checkpoint import Checkpoint
from gptcli.config.fields import as_dict
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.data import text_record
from gptcli.data.dataset import Corpus
from gptcli.data.examples import ExampleSet
from gptcli.device import allocator, peak_flops, placement
from gptcli.device.placement import Precision
from gptcli.errors import SettingError
from gptcli.kernels.cpu import train_kernels
from gptcli.kernels.cpu.train_kernels import TrainKernels
from gptcli.model import cost
from gptcli.model.dropout_mask import MASKS
from gptcli.model.gpt import GPTModel
from gptcli.tokenizers import Tokenizer
from gptcli.training import (
    batch_size,
    block_compiler,
    calibration,
    disk,
    distributed,
    recorded_texts,
    run_config,
    samples,
    snapshot_rows,
    tensorboard,
    trainer,
)
from gptcli.training.deadline import decided
from gptcli.training.distributed import World
from gptcli.training.events import CooldownBegan, Event, RolledBack, Saved, Skipped, Stepped
from gptcli.training.initial_model import initial_model, new_adapter, streamed_weights
from gptcli.training.preference import with_reference
from gptcli.training.progress import Progress
from gptcli.training.run_plan import make_plan
from gptcli.training.snapshots import Snapshot, Store
from gptcli.training.subscribers import LossPicture, Metrics, Subscriber, Subscribers


class Run:
    """A run from its opened corpus to its finished directory.

    The caller enters `prepared`, then calls `begin`, which makes the model and the directory, and `train`.

    Args:
        path: the run's directory.
        recipe: how to train.
        runtime: how to compute and what to write; ``accumulate`` None: in the fewest parts that fit into memory.
        corpus: the tokens or the examples to train on.
        tokenizer: the one that encoded the corpus.
        model_config: the model's shape.
        origin: a checkpoint with the initial weights; None for random ones.
        source: the facts about the texts that every snapshot stores.
        snapshot: the one to resume from; None for a new run.
        force: whether a new run may replace files at ``path``.
        world: the processes that share every step.
        report: called with a line on a choice that was made, or on work that takes some time.
        warn: called with a line that even a quiet command prints.
        started: `time.perf_counter` when this session's time began; None for when it trains.
        finetune: the settings of a run on examples; None for a run on texts.

    Attributes:
        placement: the device and dtype; ``threads`` is the number of CPU threads.
        plan: the numbers of windows and steps.
        first_step: the first step of this session, 0 for a new run.
        step: steps that are done.
        has_ended: whether nothing is left to do; False until `train` has saved that.
        sample_ids: token ids of the samples' prompt; empty where no samples are drawn.

        Once `prepared` is entered:
        recipe: as given, with the dtype that is used.
        runtime: as given, with the threads and the ``accumulate`` that are used.
        precision: the dtype of matrix products.
        kernels: the numba kernels of a step; None where torch computes all of it.
        compiles: whether torch.compile compiles the blocks.
        disk_needed, disk_free: bytes.
        memory_needed, memory_free: bytes: the forecast of this process's peak, and what is free on the device.

        After `begin`:
        peak: the peak FLOP/s of the device; None where it is not known, and in every process but the first.
        model: on its device; `train` trains it in place.

    Raises:
        GptcliError: there is no such device, a GPU does not support the dtype, the batch is no multiple of the number
            of processes, or a package that the recipe needs is missing.
    """

    precision: Precision
    kernels: TrainKernels | None
    compiles: bool
    disk_needed: disk.DiskForecast
    disk_free: int
    memory_needed: int
    memory_free: int
    peak: peak_flops.Peak | None
    model: GPTModel
    store: Store

    def __init__(
        self,
        path: Path,
        recipe: RecipeConfig,
        runtime: RuntimeConfig,
        corpus: Corpus | ExampleSet,
        tokenizer: Tokenizer,
        model_config: GPTConfig,
        origin: Checkpoint | None,
        *,
        source: dict[str, Any],
        snapshot: Snapshot | None = None,
        force: bool,
        world: World,
        report: Callable[[str], None],
        warn: Callable[[str], None],
        started: float | None = None,
        finetune: FinetuneConfig | None = None,
    ) -> None:
        runtime.check_with(recipe)
        if runtime.log == "tensorboard":
            tensorboard.require()
        self.path, self.force, self.recipe, self.corpus, self.tokenizer = path, force, recipe, corpus, tokenizer
        self.model_config, self.origin, self.snapshot, self.finetune = model_config, origin, snapshot, finetune
        self.world, self.report, self.warn, self.started = world, report, warn, started
        self.adapter, self.dtype = new_adapter(finetune, origin), recipe.dtype
        self.placement = distributed.place(self.world, placement.choose(runtime.device, recipe.dtype))
        self.threads = placement.set_threads(runtime.threads)
        self.runtime = replace(runtime, threads=self.threads)
        self._shards = runtime.shard and world.size > 1
        if not self._shards:  # for shards memory matters more than page faults: freed tensors go back to the system
            allocator.reuse_freed_memory()  # before the trial steps of --batch-size auto
        self.plan = make_plan(corpus, recipe)
        distributed.check_share(self.world, self.plan.batch_size)
        self.sample_ids: list[int] = []
        if runtime.sample_every and not model_config.labels:
            self.sample_ids = samples.prompt_ids(runtime.sample_prompt, tokenizer, corpus, report)
        self.first_step: int = snapshot.progress["step"] if snapshot else 0
        self.step, self._lock, self.source, self.has_ended = self.first_step, ExitStack(), source, False

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Join the process group and choose precision, parts and kernels; at the end, leave the group.

        Raises:
            GptcliError: within the context as well: the device is out of memory, or another process failed.
        """
        for line in self.plan.notes:
            self.warn(line)
        distributed.join(self.world, self.placement.device)
        try:
            self.precision = self.world.gather(self._choose_precision())[0]  # the first one's: GPUs may differ
            self.recipe = replace(self.recipe, dtype=self.precision.name)
            self.runtime = replace(self.runtime, accumulate=self.runtime.accumulate or self._fitting_parts())
            self.kernels = None if self.runtime.compile else train_kernels.for_step(
                self.placement.device, self.precision.name, self.plan.tokens_per_step, self.model_config.emb_dim,
                self.report,
            )  # fmt: skip
            self.compiles = self._compiles()
            self._forecast_memory()
            yield
        except torch.OutOfMemoryError as error:
            raise SettingError(
                f"{self.placement.device} has no room left: {str(error).splitlines()[0]}",
                "Try {batch_size} auto, {recompute}, or for a run that goes on a larger {accumulate}.",
            ) from error
        except RuntimeError as error:
            if self.world.size == 1:
                raise
            raise distributed.lost(self.world, error, self.path) from error
        finally:
            self._lock.close()
            distributed.leave()

    def begin(self) -> None:
        """Make the model and, for a new run, its directory, whose lock this process then holds.

        Raises:
            GptcliError: the directory cannot be written, or another process holds it.
        """
        self.peak = peak_flops.peak(self.placement.device, self.precision.dtype) if self.world.is_first else None
        init = None if self.snapshot else self.recipe.init
        config, device, shared_by = self.model_config, self.placement.device, self.world if self._shards else None
        self.model = initial_model(config, init, self.recipe.seed, self.origin, self.finetune, device, shared_by)
        self.model.use(self.kernels)
        self.corpus = with_reference(self.model, self.corpus, self.source)
        facts = {
            "recipe": as_dict(self.recipe), "runtime": as_dict(self.runtime), "source": self.source,
            "threads": self.threads, "device": self.placement.device.type, "dropout": MASKS,
            **({"finetune": as_dict(self.finetune)} if self.finetune else {}),
        }  # fmt: skip
        added = NewAdapter(self.adapter, Base.of(self.origin.path)) if self.adapter and self.origin else None
        self.store = Store(self.path, config, self.tokenizer, facts, self.runtime.keep, self.runtime.save_every, added)
        self.world.while_first(self._begin_directory)
        if self._shards and self.snapshot is None:
            self.snapshot = snapshot_rows.first(self.path, self.world.rank)

    def _begin_directory(self) -> None:
        if self.snapshot is None:
            config, recipe = self.model_config, self.recipe
            streamed = streamed_weights(config, recipe.init, recipe.seed, self.origin) if self._shards else None
            self.store.begin(streamed or checkpoint.to_file(self.model), asdict(Progress()), self.force)
            if no_locks := self._lock.enter_context(run_lock.held(self.path)):  # resume.py locks a resumed run
                self.warn(no_locks)
        else:
            self.store.finish(self.snapshot)
        known = text_record.read(self.path) if self.snapshot else None
        before = known.before if known else text_record.read(self.origin.path) if self.origin else None
        record = recorded_texts.record_of(self.corpus, self.tokenizer, self.source, self.recipe.train_share, before)
        try:
            text_record.write(self.path, record)
        except OSError as error:
            raise checkpoint.cannot_write(self.path / layout.TEXTS, error) from error
        run_config.write(self.path, self._used())

    def train(
        self,
        subscribers: Sequence[Subscriber] = (),
        should_stop: Callable[[], bool] = lambda: False,
        is_urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the end; write metrics.jsonl, TensorBoard's event files, config.toml and the plot of losses.

        Args:
            subscribers: follow the run besides those that write its files.
            should_stop: called before every step; True ends the session: a save, then a last evaluation.
            is_urgent: called after every save; True ends the session there, without an evaluation.

        Raises:
            GptcliError: training diverged, or a snapshot cannot be written.
        """
        files: list[Subscriber] = []
        if self.world.is_first:
            files = [Metrics(self.path), LossPicture(self.path, self.plan.steps_per_epoch * self.plan.tokens_per_step)]
            files += [tensorboard.EventFiles(self.path, self.first_step)] if self.runtime.log == "tensorboard" else []
        following, undecided = Subscribers([*files, *subscribers], self.warn), self.recipe
        last_snapshot = self.snapshot.path if self.snapshot else None
        with following.started(), closing(self.events(should_stop)) as events:
            for event in events:
                if isinstance(event, Stepped | Skipped):
                    self.step = event.step + 1
                elif isinstance(event, RolledBack):
                    self.step = event.step
                    if event.step <= (self.recipe.cooldown_start or -1):  # the snapshot does not know of it
                        self._decide(undecided)
                elif isinstance(event, CooldownBegan):
                    self._decide(decided(undecided, event.step))
                following.publish(event)
                if isinstance(event, Saved):
                    last_snapshot, self.has_ended = event.path, event.ended
                    if is_urgent():
                        break
        if self.world.is_first and last_snapshot is not None:
            run_config.write(self.path, self._used(), last_snapshot)
            calibration.calibrate(self.path, self.corpus, self.placement.device, self.report)

    def _decide(self, recipe: RecipeConfig) -> None:
        """Take over what a clock has decided of the number of steps, or that it is open again."""
        self.recipe, self.plan = recipe, make_plan(self.corpus, recipe)
        if self.world.is_first:
            run_config.write(self.path, self._used())

    def events(self, should_stop: Callable[[], bool] = lambda: False) -> Generator[Event, None, None]:
        """The events of `trainer.train`, which trains as they are taken; for `train`, and for tests.

        A caller that stops after a `Saved` loses only the last evaluation.
        """
        yield from trainer.train(
            self.model, self.corpus, self.recipe, replace(self.runtime, compile=self.compiles), should_stop, self.store,
            self.snapshot, self.world, self.peak.flops * self.world.size if self.peak else None, self.started,
        )  # fmt: skip

    def sampler(self, show: Callable[[str], None]) -> samples.Sampler | None:
        """The subscriber that hands sample texts to ``show``, each on one line; None where this process draws none."""
        # A sharded model cannot generate in one process: each forward pass gathers weights from all.
        if not (self.world.is_first and self.sample_ids) or self.runtime.shard:
            return None
        every, seed = self.runtime.sample_every, self.recipe.seed
        return samples.Sampler(self.model, self.tokenizer, self.sample_ids, every, seed, show)

    def known_prompt(self) -> str:
        """A prompt that the tokenizer can encode: that of the samples, else a word of the text."""
        return samples.known_prompt(self.runtime.sample_prompt, self.tokenizer, self.corpus)

    def _used(self) -> run_config.Used:
        runtime = replace(self.runtime, device=str(self.placement.device), compile=self.compiles)
        return run_config.Used(
            self.source, self.tokenizer.kind, self.model_config, self.recipe, runtime, self.plan, self.world.size,
            self.finetune,
        )  # fmt: skip

    def _choose_precision(self) -> Precision:
        """The precision of ``dtype``; a resumed run keeps the one it began with."""
        chosen = placement.training_precision(self.dtype, self.placement.device)
        return chosen if self.snapshot is None else replace(chosen, reason="as before")

    def _fitting_parts(self) -> int:
        """The fewest parts into which a step must be split to fit into memory."""
        windows = self.plan.batch_size // self.world.size
        config, device, T = self.model_config, self.placement.device, self.plan.context_length
        parts = batch_size.fewest_parts(config, self.recipe, self.runtime, windows, T, device, self.world, self.adapter)
        if parts is None:
            raise SettingError(
                f"Not even one window of {T} tokens fits into the memory of {device}.",
                "Try {recompute}, a smaller model or a shorter {context_length}.",
            )
        how = f"in {parts} parts of at most {-(-windows // parts)}" if parts > 1 else "at once"
        if parts > 1 or self.finetune is None:
            self.report(f"Memory has room to compute the {windows} windows of a step {how} (accumulate {parts}).")
        return parts

    def _compiles(self) -> bool:
        """Whether torch.compile compiles the blocks: by ``compile``, else by the run's FLOPs."""
        tokens = self.plan.total_steps * self.plan.tokens_per_step
        flops = cost.training_flops_rule(self.model_config) * tokens
        chosen, line = block_compiler.choose(self.runtime.compile, self.placement.device, flops, self.world.size)
        if line:
            self.report(line)
        return chosen

    def _forecast_memory(self) -> None:
        rows = -(-self.plan.batch_size // (self.world.size * (self.runtime.accumulate or 1)))
        device, length, again = self.placement.device, self.plan.context_length, self.runtime.recompute
        config, adapter, on_cpu = self.model_config, self.adapter, device.type == "cpu"
        itemsize = 4 if on_cpu else self.precision.dtype.itemsize
        memory = cost.training_memory(config, rows, length, again, on_cpu=on_cpu, itemsize=itemsize, adapter=adapter)
        if on_cpu and not self._shards:
            allocator.reuse_freed_memory(expected=memory.resident)
        self.memory_needed = memory.resident + placement.resident_memory() if on_cpu else memory.peak
        kept = memory.gradients * (bool(self.plan.validation_windows) + bool(self.recipe.average_share))  # best, mean
        elsewhere = 1 - 1 / self.world.size if self._shards else 0.0
        self.memory_needed += kept - int(elsewhere * (kept + memory.weights + memory.optimizer))
        self.memory_free = placement.available_memory(device)
        self.disk_needed = disk.forecast(self.model_config, self.recipe, self.runtime.keep, adapter)
        self.disk_free = shutil.disk_usage(next(p for p in self.path.absolute().parents if p.exists())).free
