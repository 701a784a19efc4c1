"""Snapshots: the files from which a run resumes with the same steps as without the interruption.

RUN/training/step-00000120/ is a checkpoint with the weights after 120 steps, or their average, and up to three more
files: optimizer.safetensors (the state of the optimizers and of the random number generators, and beside an average the
trained weights), best.safetensors (the weights of the best evaluation so far, where they are others) and state.json
(progress, settings, text, checksums). Its directory is written under a hidden name, synced and renamed; then the run's
own weights become a hard link to the best ones (with --final last to the newest), older snapshots are removed, and last
the run's config.json names the step: what a killed process had not come to, the one that resumes the run makes up for.
So at least one whole snapshot exists at any time, and each has the best weights of the steps before it.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gptcli.checkpoints import checkpoint, layout, overwrite
from gptcli.checkpoints.adapter_file import own_name
from gptcli.checkpoints.adapters import NewAdapter
from gptcli.checkpoints.atomic import atomic_write, link_in_place, partial_path, sync_directory, synced_size
from gptcli.checkpoints.checksum import file_sum, matches
from gptcli.checkpoints.layout import BEST_WEIGHTS, METRICS, OPTIMIZER, STATE, TOKENIZER_FILES, WEIGHTS, check_format
from gptcli.checkpoints.layout import SNAPSHOTS as FOLDER
from gptcli.checkpoints.mapped_tensors import MappedTensors
from gptcli.checkpoints.safetensors_file import read_header
from gptcli.checkpoints.tensor_files import Tensors, write_together
from gptcli.checkpoints.verify import plain_names
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer
from gptcli.training.disk import is_pruned
from gptcli.training.pace import SAVING_SHARE

HALF_A_SNAPSHOT = re.compile(r"\.step-\d{8}(\.\d+)?\.(partial|old)")
FIRST_SAVE = 60.0  # seconds before the first save, when the cost of a save is not known yet


@dataclass(frozen=True)
class Snapshot:
    """A snapshot whose tensor files match their checksums.

    Attributes:
        path: its directory.
        progress: the fields of `progress.Progress`.
        facts: what a run does not change while it trains: its settings and its text.
        scaler: state of the GradScaler of float16; else empty.
        metrics_bytes: length of metrics.jsonl at that step.
    """

    path: Path
    progress: dict[str, Any]
    facts: dict[str, Any]
    scaler: dict[str, float]
    metrics_bytes: int

    def weights(self) -> Mapping[str, Tensor]:
        """The model's tensors or their average, or those of its adapter, by the model's names, in the file's shapes."""
        return _tensors(layout.weights_file(self.path))

    def state(self) -> Mapping[str, Tensor]:
        """The result of `step.Stepper.state`; empty at step 0."""
        file = self.path / OPTIMIZER
        return MappedTensors(file) if file.exists() else {}

    def best_weights(self, step: int) -> Mapping[str, Tensor] | None:
        """The weights of the best evaluation, which followed step ``step`` (from 0); None where they are not kept.

        Older versions kept them in a snapshot of their own.
        """
        if (self.path / BEST_WEIGHTS).exists():
            return _tensors(self.path / BEST_WEIGHTS)
        if step == self.progress["step"] - 1:
            return self.weights()
        try:
            return _read(_folder(self.path.parent, step + 1)).weights()
        except GptcliError:
            return None


