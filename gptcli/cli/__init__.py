"""The command line. One file a command; nothing here imports torch before a command needs it."""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import typer

from gptcli import __version__
from gptcli.cli import (
    bench,
    checkpoints,
    count_params,
    download,
    evaluate,
    export,
    generate,
    inspect_attn,
    inspect_embeddings,
    inspect_flow,
    inspect_gradients,
    inspect_logits,
    load_gpt2,
    options,
    plot,
    quantize,
    render,
    tokenize,
    train,
)
from gptcli.errors import GptcliError

app = typer.Typer(
    name="gptcli",
    help="Train, run and open up GPT-2-class language models.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        render.print_text(f"gptcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# (name on the command line, function, panel of --help), in the order that --help shows.
COMMANDS: list[tuple[str, Callable[..., None], str]] = [
    ("train", train.train, options.MAKE),
    ("plot", plot.plot, options.MAKE),
    ("download", download.download, options.MAKE),
    ("generate", generate.generate, options.SPEAK),
    ("tokenize", tokenize.tokenize, options.SPEAK),
    ("inspect-flow", inspect_flow.inspect_flow, options.LOOK),
    ("inspect-attn", inspect_attn.inspect_attn, options.LOOK),
    ("inspect-logits", inspect_logits.inspect_logits, options.LOOK),
    ("inspect-embeddings", inspect_embeddings.inspect_embeddings, options.LOOK),
    ("inspect-gradients", inspect_gradients.inspect_gradients, options.LOOK),
    ("count-params", count_params.count_params, options.MEASURE),
    ("evaluate", evaluate.evaluate, options.MEASURE),
    ("bench", bench.bench, options.MEASURE),
    ("quantize", quantize.quantize, options.WEIGHTS),
    ("load-gpt2", load_gpt2.load_gpt2, options.WEIGHTS),
    ("checkpoints", checkpoints.checkpoints, options.WEIGHTS),
    ("export", export.export, options.WEIGHTS),
]

for _name, _function, _panel in COMMANDS:
    app.command(_name, rich_help_panel=_panel)(_function)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    render.verbosity.reset()
    render.use_utf8()
    try:
        code = app(args=None if args is None else list(args), prog_name="gptcli", standalone_mode=False)
    except GptcliError as error:
        render.fail(error)
        return 2
    except typer.TyperException as error:
        render.fail(_as_user_error(error, sys.argv[1:] if args is None else args))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        render.warn("Interrupted.")
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: there is nobody to tell.
        sys.stdout = None
        return 0
    return code if isinstance(code, int) else 0


def _as_user_error(error: typer.TyperException, args: Sequence[str]) -> GptcliError:
    """A mistyped command, option or value, in our two lines."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "gptcli"
    format_message = getattr(error, "format_message", None)
    message = " ".join((format_message() if format_message is not None else str(error)).split()).rstrip(".")
    names = getattr(getattr(error, "param", None), "opts", [])
    given = [value for name, value in pairwise(args) if name in names]
    if given and given[-1] not in message:
        message += f": {given[-1]!r}"
    return GptcliError(message if message.endswith("?") else f"{message}.", f"See: {command} --help")
