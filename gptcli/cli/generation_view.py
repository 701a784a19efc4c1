"""The checks of `gptcli generate` before it loads a model, and its output: texts, records and the table of steps."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli import render
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.inference.open import EngineChoice
    from gptcli.inference.speculative import Tally
    from gptcli.inference.streaming import TextStream
    from gptcli.tokenizers import Tokenizer

CANDIDATES = 5


def check_prompts_file(prompt: str | None, file: Path | None, draft: str, steps: bool) -> None:
    """Refuse the options that do not go together with ``--prompts``."""
    for name, given in (
        ("a prompt", prompt),
        ("--file", file),
        ("--draft", draft if draft not in ("auto", "none") else None),
        ("--steps", steps or None),
    ):
        if given is not None:
            raise GptcliError(f"--prompts and {name} do not go together.", "Give one of the two.")


def check_overflow(overflow: str, prompt_length: int, max_new_tokens: int, context_length: int) -> None:
    """Refuse before the first token what would be refused later, and say when a prompt is cut."""
    if overflow == "error" and prompt_length + max_new_tokens > context_length + 1:
        raise GptcliError(
            f"{prompt_length} prompt tokens and {max_new_tokens} new ones are more than the model's context of "
            f"{context_length}.",
            "Shorten the prompt, lower --max-new-tokens, or let --overflow slide drop the oldest tokens.",
        )
    if prompt_length > context_length:
        render.warn(
            f"The prompt has {prompt_length} tokens and the model's context holds {context_length}: "
            f"the first {prompt_length - context_length} are dropped."
        )


def name_engine(choice: "EngineChoice") -> None:
    """Say that torch computes where the compiled kernels were to be expected; every input has been checked by now."""
    if choice.reason.startswith("numba"):
        render.note(f"The torch engine is used: {choice.reason}.")


def show_samples(
    prompt: str,
    samples: "Iterable[TextStream]",
    tokenizer: "Tokenizer",
    *,
    as_json: bool,
    steps: bool,
    stream: bool,
) -> list[dict[str, Any]]:
    """Print every sample as a text or a table; with ``as_json`` print none, return records."""
    records = []
    for number, result in enumerate(samples):
        if not (as_json or steps):
            print_text(prompt, result, first=number == 0, stream=stream)
            continue
        for _ in result:
            pass
        if as_json:
            records.append(record_of(result, tokenizer, steps))
        else:
            print_steps(result, tokenizer)
    return records


def print_text(prompt: str, result: "TextStream", first: bool, stream: bool) -> None:
    """The prompt and its continuation; several texts are separated by an empty line."""
    before = ("" if first else "\n") + prompt
    if not stream:
        render.print_text(before + "".join(result))
        return
    pieces = iter(result)
    render.print_text(before + next(pieces, ""), end="")  # where the first token is refused, nothing is printed
    try:
        for piece in pieces:
            render.print_text(piece, end="")
    finally:
        render.print_text("")


def draft_report(tally: "Tally") -> str:
    """What a draft brought, in one line."""
    share = f" ({tally.accepted / tally.proposed:.0%})" if tally.proposed else ""
    line = (
        f"Draft: {tally.accepted} of {tally.proposed} proposed tokens accepted{share}; "
        f"{tally.tokens / tally.forward_passes:.2f} tokens for each forward pass of the model"
    )
    faster = tally.speed_up()
    return (
        f"{line}." if faster is None else f"{line}, {faster:.1f} × the speed of this run's own steps without a draft."
    )


def record_of(result: "TextStream", tokenizer: "Tokenizer", steps: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "seed": result.request.seed,
        "text": result.text,
        "ids": [token.id for token in result.tokens],
        "finish_reason": result.finish_reason,
    }
    if steps:
        record["steps"] = [
            {
                "id": token.id,
                "piece": tokenizer.piece(token.id),
                "probability": token.probability,
                "candidates": [{"id": i, "piece": tokenizer.piece(i), "probability": p} for i, p in token.candidates],
            }
            for token in result.tokens
        ]
    return record


def print_steps(result: "TextStream", tokenizer: "Tokenizer") -> None:
    """The course's step-by-step view: what could have come next, and what came."""

    def quoted(token_id: int) -> str:
        return repr(tokenizer.piece(token_id)).replace("\\\\", "\\")  # the piece has its escapes already

    rows = []
    for number, token in enumerate(result.tokens, start=1):
        cells = [f"{quoted(i)} {p:.1%}" for i, p in token.candidates]
        cells += [""] * (CANDIDATES - len(cells))
        rows.append([str(number), quoted(token.id), f"{token.probability:.1%}", *cells])
    ranks = ["likeliest", "second", "third", "fourth", "fifth"]
    columns = [("step", "right"), ("drawn", "left"), ("its share", "right"), *((rank, "left") for rank in ranks)]
    render.print_table("Candidates for each token, and the token that followed", columns, rows, spare=len(ranks) - 1)
