"""A file of prompts: one prompt a line, or JSON lines with options for each prompt."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptcli.config.fields import fields_of
from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError, nearest
from gptcli.inference.prompting import Prompting
from gptcli.inference.sequence import Request

_SAMPLING = tuple(fields_of(SamplingConfig))
_WHOLE = (
    "max_new_tokens",
    "min_new_tokens",
    "seed",
    *(k for k, f in fields_of(SamplingConfig).items() if f.kind is int),
)
_KEYS = ("prompt", "stop", "max_new_tokens", "min_new_tokens", "seed", *_SAMPLING)


@dataclass(frozen=True)
class Prompt:
    """A line of the file.

    Attributes:
        line: the line number, from 1.
        text: the prompt.
        stops: its own texts to end before; None for the common ones.
        settings: the prompt's own options, by their names in the file.
    """

    line: int
    text: str
    stops: tuple[str, ...] | None
    settings: dict[str, Any]


def read_prompts(content: str, file: Path) -> list[Prompt]:
    """Every prompt of a file; empty lines are skipped.

    Args:
        content: the file's text.
        file: its path; the suffix .jsonl means JSON lines.

    Raises:
        GptcliError: a line is not JSON, or has an unknown option or one of the wrong type.
    """
    prompts = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        settings: dict[str, Any] = _parse(line, number, file) if file.suffix.lower() == ".jsonl" else {"prompt": line}
        text, texts = settings.pop("prompt"), settings.pop("stop", None)
        texts = [texts] if isinstance(texts, str) else texts
        stops = None if texts is None else tuple(stop for stop in texts if stop)
        prompts.append(Prompt(number, text, stops, settings))
    return prompts


def make_request(prompt: Prompt, common: Request, prompting: Prompting, file: Path) -> Request:
    """``common`` with the prompt's tokens, stops and settings; the seed of line n is the common one plus n - 1.

    Raises:
        GptcliError: the prompt is empty, has characters outside the vocabulary, or a setting is out of range.
    """
    ids = prompting.encode(prompt.text)
    if not ids:
        raise GptcliError(f"{file}, line {prompt.line}: the prompt is empty.", "Give at least one character.")
    own = prompt.settings
    try:
        sampling = SamplingConfig(**{**asdict(common.sampling), **{k: own[k] for k in _SAMPLING if k in own}})
    except GptcliError as error:
        raise GptcliError(f"{file}, line {prompt.line}: {error.message}", error.hint) from error
    counts = {key: own[key] for key in ("max_new_tokens", "min_new_tokens") if key in own}
    for key, value in counts.items():
        if value < (1 if key == "max_new_tokens" else 0):
            raise GptcliError(f"{file}, line {prompt.line}: {key} is {value}.", "Leave it out for the common one.")
    seed = own.get("seed", common.seed + prompt.line - 1)
    stops = common.stops if prompt.stops is None else prompt.stops + prompting.stops
    return replace(common, prompt=ids, sampling=sampling, seed=seed, stops=stops, **counts)


def _parse(line: str, number: int, file: Path) -> dict[str, Any]:
    try:
        options = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise GptcliError(
            f"{file}, line {number} is not JSON: {error}.", 'A line looks like {"prompt": "Once"}.'
        ) from error
    if not isinstance(options, dict) or not isinstance(options.get("prompt"), str):
        raise GptcliError(f'{file}, line {number} has no text under "prompt".', 'A line looks like {"prompt": "Once"}.')
    for key, value in options.items():
        if key not in _KEYS:
            raise GptcliError(f"{file}, line {number} has an option {key!r} that there is not.", nearest(key, _KEYS))
        if key == "stop":
            right = isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))
        elif key == "prompt":
            right = True
        else:
            right = isinstance(value, int if key in _WHOLE else int | float) and not isinstance(value, bool)
        if not right:
            raise GptcliError(f"{file}, line {number}: {key} is {value!r}.", f"{key} takes {_kind(key)}.")
    return options


def _kind(key: str) -> str:
    return "a text or a list of texts" if key == "stop" else "a whole number" if key in _WHOLE else "a number"
