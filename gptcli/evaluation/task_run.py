"""Score the items of a task with one checkpoint; resume from the rows of an interrupted run of the same measurement."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptcli.checkpoints.checkpoint import Checkpoint
from gptcli.checkpoints.layout import require_language_model, weights_file
from gptcli.device.placement import Placement
from gptcli.evaluation import log_likelihood, results_log, tasks
from gptcli.evaluation.results_log import Journal
from gptcli.evaluation.task_files import Item


class TaskRun:
    """One measurement of a task; made by `opened`.

    Attributes:
        items: the items of the task.
        done: the rows of the items scored so far, by the line of the item.
    """

    def __init__(
        self, loaded: Checkpoint, items: Sequence[Item], setting: Mapping[str, Any], batch_size: int | None,
        placement: Placement, done: dict[int, dict[str, Any]], log: Journal | None,
    ) -> None:  # fmt: skip
        self.items, self.done = items, done
        self._loaded, self._setting, self._placement, self._log = loaded, setting, placement, log
        self._batch_size = batch_size or log_likelihood.default_batch_size(min(loaded.config.context_length, 256))

    def run(self) -> Iterator[dict[str, Any]]:
        """Score every item without a row; yield each row after it has been written."""
        left = [item for item in self.items if item.line not in self.done]
        model = self._loaded.runner(self._placement.device, self._placement.dtype)
        bos, file = self._setting["bos"], Path(self._setting["file"])
        for row in tasks.run(model, self._loaded.tokenizer, left, self._batch_size, bos, file):
            self.done[row["line"]] = row
            if self._log is not None:
                self._log.append(row)
            yield row

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all items, in the order of ``items``; call it after `run`."""
        return [self.done[item.line] for item in self.items]


@contextmanager
def opened(
    loaded: Checkpoint,
    items: Sequence[Item],
    setting: Mapping[str, Any],
    out: Path | None,
    batch_size: int | None,
    placement: Placement,
) -> Iterator[TaskRun]:
    """The measurement of ``items``; it writes its rows to ``out`` and reuses those of the same measurement there.

    Args:
        loaded: the checkpoint.
        items: the items of the task's file, or the first of them.
        setting: ``task``, ``file``, ``convention`` and ``bos``.
        out: the file of rows; None to write none.
        batch_size: candidates per forward pass; None for 4,096 tokens, at up to 256 tokens a candidate.
        placement: the device and dtype.

    Raises:
        GptcliError: the model is a classifier; ``out`` was not written by an evaluation, or cannot be written.
    """
    require_language_model(loaded.path, loaded.config)
    if out is None:
        yield TaskRun(loaded, items, setting, batch_size, placement, {}, None)
        return
    # All that determines a row; the number of items and the batch size do not.
    identity = {
        **setting,
        "file": results_log.sha256_of(Path(setting["file"])),
        "weights": results_log.sha256_of(weights_file(loaded.path)),
        "tokenizer": loaded.tokenizer.fingerprint,
        "dtype": str(placement.dtype),
    }
    run = results_log.run_id(identity)
    done = {row["line"]: row for row in results_log.read(out, run)}
    with results_log.opened(out, run) as log:
        yield TaskRun(loaded, items, setting, batch_size, placement, done, log)
