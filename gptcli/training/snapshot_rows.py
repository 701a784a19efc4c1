"""A snapshot of shards: every process writes the rows that it holds, and the first reads them as whole tensors."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from gptcli.checkpoints.checkpoint import cannot_write
from gptcli.checkpoints.layout import BEST_WEIGHTS, OPTIMIZER, WEIGHTS
from gptcli.checkpoints.row_shards import merged
from gptcli.checkpoints.safetensors_file import write_tensors
from gptcli.checkpoints.tensor_files import Tensors
from gptcli.errors import SettingError
from gptcli.training.snapshots import Snapshot, newest, rows_folder

FILES = WEIGHTS, OPTIMIZER, BEST_WEIGHTS


def write(run: Path, step: int, rank: int, tensors: Sequence[Tensors]) -> None:
    """Write what process ``rank`` holds of the weights, the state and the best weights after ``step`` steps.

    Raises:
        GptcliError: the disk is full or not writable.
    """
    folder = rows_folder(run, step, rank)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    for name, own in zip(FILES, tensors, strict=True):
        write_tensors(folder / name, own)


def read(run: Path, step: int, processes: int) -> list[Tensors]:
    """The weights, the state and the best weights, of the rows that all processes have written.

    Raises:
        GptcliError: a process has written them elsewhere.
    """
    folders = [rows_folder(run, step, rank) for rank in range(processes)]
    for rank, folder in enumerate(folders):
        if not (folder / WEIGHTS).exists():
            raise SettingError(
                f"Process {rank} has written its part of the model to another disk than {run}.",
                f"With {{shard}} all processes need {run} on a disk that they share.",
            )
    found = [merged([folder / name for folder in folders]) for name in FILES]
    return [tensors if tensors.shapes else {} for tensors in found]


def first(run: Path, rank: int) -> Snapshot:
    """The snapshot of step 0, which the first process has made, for process ``rank`` to take its rows from.

    Raises:
        GptcliError: it is not there.
    """
    if not run.exists():
        raise SettingError(
            f"Process {rank} does not find {run}, which the first process has made.",
            f"With {{shard}} all processes need {run} on a disk that they share.",
        )
    return newest(run)[0]
