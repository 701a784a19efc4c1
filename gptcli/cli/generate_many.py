"""generate --prompts: a file of prompts, continued at once and answered in its order."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli import render
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.inference.engine import Scorer
    from gptcli.inference.prompting import Prompting
    from gptcli.inference.sequence import Request
    from gptcli.inference.streaming import TextStream


def generate_many(
    file: Path,
    common: "Request",
    prompting: "Prompting",
    opening: Callable[..., "Scorer"],
    batch_size: int,
    as_json: bool,
) -> None:
    """Print every prompt of ``file`` with its continuation; the n-th is seeded with the common seed plus n."""
    if batch_size < 1:
        raise GptcliError(f"--batch-size is {batch_size}, but it must be at least 1.", "Leave it out for the default.")
    from gptcli.data import documents
    from gptcli.inference.decode import Scheduler
    from gptcli.inference.prompt_file import make_request, read_prompts
    from gptcli.inference.streaming import complete_all

    (document,) = documents.read_documents([str(file)])
    prompts = read_prompts(document.text, file)
    requests = [make_request(prompt, common, prompting, file) for prompt in prompts]
    capacity = max(len(request.prompt) + request.max_new_tokens for request in requests)
    scheduler = Scheduler(opening(capacity=capacity, slots=min(batch_size, len(requests), 128)))
    with render.progress(None, "token") as bar:
        results = complete_all(scheduler, requests, prompting.tokenizer, bar.update)
        for number, (prompt, request, result) in enumerate(zip(prompts, requests, results, strict=True)):
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
