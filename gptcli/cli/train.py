"""gptcli train: a text in, a checkpoint out."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import options, prepare, render, training_view
from gptcli.config.fields import duration as seconds
from gptcli.config.model import PRESETS, GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.data.open import Callbacks
    from gptcli.training.distributed import World

DEFAULTS, RUNTIME = RecipeConfig(), RuntimeConfig()
OF_THIS_PROCESS = {"resume", "quiet", "verbose", "debug"}  # no settings of the run
COURSE_MODEL: dict[str, Any] = {"drop_rate": 0.1, "qkv_bias": False, "tie_weights": False}

model_option = partial(typer.Option, rich_help_panel="Model")
training_option = partial(typer.Option, rich_help_panel="Training")
watching_option = partial(typer.Option, rich_help_panel="Watching")
saving_option = partial(typer.Option, rich_help_panel="Saving and going on")
speed_option = partial(typer.Option, rich_help_panel="Memory, speed, processes")
text_option = partial(typer.Option, rich_help_panel="Text")


def duration(text: str) -> float:
    """Seconds of 90s, 10m, 2h or a plain number of seconds."""
    try:
        return seconds(text)
    except ValueError:
        raise GptcliError(f"--max-time is {text!r}, which is no duration.", "Give 90s, 10m or 2h.") from None


def step_windows(text: str) -> tuple[int, bool]:
    """Windows a step of 12, auto or auto:12, and whether to find out how many of them fit into memory at once."""
    automatic = text == "auto" or text.startswith("auto:")
    number = text.removeprefix("auto").removeprefix(":") if automatic else text
    try:
        return (int(number) if number else DEFAULTS.batch_size), automatic
    except ValueError:
        raise GptcliError(
            f"--batch-size is {text!r}, which is no number of windows.", "Give a number, auto, or auto:64."
        ) from None


def train(
    context: typer.Context,
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
        Path | None, typer.Option("--init-from", help="Go on from this checkpoint's weights, tokenizer and shape.")
    ] = None,
    resume: Annotated[
        Path | None, saving_option("--resume", metavar="RUN", help="Go on with this run as if it had never stopped.")
    ] = None,
    save_every: Annotated[
        int | None,
        saving_option("--save-every", help="Steps between snapshots; by default as often as it takes 2% of the time."),
    ] = None,
    keep: Annotated[
        int, saving_option("--keep", help="Newest snapshots to keep, besides the one with the best validation loss.")
    ] = RUNTIME.keep,
    size: Annotated[
        str | None, model_option("--size", help=f"Model preset: {', '.join(PRESETS)} (small by default).")
    ] = None,
    tokenizer: Annotated[
        str | None, model_option("--tokenizer", help="gpt2, char, byte or word (gpt2 by default).")
    ] = None,
    context_length: Annotated[
        int | None,
        model_option("--context-length", help=f"Tokens the model sees at once ({DEFAULTS.context_length} by default)."),
    ] = None,
    emb_dim: Annotated[int | None, model_option("--emb-dim", help="Width; the preset's by default.")] = None,
    n_heads: Annotated[int | None, model_option("--n-heads", help="Attention heads; the preset's by default.")] = None,
    n_layers: Annotated[
        int | None, model_option("--n-layers", help="Transformer blocks; the preset's by default.")
    ] = None,
    drop_rate: Annotated[float | None, model_option("--drop-rate", help="Dropout (0.1 by default).")] = None,
    qkv_bias: Annotated[
        bool | None, model_option("--qkv-bias/--no-qkv-bias", help="Bias in the qkv projection (off by default).")
    ] = None,
    tie_weights: Annotated[
        bool | None,
        model_option("--tie-weights/--no-tie-weights", help="Token embedding as output head (off by default)."),
    ] = None,
    init: Annotated[
        str, model_option("--init", help="First weights: course (torch's defaults) or gpt2 (std 0.02).")
    ] = DEFAULTS.init,
    epochs: Annotated[int, training_option("--epochs", help="Times through the text.")] = DEFAULTS.epochs,
    max_steps: Annotated[
        int | None, training_option("--max-steps", help="Stop after so many steps, whatever --epochs says.")
    ] = None,
    max_time: Annotated[
        float | None,
        training_option("--max-time", parser=duration, metavar="TIME", help="Stop after so long, as in 90s, 10m, 2h."),
    ] = None,
    early_stop: Annotated[
        int | None, training_option("--early-stop", help="Stop after N evaluations without a better validation loss.")
    ] = None,
    batch_size: Annotated[
        str,
        training_option(
            "--batch-size",
            metavar="N|auto|auto:N",
            help="Windows a step. auto: computed in as few parts as memory has room for, 4 windows in all or N.",
        ),
    ] = str(DEFAULTS.batch_size),
    stride: Annotated[
        int | None, training_option("--stride", help="Tokens from one window to the next; the context by default.")
    ] = None,
    learning_rate: Annotated[
        float, training_option("--learning-rate", "--lr", help="The optimizer's peak rate.")
    ] = DEFAULTS.learning_rate,
    optimizer: Annotated[
        str, training_option("--optimizer", help="adamw, adam, sgd (with momentum), adafactor or muon.")
    ] = DEFAULTS.optimizer,
    schedule: Annotated[
        str, training_option("--schedule", help="After the warm-up: constant, cosine or linear.")
    ] = DEFAULTS.schedule,
    warmup_steps: Annotated[
        int, training_option("--warmup-steps", help="Steps of linear warm-up.")
    ] = DEFAULTS.warmup_steps,
    min_learning_rate: Annotated[
        float | None,
        training_option("--min-learning-rate", help="Where the schedule ends; a tenth of the peak by default."),
    ] = None,
    weight_decay: Annotated[float, training_option("--weight-decay", help="On matrices only.")] = DEFAULTS.weight_decay,
    beta1: Annotated[float, training_option("--beta1", help="AdamW's first decay; sgd's momentum.")] = DEFAULTS.beta1,
    beta2: Annotated[float, training_option("--beta2", help="AdamW's second decay rate.")] = DEFAULTS.beta2,
    grad_clip: Annotated[
        float, training_option("--grad-clip", help="Largest gradient norm, 0 for no limit.")
    ] = DEFAULTS.grad_clip,
    seed: Annotated[
        int, training_option("--seed", help="Of weights, order and dropout: same seed, same run.")
    ] = DEFAULTS.seed,
    accumulate: Annotated[
        int | None, speed_option("--accumulate", help="Compute a step in N parts: less memory, the same result.")
    ] = RUNTIME.accumulate,
    recompute: Annotated[
        bool, speed_option("--recompute", help="Compute activations again instead of keeping them: less memory.")
    ] = RUNTIME.recompute,
    compile: Annotated[  # noqa: A002
        bool | None,
        speed_option(
            "--compile/--no-compile",
            help="Let torch.compile fuse each block; by default on one GPU, if the run is long enough to gain from it.",
        ),
    ] = RUNTIME.compile,
    shard: Annotated[
        bool, speed_option("--shard", help="Under torchrun: every process holds a part of the model (FSDP2).")
    ] = RUNTIME.shard,
    dtype: options.TrainingDtype = "auto",
    train_share: Annotated[
        float, watching_option("--train-share", help="Share of the characters (of prepared tokens) to train on.")
    ] = DEFAULTS.train_share,
    eval_every: Annotated[
        int, watching_option("--eval-every", help="Steps between evaluations.")
    ] = DEFAULTS.eval_every,
    eval_batches: Annotated[
        int, watching_option("--eval-batches", help="Batches of each part an evaluation looks at.")
    ] = DEFAULTS.eval_batches,
    eval_all: Annotated[
        bool, watching_option("--eval-all", help="Evaluate on the whole validation part.")
    ] = DEFAULTS.eval_all,
    sample_every: Annotated[
        int, watching_option("--sample-every", help="Epochs between sample texts; 0 for none.")
    ] = RUNTIME.sample_every,
    sample_prompt: Annotated[
        str, watching_option("--sample-prompt", help="What the samples continue.")
    ] = RUNTIME.sample_prompt,
    log: Annotated[
        str, watching_option("--log", help="none, or tensorboard: event files in the run's directory as well.")
    ] = RUNTIME.log,
    encoding: Annotated[
        str | None, text_option("--encoding", help="Of the texts; UTF-8 or their byte-order mark by default.")
    ] = None,
    errors: Annotated[
        str, text_option("--errors", help="Bytes that do not decode: strict, replace or ignore.")
    ] = "strict",
    allow_special: Annotated[
        bool, text_option("--allow-special", help="Read <|endoftext|> in the text as the token, not as text.")
    ] = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a GPT on your texts. With no option but a file it is the course's pretraining run.

    Prints the run's directory on stdout. Ctrl-C and SIGTERM write a checkpoint and stop; whatever stopped a run,
    --resume RUN goes on with it. Several processes: torchrun --nproc-per-node N -m gptcli train …
    """
    given = {name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
    windows, automatic = step_windows(batch_size)
    if automatic and (resume is not None or "accumulate" in given):
        raise GptcliError(
            f"--batch-size {batch_size} cannot be combined with {'--resume' if resume is not None else '--accumulate'}:"
            " it finds out in how many parts to compute a step.",
            "Leave one of the two out; --accumulate N may change from one session to the next.",
        )
    options.check_text(sample_prompt, "--sample-prompt")
    if resume is not None:
        named = {name: value for name, value in context.params.items() if name in given - OF_THIS_PROCESS}
        named |= {"batch_size": windows} if "batch_size" in named else {}
        _go_on(resume, named)
        return
    if not texts:
        raise GptcliError(
            "There is no text to train on.", "Give a file, a folder, or - for stdin; see gptcli train --help."
        )
    shape = {
        "context_length": context_length, "emb_dim": emb_dim, "n_heads": n_heads, "n_layers": n_layers,
        "drop_rate": drop_rate, "qkv_bias": qkv_bias, "tie_weights": tie_weights,
    }  # fmt: skip
    base = GPTConfig.preset(size or "small", **(COURSE_MODEL | {k: v for k, v in shape.items() if v is not None}))
    settings = context.params | {"batch_size": windows}
    if context_length is None:
        settings["context_length"] = min(DEFAULTS.context_length, base.context_length)
    recipe = RecipeConfig(**{field.name: settings[field.name] for field in fields(RecipeConfig)})
    runtime = RuntimeConfig(**{field.name: settings[field.name] for field in fields(RuntimeConfig)})
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

    world = _world()
    training_view.show(new_run(
        out or layout.ROOT / _run_name(texts),
        TextOptions(texts, recipe.train_share, encoding, errors, allow_special), recipe, runtime, base,
        shape=shape, named=given, tokenizer=tokenizer, init_from=init_from, force=force, world=world,
        callbacks=_callbacks(),
    ))  # fmt: skip


def _go_on(run: Path, given: dict[str, Any]) -> None:
    from gptcli.training import resume

    world = _world()
    with resume.resumed(run, given, world=world, callbacks=_callbacks()) as resumed:
        training_view.show(resumed)


def _world() -> "World":
    """The processes of this run; from here on only the first one prints."""
    from gptcli.training import distributed

    world = distributed.from_environment()
    render.verbosity.rank = world.rank
    return world


def _callbacks() -> "Callbacks":
    from gptcli.data.open import Callbacks

    return Callbacks(render.note, render.warn, prepare.run)


def _run_name(texts: list[str]) -> str:
    """What a run is called: the name of its (first) text."""
    if texts[0] == "-":
        return "stdin"
    path = Path(texts[0])
    return "".join(c for c in (path.stem or path.resolve().name) if c not in '*?[]<>:"|') or "run"