class Store:
    """Writes the snapshots of a run and removes old ones.

    Args:
        run: the run's directory.
        config: the model's shape.
        tokenizer: the run's tokenizer.
        facts: what every snapshot stores about the run, ``recipe`` (the settings) included.
        keep: how many of the newest snapshots stay.
        every: steps from one save to the next; None for saves that take about `SAVING_SHARE` of the time.
        adapter: what is trained, if it is not the whole model.
    """

    def __init__(
        self, run: Path, config: GPTConfig, tokenizer: Tokenizer, facts: Mapping[str, Any], keep: int,
        every: int | None, adapter: NewAdapter | None = None,
    ) -> None:  # fmt: skip
        self.run, self.config, self.tokenizer, self.facts = run, config, tokenizer, dict(facts)
        self.keep, self.every, self.adapter = keep, every, adapter
        self._weights = layout.ADAPTER_WEIGHTS if adapter else WEIGHTS
        self._saved_at, self._cost = time.perf_counter(), FIRST_SAVE * SAVING_SHARE
        self._best: tuple[Path, dict[str, Any]] | None = None  # the file with the best weights, and its checksum

    def begin(self, weights: Tensors, progress: Mapping[str, Any], force: bool) -> None:
        """Make the run's directory with the snapshot of step 0 in it, atomically."""

        def add_snapshot(partial: Path) -> None:
            self._write(partial, weights, {}, dict(progress), {}, {})

        checkpoint.create_from(
            self.run, self.config, weights, self.tokenizer, self._about(progress),
            force=force, populate=add_snapshot, adapter=self.adapter,
        )  # fmt: skip

    def due(self, step: int) -> bool:
        """Whether to save after ``step`` steps. Which weights are the best does not depend on it."""
        if self.every is not None:
            return step % self.every == 0
        return time.perf_counter() - self._saved_at > self._cost / SAVING_SHARE

    def save(
        self,
        weights: Tensors,
        state: Tensors,
        progress: Mapping[str, Any],
        scaler: Mapping[str, float],
        best: Tensors,
    ) -> Path:
        """Write a snapshot, make the run's checkpoint from it, and remove older ones.

        Args:
            weights: the model's.
            state: of the optimizers and of the random number generators.
            progress: the fields of `progress.Progress`.
            scaler: of float16; else empty.
            best: the weights of the best evaluation, or empty where there is none yet or the snapshot before has them.

        Raises:
            GptcliError: the disk is full or not writable; earlier snapshots are unchanged.
        """
        started = time.perf_counter()
        path = self._write(self.run, weights, state, progress, scaler, best)
        self._publish(path, progress, self._best and self._best[0])
        self._saved_at = time.perf_counter()
        self._cost = self._saved_at - started
        return path

    def evaluated(self, progress: Mapping[str, Any]) -> None:
        """Let the run's checkpoint show an evaluation of the newest snapshot, which does not know of it.

        It is the last one of a session that was stopped. A resumed run, which ends as if it had not been, forgets it.
        """
        path, best = _folder(self.run / FOLDER, progress["step"]), progress["best"]
        if best is not None and best["step"] == progress["step"] - 1:
            self._publish(path, progress, path / self._weights)
            return
        try:
            kind = layout.read_config(self.run)[1]["training"].get("weights", "last")
            self._write_config(self.run, self._about(progress, kind))
        except OSError as error:
            raise checkpoint.cannot_write(self.run, error) from error

    def finish(self, snapshot: Snapshot) -> None:
        """Make the run's checkpoint from its newest snapshot, where the process was killed before it had done so, and
        remove what that left half written or half removed."""
        _clear(self.run / FOLDER)
        if not is_published(self.run, snapshot):
            best = next(filter(Path.exists, (snapshot.path / BEST_WEIGHTS, snapshot.path / self._weights)))
            self._publish(snapshot.path, snapshot.progress, best if snapshot.progress.get("best") else None)

    def _publish(self, path: Path, progress: Mapping[str, Any], best: Path | None) -> None:
        """Make the run's checkpoint from the snapshot ``path``; ``best`` is the file with the best weights, if any."""
        file, chosen = self.run / self._weights, None if self.facts["recipe"].get("final") == "last" else best
        try:
            link_in_place(chosen or path / file.name, file)
            os.utime(file)  # the newest checkpoint is found by it; the best may have been written long ago
            self._let_go()
            self._write_config(self.run, self._about(progress, "best" if chosen else "last"))
        except OSError as error:
            raise checkpoint.cannot_write(self.run, error) from error

    def cut_metrics(self, snapshot: Snapshot) -> None:
        """Truncate metrics.jsonl to its length at ``snapshot``: the steps after it will write their rows again."""
        self._best = None  # the trainer hands the weights over again
        file = self.run / METRICS
        if file.exists() and file.stat().st_size > snapshot.metrics_bytes:
            os.truncate(file, snapshot.metrics_bytes)

    def _write(
        self,
        run: Path,
        weights: Tensors,
        state: Tensors,
        progress: Mapping[str, Any],
        scaler: Mapping[str, float],
        best: Tensors,
    ) -> Path:
        folder = run / FOLDER
        path = _folder(folder, progress["step"])
        partial = partial_path(path)
        try:
            folder.mkdir(exist_ok=True)
            _clear(folder, but=path)
            partial.mkdir()
            self._write_config(partial, self._about(progress))
            name = self._weights
            if (run / name).exists() and progress["step"] == 0:
                link_in_place(run / name, partial / name)
                sums = {name: file_sum(partial / name)}
            else:
                is_best = progress["best"] is not None and progress["best"]["step"] == progress["step"] - 1
                files = {partial / name: weights, partial / OPTIMIZER: state}
                sums = write_together(files if is_best else files | {partial / BEST_WEIGHTS: best})
                if is_best:
                    self._best = path / name, sums[name]
                elif BEST_WEIGHTS not in sums and self._best is not None:
                    link_in_place(self._best[0], partial / BEST_WEIGHTS)
                    sums[BEST_WEIGHTS] = self._best[1]
                if BEST_WEIGHTS in sums:
                    self._best = path / BEST_WEIGHTS, sums[BEST_WEIGHTS]
            for file in (run / name for name in TOKENIZER_FILES):
                if file.is_file():
                    link_in_place(file, partial / file.name)
            said = {
                "progress": dict(progress),
                "scaler": dict(scaler),
                "metrics_bytes": synced_size(run / METRICS),
                "sums": sums,
                "facts": self.facts,
            }
            with atomic_write(partial / STATE) as file, file.open("w", encoding="utf-8", newline="\n") as out:
                json.dump(said, out, indent=1)
            if path.exists():  # a damaged snapshot, which `newest` skipped
                shutil.rmtree(path)
            partial.rename(path)
            _clear(folder)
            sync_directory(folder)
        except OSError as error:
            raise checkpoint.cannot_write(path, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path

    def _write_config(self, folder: Path, about: Mapping[str, Any]) -> None:
        checkpoint.write_config(folder, self.config, self.tokenizer, about, adapter=self.adapter)

    def _about(self, progress: Mapping[str, Any], weights: str = "last") -> dict[str, Any]:
        """The fields about the run in config.json: its step, recipe, losses and best evaluation once they are known,
        and whether the weights beside are the last or the best."""
        told = {name: progress[name] for name in ("train_loss", "val_loss") if progress.get("train_loss") is not None}
        if progress.get("best") is not None:
            told |= {"best": progress["best"], "weights": weights}
        return {"step": progress["step"], "recipe": self.facts["recipe"], **told}

    def _let_go(self) -> None:
        """Remove all but the ``keep`` newest snapshots, and those with files that gptcli did not write.

        Each is renamed to a hidden name first, so that no reader finds a partly removed snapshot.
        """
        old = _steps(self.run)[self.keep :]
        for path in old:
            if not overwrite.foreign(path, overwrite.OF_A_SNAPSHOT):
                hidden = path.with_name(f".{path.name}.old")
                path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)


