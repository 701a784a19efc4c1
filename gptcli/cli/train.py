"""gptcli train: a text in, a checkpoint out."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gptcli.cli import options, render, training_view
from gptcli.config import PRESETS, GPTConfig, Init, Schedule, TrainConfig
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.corpus import Corpus
    from gptcli.tokenizers import Tokenizer

DEFAULTS = TrainConfig()
COURSE_MODEL: dict[str, Any] = {"drop_rate": 0.1, "qkv_bias": False, "tie_weights": False}

model_option = partial(typer.Option, rich_help_panel="Model")
training_option = partial(typer.Option, rich_help_panel="Training")
watching_option = partial(typer.Option, rich_help_panel="Watching")
text_option = partial(typer.Option, rich_help_panel="Text")


def train(
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Files, folders (.txt and .md), globs, - for stdin.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's directory; checkpoints/<name of the text> by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="Go on from this checkpoint's weights, tokenizer and shape.")
    ] = None,
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
    batch_size: Annotated[int, training_option("--batch-size", help="Windows a step.")] = DEFAULTS.batch_size,
    stride: Annotated[
        int | None, training_option("--stride", help="Tokens from one window to the next; the context by default.")
    ] = None,
    learning_rate: Annotated[
        float, training_option("--learning-rate", "--lr", help="AdamW's peak rate.")
    ] = DEFAULTS.learning_rate,
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
    beta1: Annotated[float, training_option("--beta1", help="AdamW's first decay rate.")] = DEFAULTS.beta1,
    beta2: Annotated[float, training_option("--beta2", help="AdamW's second decay rate.")] = DEFAULTS.beta2,
    grad_clip: Annotated[
        float | None, training_option("--grad-clip", help="Largest gradient norm; none by default.")
    ] = None,
    seed: Annotated[
        int, training_option("--seed", help="Of weights, order and dropout: same seed, same run.")
    ] = DEFAULTS.seed,
    train_share: Annotated[
        float, watching_option("--train-share", help="Share of the characters to train on.")
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
    ] = DEFAULTS.sample_every,
    sample_prompt: Annotated[
        str, watching_option("--sample-prompt", help="What the samples continue.")
    ] = DEFAULTS.sample_prompt,
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

    Prints the run's directory on stdout. Ctrl-C writes a checkpoint and stops.
    """
    shape = {
        "context_length": context_length, "emb_dim": emb_dim, "n_heads": n_heads, "n_layers": n_layers,
        "drop_rate": drop_rate, "qkv_bias": qkv_bias, "tie_weights": tie_weights,
    }  # fmt: skip
    base = GPTConfig.preset(size or "small", **(COURSE_MODEL | {k: v for k, v in shape.items() if v is not None}))
    recipe = TrainConfig(
        context_length=min(DEFAULTS.context_length, base.context_length) if context_length is None else context_length,
        stride=stride, batch_size=batch_size, epochs=epochs, max_steps=max_steps, learning_rate=learning_rate,
        min_learning_rate=min_learning_rate, warmup_steps=warmup_steps, schedule=cast(Schedule, schedule),
        weight_decay=weight_decay, beta1=beta1, beta2=beta2, grad_clip=grad_clip, train_share=train_share,
        eval_every=eval_every, eval_batches=eval_batches, eval_all=eval_all, sample_every=sample_every,
        sample_prompt=sample_prompt, init=cast(Init, init), seed=seed,
    )  # fmt: skip
    if init_from is not None and (tokenizer is not None or size is not None):
        raise GptcliError(
            f"--{'tokenizer' if tokenizer else 'size'} cannot be combined with --init-from: the checkpoint decides it.",
            "Leave one of the two out.",
        )

    from gptcli import checkpoint, documents

    run_dir = out or checkpoint.ROOT / _run_name(texts)
    checkpoint.check_output(run_dir, force)
    read = documents.read_documents(texts, encoding=encoding, errors=errors)
    origin = checkpoint.load(checkpoint.find(init_from)) if init_from is not None else None
    corpus, its_tokenizer = _prepare_corpus([d.text for d in read], tokenizer, origin, recipe, allow_special)
    if origin is None:
        window = min(recipe.context_length, len(corpus.train) - 1)
        model_config = base.with_changes(vocab_size=its_tokenizer.vocab_size, context_length=window)
    else:
        model_config = _continued_shape(origin, shape)
        if context_length is None:
            recipe = replace(recipe, context_length=min(DEFAULTS.context_length, origin.config.context_length))
    training_view.TrainingRun(
        run_dir, recipe, corpus, its_tokenizer, model_config, origin, device=device, threads=threads, force=force
    ).go()


def _run_name(texts: list[str]) -> str:
    """What a run is called: the name of its (first) text."""
    if texts[0] == "-":
        return "stdin"
    path = Path(texts[0])
    return "".join(c for c in (path.stem or path.resolve().name) if c not in '*?[]<>:"|') or "run"


def _prepare_corpus(
    texts: list[str], kind: str | None, origin: "Checkpoint | None", recipe: TrainConfig, allow_special: bool
) -> "tuple[Corpus, Tokenizer]":
    from gptcli import tokenizers
    from gptcli.corpus import make_corpus

    if kind is not None and kind not in tokenizers.KINDS:
        raise GptcliError(f"There is no tokenizer {kind!r}.", nearest(kind, tokenizers.KINDS))
    its_tokenizer = origin.tokenizer if origin else tokenizers.build(kind or "gpt2", "\n".join(texts))
    corpus = make_corpus(texts, its_tokenizer, recipe.train_share, allow_special)
    for line in corpus.notes:
        render.warn(line)
    return corpus, its_tokenizer


def _continued_shape(origin: "Checkpoint", shape: dict[str, Any]) -> GPTConfig:
    """The checkpoint's shape; dropout may change, and the windows may be shorter than its context."""
    for name, value in shape.items():
        theirs = getattr(origin.config, name)
        if name == "context_length" and value is not None and value > theirs:
            raise GptcliError(
                f"--context-length {value} is larger than the context of {origin.path}, {theirs}.",
                f"Give at most {theirs}: its position embeddings end there.",
            )
        if name not in ("context_length", "drop_rate") and value is not None and value != theirs:
            raise GptcliError(
                f"--{name.replace('_', '-')} is {value}, but {origin.path} has {theirs}.",
                "Leave it out: with --init-from the checkpoint decides the shape.",
            )
    return origin.config.with_changes(drop_rate=shape["drop_rate"])
