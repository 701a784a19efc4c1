"""gptcli guide: the pages that are part of the package."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import options, render
from gptcli.errors import GptcliError, nearest

FOLDER = Path(__file__).parents[1] / "guide"
# Page -> its line in the list, in the order of reading.
PAGES = {
    "getting-started": "install, train a first model, generate text with it",
    "training": "texts, sizes, optimizers, snapshots, resuming",
    "fine-tuning": "your texts, pairs, chats and labels; templates, adapters",
    "tokenizers": "vocabularies, your own, other programs",
    "generating": "sampling, many prompts, long texts",
    "speed": "engines, drafts, packed weights, GPUs",
    "looking-inside": "attention, the logit lens, embeddings, gradients",
    "measuring": "perplexity and tasks, with their protocols",
    "weights-and-formats": "GPT-2's weights, export, what a checkpoint is",
    "large-texts": "texts larger than memory, several processes",
    "python": "the package from your own code",
    "troubleshooting": "errors, what to do, how to report one",
    "commands": "every option of every command",
    "licences": "of gptcli, the rank table and the story",
    "changes": "what changed, version by version",
}


def guide(
    page: Annotated[
        str | None, typer.Argument(help="The page to show; no name lists them.", show_default=False)
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Read the guide: training, generating, speed, inspection, every option.

    Piped or redirected, a page is the Markdown that it is written in.
    """
    if page is None:
        width = max(map(len, PAGES))
        for name, about in PAGES.items():
            render.print_text(f"{name:<{width}}  {about}")
        render.note("gptcli guide PAGE shows one.")
        return
    if page not in PAGES:
        raise GptcliError(f"The guide has no page {page!r}.", nearest(page, PAGES))
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        render.stdout_console().print(Markdown(text))
    else:
        render.print_text(text, end="")