def check_resumable(run: Path) -> None:
    """Raise GptcliError where ``run`` has no snapshot, whole or damaged, or has a newer format."""
    check_format(run)
    if all(map(is_pruned, _steps(run))):
        raise GptcliError(
            f"{run} has no snapshot of a training run, so there is nothing to resume.",
            f"Train on from its weights as a new run: {layout.train_on_from(run)}",
        )


def is_published(run: Path, snapshot: Snapshot) -> bool:
    """Whether the checkpoint of ``run`` was made from ``snapshot`` or a later one; config.json, written last, says."""
    step = layout.read_config(run)[1].get("training", {}).get("step")
    return step is None or bool(step >= snapshot.progress["step"])


def newest(run: Path) -> tuple[Snapshot, list[str]]:
    """The newest whole snapshot of ``run``, and a line on every damaged one that was skipped.

    Raises:
        GptcliError: no snapshot is whole, or the run has a newer format than this program reads.
    """
    check_resumable(run)
    complaints: list[str] = []
    for path in _steps(run):
        try:
            return _read(path), [f"{line} This snapshot is passed over for the one before." for line in complaints]
        except GptcliError as error:
            complaints.append(error.message)
    raise GptcliError(
        f"No snapshot in {run / FOLDER} is whole: {complaints[0]}",
        f"Start a new run from its weights: {layout.train_on_from(run)}",
    )


def _folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def rows_folder(run: Path, step: int, rank: int) -> Path:
    """Where a process writes its rows: a name like that of a partly written snapshot, whose number is no process id."""
    return run / FOLDER / f".{_folder(run, step).name}.{rank:08d}.partial"


def _steps(run: Path) -> list[Path]:
    return sorted((run / FOLDER).glob("step-*"), reverse=True)


def _read(path: Path) -> Snapshot:
    file = path / STATE
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        names = (WEIGHTS, layout.ADAPTER_WEIGHTS, OPTIMIZER, BEST_WEIGHTS)
        sums = {name: said["sums"][name] for name in names if name in said["sums"]}
        snapshot = Snapshot(path, said["progress"], said["facts"], said["scaler"], said["metrics_bytes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GptcliError(f"{file} is missing or damaged.", "Copy the run again.") from error
    for name, expected in sums.items():
        if not (path / name).exists() or not matches(path / name, expected):
            raise GptcliError(f"{path / name} is missing or damaged.", "Copy the run again.")
    return snapshot


def _tensors(file: Path) -> MappedTensors:
    found = plain_names(read_header(file).tensors, str(file))
    return MappedTensors(file, {own_name(name): info for name, info in found.items()})


def _clear(folder: Path, but: Path | None = None) -> None:
    """Remove partly written or partly removed snapshots of a killed run; the run's lock excludes other writers.

    The rows of the snapshot ``but`` stay.
    """
    for path in folder.iterdir():
        is_needed = but is not None and path.name.startswith(f".{but.name}.0")
        if HALF_A_SNAPSHOT.fullmatch(path.name) and not is_needed and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
