"""gptcli train: a text in, a checkpoint out."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import mistakes, options, prepare, render, settings_command, training_view
from gptcli.cli.clock import command_clock
from gptcli.config.fields import as_dict
from gptcli.config.model import PRESET_RATES, PRESETS, GPTConfig, ShapeChanges
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.config.text import TextConfig
from gptcli.errors import GptcliError, SettingError

if TYPE_CHECKING:
    from gptcli.data.open import Callbacks
    from gptcli.training.budget import Budget
    from gptcli.training.distributed import World

OF_THIS_PROCESS = {"resume", "quiet", "verbose", "debug", "texts_sha256"}  # no settings of the run
COURSE_MODEL: dict[str, Any] = {"drop_rate": 0.1, "qkv_bias": False, "tie_weights": False}

model_option = partial(typer.Option, rich_help_panel="Model")


def step_windows(text: str) -> int | str:
    """The number of windows of 12, or auto:12 for auto:12; auto stands for auto: and the default number."""
    number = text.removeprefix("auto").removeprefix(":") if text == "auto" or text.startswith("auto:") else text
    try:
        count = int(number) if number else RecipeConfig.batch_size
    except ValueError:
        raise SettingError(
            f"{{batch_size}} is {text!r}, which is no number of windows.", "Give a number, auto, or auto:64."
        ) from None
    return count if number == text else f"auto:{count}"


def train(
    context: typer.Context,
    model: ShapeChanges,
    recipe: RecipeConfig,
    runtime: RuntimeConfig,
    text: TextConfig,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Files, folders (.txt and .md), globs, - for stdin; or one folder of gptcli prepare.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's directory; checkpoints/<name of the text> by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="Start from this checkpoint's weights, tokenizer and shape.")
    ] = None,
    resume: options.Resume = None,
    size: Annotated[
        str | None,
        model_option("--size", help=f"Model preset, with a rate to suit: {', '.join(PRESETS)} (small by default)."),
        {"decides": {"learning_rate": PRESET_RATES}},
    ] = None,
    tokenizer: Annotated[
        str | None,
        model_option(
            "--tokenizer",
            help="gpt2 (the default), char, byte, word; bpe:N: train one of N tokens; or a directory that holds one.",
        ),
    ] = None,
    batch_size: Annotated[
        Any,
        typer.Option(
            "--batch-size",
            parser=step_windows,
            metavar="N|auto|auto:N",
            rich_help_panel="Training",
            help="Windows a step. auto: computed in as few parts as memory has room for, 4 windows in all or N.",
        ),
    ] = str(RecipeConfig.batch_size),
    texts_sha256: Annotated[
        str | None, typer.Option("--texts-sha256", hidden=True, help="Of the tokens that a run's config.toml was for.")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a GPT on your texts. With no option but a file, it is the pretraining run of Raschka's course.

    Prints the run's directory on stdout. Ctrl-C and SIGTERM write a checkpoint and stop; --resume RUN
    continues a run that has stopped. Several processes: torchrun --nproc-per-node N -m gptcli train …
    """
    given = settings_command.by_flag(context)
    automatic = isinstance(batch_size, str)
    windows = int(batch_size.removeprefix("auto:")) if automatic else batch_size
    options.check_text(runtime.sample_prompt, "--sample-prompt")
    if resume is not None:
        _refuse_auto(batch_size, "batch_size" in given, "--resume")
        given = {name: value for name, value in given.items() if name not in OF_THIS_PROCESS}
        go_on(resume, given, settings_command.by_file_or_variable(context))
        return
    _refuse_auto(batch_size, "accumulate" in given, "--accumulate")
    if not texts:
        raise GptcliError(
            "There is no text to train on.", "Give a file, a folder, or - for stdin; see gptcli train --help."
        )
    mistakes.refuse_option_names(texts, context)
    shape = as_dict(model)
    changes = COURSE_MODEL | {name: value for name, value in shape.items() if value is not None}
    if recipe.for_time is not None and size is None:
        changes.setdefault("n_heads", 1)  # any: heads that divide the width are chosen
    base = GPTConfig.preset(size or "small", **changes)
    length = model.context_length or min(RecipeConfig.context_length, base.context_length)
    recipe = replace(recipe, batch_size=windows, context_length=length)
    runtime.check_with(recipe)
    if automatic:
        runtime = replace(runtime, accumulate=None)
    if init_from is not None and (tokenizer is not None or size is not None):
        raise GptcliError(
            f"--{'tokenizer' if tokenizer else 'size'} cannot be combined with --init-from: the checkpoint decides it.",
            "Leave one of the two out.",
        )

    from gptcli.checkpoints import layout
    from gptcli.data.open import TextOptions
    from gptcli.training.new_run import new_run

    processes = world()
    budget = None if recipe.for_time is None else _budget(recipe.for_time, settings_command.changed(context))
    run = new_run(
        out or layout.ROOT / run_name(texts),
        TextOptions(texts, recipe.train_share, text.encoding, text.errors, text.allow_special), recipe, runtime, base,
        shape=shape, named=settings_command.changed(context), tokenizer=tokenizer, init_from=init_from, force=force,
        world=processes, callbacks=callbacks(), budget=budget,
    )  # fmt: skip
    if texts_sha256 not in (None, run.source["sha256"]) and "texts" not in given:
        render.warn(f"The texts ({', '.join(texts)}) are not what they were: the run will differ.")
    training_view.show(run)


def _budget(seconds: float, given: set[str]) -> "Budget":
    from gptcli.training.budget import Budget

    given = given | {"emb_dim", "n_layers", "n_heads"} if "size" in given else given
    return Budget(seconds, command_clock.started, given, render.note)


def _refuse_auto(batch_size: int | str, combined: bool, with_option: str) -> None:
    if isinstance(batch_size, str) and combined:
        raise SettingError(
            f"{{batch_size}} auto cannot be combined with {with_option}: it finds out in how many parts to "
            "compute a step.",
            "Leave one of the two out; --accumulate N may change from one session to the next.",
        )


def go_on(run: Path, given: dict[str, Any], offered: dict[str, Any]) -> None:
    """Resume ``run`` with the options ``given``, and what a file or variables say as far as it may change."""
    from gptcli.training import resume

    processes = world()
    ignored = [name for name in offered if name not in (*resume.MAY_CHANGE, *OF_THIS_PROCESS)]
    if ignored:
        render.warn(f"The run keeps its own settings: a file's or a variable's are ignored for {', '.join(ignored)}.")
    given = {name: value for name, value in offered.items() if name in resume.MAY_CHANGE} | given
    started = command_clock.started
    with resume.resumed(run, given, world=processes, callbacks=callbacks(), started=started) as resumed:
        training_view.show(resumed)


def world() -> "World":
    """The processes of this run; from here on only the first one prints."""
    from gptcli.training import distributed

    world = distributed.from_environment()
    render.verbosity.rank = world.rank
    return world


def callbacks() -> "Callbacks":
    from gptcli.data.open import Callbacks

    return Callbacks(render.note, render.warn, prepare.run)


def run_name(texts: list[str]) -> str:
    """What a run is called: the name of its (first) text."""
    if texts[0] == "-":
        return "stdin"
    path = Path(texts[0])
    return "".join(c for c in (path.stem or path.resolve().name) if c not in '*?[]<>:"|') or "run"
