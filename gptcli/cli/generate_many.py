"""generate --prompts: a file of prompts, continued at once and answered in its order."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli import render
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.inference.engine import Scorer
    from gptcli.inference.prompt_file import Prompt
    from gptcli.inference.prompting import Prompting
    from gptcli.inference.sequence import Request
    from gptcli.inference.streaming import TextStream


def read_requests(
    file: Path, common: "Request", prompting: "Prompting", batch_size: int
) -> list[tuple["Prompt", "Request"]]:
    """Every prompt of ``file`` with what is asked for it; the n-th is seeded with the common seed plus n."""
    if batch_size < 1:
        raise GptcliError(f"--batch-size is {batch_size}, but it must be at least 1.", "Leave it out for the default.")
    from gptcli.data import documents
    from gptcli.inference.prompt_file import make_request, read_prompts

    (document,) = documents.read_documents([str(file)])
    return [(prompt, make_request(prompt, common, prompting, file)) for prompt in read_prompts(document.text, file)]


def generate_many(
    asked: list[tuple["Prompt", "Request"]], scorer: "Scorer", prompting: "Prompting", as_json: bool
) -> None:
    """Print every prompt of ``asked`` with its continuation, in their order."""
    from gptcli.inference.decode import Scheduler
    from gptcli.inference.streaming import complete_all

    requests = [request for _, request in asked]
    with render.progress(None, "token") as bar:
        results = complete_all(Scheduler(scorer), requests, prompting.tokenizer, bar.update)
        for number, ((prompt, request), result) in enumerate(zip(asked, results, strict=True)):
            shown = prompt.text if as_json or prompting.template is None else ""
            _print(shown, request, result, as_json, first=number == 0)


def _print(prompt: str, request: "Request", result: "TextStream", as_json: bool, first: bool) -> None:
    if as_json:
        record = {
            "prompt": prompt,
            "seed": request.seed,
            "text": result.text,
            "ids": [token.id for token in result.tokens],
            "finish_reason": result.finish_reason,
        }
        render.print_text(json.dumps(record, ensure_ascii=False))
    else:
        render.print_text(("" if first else "\n") + prompt + result.text)
