"""How much of the disk a run takes, and how to get back what only its resuming needs. Imports no torch."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from gptcli.checkpoints import overwrite, run_lock
from gptcli.checkpoints.layout import BEST_WEIGHTS, CONFIG, OPTIMIZER, SNAPSHOTS, STATE, read_config, weights_file
from gptcli.config.lora import LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.errors import GptcliError
from gptcli.model.cost import parameter_count
from gptcli.model.parameters import adapter_size, parameter_shapes

FLOAT = 4  # bytes of a parameter in a file
MOMENTS = {
    "adamw": 2.0,
    "adam": 2.0,
    "sgd": 1.0,
    "adafactor": 0.0,
}  # numbers that an optimizer keeps a parameter
HEADERS = 1024  # bytes for a parameter, at most, in the headers of a snapshot's files


@dataclass(frozen=True)
class DiskForecast:
    """Bytes that a run's weights and snapshots take at most, and those that only resuming needs at its end."""

    total: int
    for_resuming: int


def forecast(config: GPTConfig, recipe: RecipeConfig, keep: int, adapter: LoRAConfig | None = None) -> DiskForecast:
    """The most that a run of this shape, or of adapters for it, takes with ``keep`` snapshots.

    A snapshot has the last weights and, of its own where the best are others each time, the best. One is whole before
    the oldest is removed. The run's weights are a link to the best, or, as long as the snapshot of step 0 is there,
    its link to the weights that the run began with.
    """
    shapes = parameter_shapes(config)
    parameters = parameter_count(config)
    # The matrices that Muon keeps one number for.
    inside = 12 * config.n_layers * config.emb_dim**2
    if adapter is not None:
        parameters = inside = adapter_size(config, adapter) + len(config.labels) * config.emb_dim
    if recipe.optimizer == "muon":
        moments = 2 * parameters - inside
    elif recipe.optimizer == "adafactor":  # a number a row and a column
        moments = parameters if adapter is not None else sum(sum(shape) for shape in shapes.values())
    else:
        moments = int(MOMENTS[recipe.optimizer] * parameters)
    moments += parameters if recipe.average_share else 0  # the trained weights beside the average
    weights = FLOAT * parameters
    snapshot = 2 * weights + FLOAT * moments + HEADERS * len(shapes)
    steps = keep + 1 if recipe.max_steps is None else recipe.max_steps
    return DiskForecast(min(keep + 1, steps) * snapshot + weights, min(keep, steps) * snapshot - 2 * weights)


def prune(run: Path) -> int:
    """Remove what only resuming needs: all snapshots but the newest, whose weights, last and best, stay if they are not
    the run's own.

    Returns:
        the bytes that this freed.

    Raises:
        GptcliError: ``run`` is no checkpoint, a process trains it, or a snapshot holds files that gptcli did not write.
    """
    read_config(run)
    with run_lock.held(run):
        folders = sorted((run / SNAPSHOTS).glob("step-*"))
        others = [name for folder in folders for name in overwrite.foreign(folder, overwrite.OF_A_SNAPSHOT)]
        if others:
            raise GptcliError(
                f"A snapshot of {run} holds what gptcli did not write: {', '.join(others[:5])}.",
                "Move it elsewhere first.",
            )
        before = _size(run)
        try:
            for folder in folders[:-1]:
                shutil.rmtree(folder)
            for folder in folders[-1:]:
                _prune_newest(run, folder)
        except OSError as error:
            raise GptcliError(
                f"Cannot remove files of {run}: {error.strerror or error}.", "Check that you may write there."
            ) from error
        return before - _size(run)


def _prune_newest(run: Path, folder: Path) -> None:
    ours, last, best = weights_file(run), weights_file(folder), folder / BEST_WEIGHTS
    lasts_are_ours = not last.exists() or last.samefile(ours)
    about = read_config(run)[1].get("training", {})
    bests_are_ours = not best.exists() or best.samefile(ours) or about.get("weights") == "best"
    if not (lasts_are_ours and bests_are_ours):
        for name in (STATE, OPTIMIZER, *([BEST_WEIGHTS] if bests_are_ours else [])):
            (folder / name).unlink(missing_ok=True)
        return
    shutil.rmtree(folder)
    if not any((run / SNAPSHOTS).iterdir()):
        (run / SNAPSHOTS).rmdir()


def is_pruned(folder: Path) -> bool:
    """Whether a snapshot has only the last weights left."""
    return (folder / CONFIG).exists() and not any((folder / name).exists() for name in (STATE, OPTIMIZER))


def _size(run: Path) -> int:
    """Bytes of all files, each once however many names it has."""
    found = {(about.st_dev, about.st_ino): about.st_size for file in run.rglob("*") if (about := file.stat())}
    return sum(found.values())
