"""Score the items of a task, and compute accuracies and perplexities from the scores."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.errors import GptcliError
from gptcli.evaluation.log_likelihood import Scores, Span, score
from gptcli.evaluation.task_files import Candidate, Item
from gptcli.model.gpt import GPTModel
from gptcli.tokenizers import Tokenizer

# Fields of an item's row -> label in tables. Accuracies are means of 0 and 1, the perplexity is exp(-mean) of nats.
METRICS = {
    "accuracy": "accuracy",
    "accuracy_per_byte": "accuracy, per byte",
    "accuracy_rest": "accuracy, what follows alone",
    "accuracy_last_token": "accuracy, last token alone",
    "log_likelihood": "perplexity a word",
}


def make_span(candidate: Candidate, tokenizer: Tokenizer, context_length: int, bos: bool) -> tuple[Span, int]:
    """The span of a candidate, and the number of its tokens after the scored text.

    Raises:
        GptcliError: the scored text has no context and the tokenizer no end-of-text id; or the scored tokens are more
            than the model's context.
    """
    before = tokenizer.encode(candidate.before)
    through = tokenizer.encode(candidate.before + candidate.scored)
    whole = tokenizer.encode(candidate.before + candidate.scored + candidate.after) if candidate.after else through
    first = min(len(before), len(through) - 1)
    if (bos or first == 0) and tokenizer.eot_id is not None:
        whole, first = [tokenizer.eot_id, *whole], first + 1
        through = [tokenizer.eot_id, *through]
    if first < 1:
        raise GptcliError(
            "There is nothing before the text to be scored, and the "
            f"{tokenizer.kind} tokenizer has no end-of-text token to put there.",
            "Give it a context of at least one character.",
        )
    dropped = max(0, len(whole) - context_length - 1)
    if first - dropped < 1:
        raise GptcliError(
            f"The text to be scored has {len(whole) - first} tokens, but the model's context holds {context_length}.",
            "Leave this item out, or take a model with a longer context.",
        )
    return Span(torch.tensor(whole[dropped:]), first - dropped), max(0, len(whole) - len(through))


def run(
    model: GPTModel,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    batch_size: int,
    bos: bool = False,
    file: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Score the items in their order.

    Args:
        model: in eval mode.
        tokenizer: the tokenizer of the model.
        items: the items to score.
        batch_size: candidates per forward pass.
        bos: put the end-of-text id before every item; a scored text without context gets it in any case.
        file: the task file, for error messages.

    Yields:
        one row per item: its line, its METRICS, and for several candidates ``log_likelihoods`` (nats), ``chosen`` and
        ``label``.

    Raises:
        GptcliError: an item cannot be scored, with its line; or logits are not finite.
    """
    behind: deque[int] = deque()

    def spans() -> Iterator[Span]:
        for item in items:
            for candidate in item.candidates:
                try:
                    span, after = make_span(candidate, tokenizer, model.config.context_length, bos)
                except GptcliError as error:
                    raise GptcliError(f"{file or 'The task'}, line {item.line}: {error.message}", error.hint) from error
                behind.append(after)
                yield span

    results = score(model, spans(), batch_size, ranked=True)
    for item in items:
        scores = [next(results) for _ in item.candidates]
        after = [behind.popleft() for _ in item.candidates]
        row = _word_row(scores[0]) if len(scores) == 1 else _choice_row(item, scores, after)
        yield {"line": item.line, **row}


def _word_row(scores: Scores) -> dict[str, Any]:
    return {
        "accuracy": int(scores.hits.all()),
        "accuracy_last_token": int(scores.hits[-1]),
        "log_likelihood": float(scores.log_probs.sum()),
    }


def _choice_row(item: Item, scores: Sequence[Scores], after: Sequence[int]) -> dict[str, Any]:
    sums = [float(one.log_probs.sum()) for one in scores]
    row: dict[str, Any] = {
        "accuracy": int(_best(sums) == item.label),
        "log_likelihoods": sums,
        "chosen": _best(sums),
        "label": item.label,
    }
    if not item.candidates[0].after:
        per_byte = [s / c.length for s, c in zip(sums, item.candidates, strict=True)]
        row["accuracy_per_byte"] = int(_best(per_byte) == item.label)
    if item.candidates[0].after and all(after):
        rest = [float(one.log_probs[-count:].sum()) for one, count in zip(scores, after, strict=True)]
        row["accuracy_rest"] = int(_best(rest) == item.label)
    return row


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


@dataclass(frozen=True)
class Figure:
    """A mean over items.

    Attributes:
        value: an accuracy in [0, 1], or a perplexity.
        standard_error: of ``value``; for a perplexity by the delta method.
    """

    value: float
    standard_error: float


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Metric -> mean over the rows, for the metrics that every row has."""
    figures = {}
    for metric in METRICS:
        if all(metric in row for row in rows):
            mean, error = mean_and_error([row[metric] for row in rows])
            if metric == "log_likelihood":
                mean = math.exp(min(-mean, 700.0))
                error *= mean
            figures[metric] = Figure(mean, error)
    return figures


def differences(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Metric -> mean of the differences rows - others per item, with its paired standard error.

    For ``log_likelihood`` it is the difference in negative log-likelihood (nats): lower is better, as for perplexity.
    """
    signs = {metric: -1 if metric == "log_likelihood" else 1 for metric in METRICS}
    return {
        metric: Figure(*mean_and_error([sign * (a[metric] - b[metric]) for a, b in zip(rows, others, strict=True)]))
        for metric, sign in signs.items()
        if all(metric in row for row in (*rows, *others))
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, s / √n with n - 1 in s; NaN for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
