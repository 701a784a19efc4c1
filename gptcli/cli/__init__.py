"""The command line. One file a command; nothing here imports torch before a command needs it."""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gptcli import __version__
from gptcli.cli import mistakes, next_steps, render, settings_command, streams
from gptcli.cli.clock import command_clock
from gptcli.cli.lazy import LazyCommand
from gptcli.device import resources
from gptcli.device.allocator import out_of_memory
from gptcli.errors import GptcliError

SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

# Command -> its line in --help, panel by panel, in the order that --help shows.
COMMANDS: dict[str, dict[str, str]] = {
    "Train": {
        "train": "Train a GPT on your texts. With no option but a file, it is the pretraining run of Raschka's course.",
        "finetune": "Fine-tune a checkpoint on your texts, pairs, chats or labels, in a run of its own.",
        "prepare": "Encode texts of any size into token shards, which gptcli train reads by memory map.",
        "train-tokenizer": "Train a vocabulary of your own on texts: byte-level BPE like GPT-2's, of any size.",
        "plot": "Draw the losses of several runs in one picture and in the terminal.",
        "download": "Write the bundled story, or fetch a public-domain text to train on and check it.",
    },
    "Generate": {
        "generate": "Continue a prompt with a checkpoint. The text goes to stdout, and nothing else does.",
        "classify": "Print the label of a text and its probability, or those of every row of a file.",
        "tokenize": "Show a text as tokens: their pieces, their ids and how many there are.",
    },
    "Look inside": {
        "inspect-flow": (
            "Follow one token from its id to the choice of the next token: what each step adds, and every shape."
        ),
        "inspect-attn": "Show what attention heads attend to: all heads with their patterns, or the map of one.",
        "inspect-logits": "Show what the model predicts after each token, and the surprisal of the token that follows.",
        "inspect-embeddings": (
            "Compare words as vectors: similarity, neighbours, analogies, one word in two places; --png draws them."
        ),
        "inspect-gradients": "Show the gradient's norm by layer and component after one backward pass over a text.",
    },
    "Measure": {
        "count-params": "Count parameters, bytes, training memory and FLOPs of a size, a checkpoint or any shape.",
        "evaluate": "Measure a model on a text (perplexity) or on a task (accuracy), and print the protocol.",
        "bench": "Time loading, prefill, decoding, a batch and a training step, each with its limit.",
    },
    "Weights": {
        "quantize": "Pack a checkpoint's weights in 8 or 4 bits; generate and evaluate open the result like any other.",
        "merge": "Write a low-rank adapter and the checkpoint that it changes as one checkpoint, which needs neither.",
        "load-gpt2": "Write GPT-2 weights as a checkpoint, from the hub or from files that you have.",
        "checkpoints": "List the checkpoints under checkpoints/, or describe one.",
        "export": "Write a checkpoint in another dtype or format, read it back and compare it.",
    },
    "Help": {
        "guide": "Read the guide: training, generating, speed, inspection, every option.",
        "doctor": "Check what is installed, what works and what is missing; exit 1 if gptcli cannot work.",
    },
}

ABOUT = """Train, run and inspect GPT-2-class language models.

\b
gptcli download story                      write a story into data/story.txt
gptcli train data/story.txt --size tiny    train a small model on it
gptcli generate "When the bell rings"      let the model continue a text
"""


class Group(TyperGroup):
    """All commands; help shows no type of an option that takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [settings_command.show_no_type(each) for each in super().get_params(ctx)]


app = typer.Typer(
    cls=Group,
    name="gptcli",
    help=ABOUT,
    **SETTINGS | {"add_completion": True},
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


group: Any = typer.main.get_command(app)
for _panel, _lines in COMMANDS.items():
    for _name, _help in _lines.items():
        group.add_command(LazyCommand(_name, _panel, _help, SETTINGS))


def _keep_garbage() -> None:
    """Spare the process a last search for garbage: among a million objects of torch it takes a second.

    Where Triton is loaded it takes place, since Triton's library reports on stderr whatever is left.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C.

    Where stdout is full or closed that is 2; 0 where the reader has closed it (head, less).
    """
    atexit.register(_keep_garbage)
    command_clock.begin(of_process=args is None)
    if args is None:
        resources.let_waiting_threads_sleep()
    render.verbosity.reset()
    render.use_utf8()
    with streams.guarded():
        return _run(list(sys.argv[1:] if args is None else args))


def _run(words: Sequence[str]) -> int:
    try:
        if not words and "_GPTCLI_COMPLETE" not in os.environ:  # a shell asks for completions without a word
            next_steps.show()
            return 0
        code = group.main(list(words), prog_name="gptcli", standalone_mode=False)
        sys.stdout.flush()
    except GptcliError as error:
        render.fail(error)
        return 2
    except typer.TyperException as error:
        render.fail(mistakes.explained(error, words, group.commands))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        render.warn("Interrupted.")
        return 130
    except streams.OutputError as error:
        if error.reader_has_gone:
            return 0
        render.fail(error.told())
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "gptcli":
            raise
        missing = error.name.partition(".")[0]
        render.fail(
            GptcliError(f"{missing} is not installed.", "gptcli doctor lists what is missing and how to get it.")
        )
        return 2
    except Exception as error:
        told = out_of_memory(error)
        if told is None:
            raise
        render.fail(GptcliError(f"There is no memory left: {told}", "Take a smaller model, text or batch."))
        return 2
    return code if isinstance(code, int) else 0
