"""The lines after a run's last step: what its best weights reached, and the one change that helps most."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli import render
from gptcli.cli.stopping import Stop
from gptcli.config.recipe import RecipeConfig

if TYPE_CHECKING:
    from gptcli.training.run import Run

NATS_TO_BITS = 1 / math.log(2)
MEMORISED = 0.02, 0.95  # nats that the validation loss rose, and share of the training loss that is left since
DROPOUT = 0.3  # for a run that memorised with less


def print_end(run: "Run", stop: Stop, speed: str) -> None:
    """The lines after the last step, and the run's directory on stdout."""
    from gptcli.checkpoints import checkpoint, layout
    from gptcli.device.placement import peak_memory

    is_stopped = stop.number is not None and not run.has_ended
    if is_stopped:
        render.warn(f"Stopped by {stop.name} after step {run.step} of {run.plan.total_steps}. To resume it:")
        command = "train" if run.finetune is None else "finetune"
        render.note(f"  gptcli {command} --resume {render.quoted(str(run.path))}")
    elif run.step < run.plan.total_steps:
        render.note(f"The run ended after step {run.step} of {run.plan.total_steps}, by --max-time or --early-stop.")
    if run.peak is not None and speed:
        most = f"{render.human_flops(run.peak.flops)} in {run.precision.name}, {run.peak.source}"
        each = 6 if run.adapter is None else 4  # frozen weights have no gradients
        render.note(f"{speed} ({most}), counting {each} FLOPs a parameter and token.")
    training = layout.read_config(run.path)[1]["training"]
    rows = checkpoint.read_metrics(run.path) if (run.path / layout.METRICS).exists() else []
    for line in [best_line(run, training, rows), "" if is_stopped else advice(run, training, rows)]:
        if line:
            render.note(line)
    peak_bytes = render.human_bytes(peak_memory(run.placement.device))
    what, command = ("Classify texts", "classify") if run.model_config.labels else ("Generate text", "generate")
    render.note(f"The checkpoint is in {run.path} (peak memory {peak_bytes}). {what} with it:")
    render.note(f"  gptcli {command} {render.quoted(run.known_prompt())} --checkpoint {render.quoted(str(run.path))}")
    render.print_text(str(run.path))


def best_line(run: "Run", training: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What the best evaluation reached, where, and what came after.

    Args:
        run: one whose session is over.
        training: what config.json says of it.
        rows: of metrics.jsonl.
    """
    best = training.get("best")
    if best is None:
        why = "no text is held out" if not run.plan.validation_windows else "no evaluation could be ranked"
        return f"The last weights are kept: {why}, so that the best ones are unknown."
    where = f"at step {best['step']}" if best["step"] >= 0 else "before the first step, with the initial weights"
    line = f"Best on unseen text: {_loss(run, best['val_loss'])} {where}"
    is_last = not rows or rows[-1]["step"] <= best["step"]
    if training["weights"] == "last":
        return f"{line}{', the last one' if is_last else ''}. The last weights are kept, as --final says."
    line += ", the last one, kept." if is_last else ", kept."
    if not is_last and _memorised(best, rows[-1]):
        line += f" After that the run memorised (training {best['train_loss']:.2f} to {rows[-1]['train_loss']:.2f})."
    elif not is_last and rows[-1]["train_loss"] > max(best["val_loss"], best["train_loss"] or 0):
        line += f" After that the training loss rose to {rows[-1]['train_loss']:.2f}."
    return line


def advice(run: "Run", training: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The one change that helps most, with a command; empty where none stands out. Arguments as of `best_line`."""
    from gptcli.training.trouble import FIRST_STEPS, RISE, TOO_HIGH, lower_rate, other_rate, suited_rate

    best = training.get("best")
    if not rows or run.plan.total_steps <= FIRST_STEPS:
        return ""
    first, last, lowest = rows[0]["train_loss"], rows[-1]["train_loss"], min(row["train_loss"] for row in rows)
    guessing, rate = math.log(run.model_config.n_outputs), run.recipe.learning_rate
    too_high = run.recipe.optimizer in ("adamw", "adam") and rate > TOO_HIGH * suited_rate(run.model_config)
    other = other_rate(run.model_config, run.recipe, first, last) if last > guessing else None
    if too_high or last > lowest + RISE:
        other = lower_rate(run.model_config, run.recipe)
    if other is not None:
        which = "lower" if other < rate else "higher"
        return _again(run, f"a {which} learning rate than {rate:g}", "--learning-rate", f"{other:g}")
    if best is None or best["train_loss"] is None:
        return ""
    if _memorised(best, rows[-1]):
        return _against_memorising(run)
    if rows[-1]["step"] <= best["step"] and run.step == run.plan.total_steps:
        if run.recipe.for_time is not None:
            return _longer(run, 2 * run.recipe.for_time)
        name, value = ("max-steps", run.recipe.max_steps) if run.recipe.max_steps else ("epochs", run.recipe.epochs)
        return _again(run, "more steps, for the loss was still falling", f"--{name}", str(2 * value))
    return ""


def _against_memorising(run: "Run") -> str:
    """With dropout 0.3, the run of `make demo` reached a lower validation loss (4.912 beside 4.954, one seed)."""
    if run.model_config.drop_rate < DROPOUT and run.recipe.for_time is None:  # budget.py has chosen the dropout
        return _again(run, "more text, or else more dropout", "--drop-rate", f"{DROPOUT:g}")
    return "What helps most: more text."


def _longer(run: "Run", seconds: float) -> str:
    """A line on more time, with a command that chooses anew: the file of a run for a fixed time has no time in it."""
    what, source, usual = "more time, for the loss was still falling", run.source, RecipeConfig()
    options: list[object] = ["--for", f"{seconds:g}s"]
    options += ["--encoding", source["encoding"]] if source.get("encoding") else []
    options += ["--errors", source["errors"]] if source.get("errors", "strict") != "strict" else []
    options += ["--allow-special"] if source.get("allow_special") else []
    for name in ("train_share", "seed"):
        if getattr(run.recipe, name) != getattr(usual, name):
            options += [f"--{name.replace('_', '-')}", getattr(run.recipe, name)]
    told = " ".join(render.quoted(str(option)) for option in options)
    if "-" in source["texts"]:
        return f"What helps most: {what} ({told})."
    texts = " ".join(render.quoted(_shown(text)) for text in source["texts"])
    return f"What helps most: {what}. gptcli train {texts} {told} --out {render.quoted(str(_next(run.path)))}"


def _shown(text: str) -> str:
    """A text's absolute path as it is shorter, from the working directory."""
    path = Path(text)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else text


def _again(run: "Run", what: str, *options: str) -> str:
    """A line on ``what`` helps, with the command that repeats the run so."""
    from gptcli.checkpoints.layout import SETTINGS

    if "-" in run.source["texts"]:
        return f"What helps most: {what} ({' '.join(options)})."
    command = "train" if run.finetune is None else "finetune"
    words = ["gptcli", command, "--config", str(run.path / SETTINGS), "--out", str(_next(run.path)), *options]
    return f"What helps most: {what}. {' '.join(map(render.quoted, words))}"


def _next(path: Path) -> Path:
    """A name beside ``path`` that is free."""
    return next(new for n in range(2, 10_000) if not (new := path.with_name(f"{path.name}-{n}")).exists())


def _memorised(best: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    if best["train_loss"] is None or last["val_loss"] is None:
        return False
    rose, left = MEMORISED
    return bool(last["val_loss"] > best["val_loss"] + rose and last["train_loss"] < left * best["train_loss"])


def _loss(run: "Run", nats: float) -> str:
    from gptcli.data import text_record
    from gptcli.training import loss_plots

    record = text_record.read(run.path)
    part = record and record.validation
    bits = f" ({nats * NATS_TO_BITS / part.bytes_per_token:.2f} bits a byte)" if part and part.bytes_per_token else ""
    return f"{nats:.3f} {loss_plots.unit_of(run.path)}{bits}"
