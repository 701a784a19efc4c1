"""generate --prompts: a file of prompts, continued at once and answered in its order."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli import render
from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.inference.decode import SlotDecoder
    from gptcli.inference.sequence import Request, Token
    from gptcli.inference.streaming import Completion
    from gptcli.tokenizers import Tokenizer

_WHOLE = ("max_new_tokens", "min_new_tokens", "seed", "top_k")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_KEYS = ("prompt", "stop", "max_new_tokens", "min_new_tokens", "seed", *_SAMPLING)


def generate_many(
    file: Path,
    common: "Request",
    stops: Sequence[str],
    tokenizer: "Tokenizer",
    opening: Callable[..., "SlotDecoder"],
    batch_size: int,
    allow_special: bool,
    as_json: bool,
) -> None:
    """Print every prompt of ``file`` with its continuation; the n-th is seeded with the common seed plus n."""
    if batch_size < 1:
        raise GptcliError(f"--batch-size is {batch_size}, but it must be at least 1.", "Leave it out for the default.")
    from gptcli.inference import decode
    from gptcli.inference.streaming import Completion

    prompts = _read(file, stops)
    requests = [_request(number, options, common, tokenizer, allow_special, file) for number, options in prompts]
    stop_texts = [options["stop"] for _, options in prompts]
    capacity = max(len(request.prompt) + request.max_new_tokens for request in requests)
    decoder = opening(capacity=capacity, slots=min(batch_size, len(requests), 128))

    drawn: list[list[Token]] = [[] for _ in requests]
    ends = [_StopWatch(tokenizer, texts) for texts in stop_texts]
    finished: set[int] = set()
    printed = 0
    work = decode.decode_together(decoder.engine, requests, decoder.contrast, decoder.drawable)
    stopped: bool | None = None
    with render.progress(None, "token") as bar:
        while True:
            try:
                number, token = work.send(stopped)
            except StopIteration:
                break
            stopped = None
            if token is not None:
                drawn[number].append(token)
                bar.update()
                stopped = ends[number].found(token.id)
                continue
            finished.add(number)
            while printed in finished:
                request = requests[printed]
                result = Completion(iter(drawn[printed]), tokenizer, request.max_new_tokens, stop_texts[printed])
                _print(prompts[printed][1]["prompt"], request, result, as_json, first=printed == 0)
                printed += 1


class _StopWatch:
    """Says when a stop text has appeared in what tokens add up to."""

    def __init__(self, tokenizer: "Tokenizer", stops: Sequence[str]) -> None:
        from gptcli.inference.streaming import StopTexts

        self._stream = tokenizer.stream()
        self._stops = StopTexts(stops)

    def found(self, token_id: int) -> bool:
        self._stops.push(self._stream.push(token_id))
        return self._stops.found


def _print(prompt: str, request: "Request", result: "Completion", as_json: bool, first: bool) -> None:
    for _ in result:
        pass
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


def _read(file: Path, stops: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """(line number, options) of every prompt in the file; empty lines are passed over."""
    from gptcli.data import documents

    (document,) = documents.read_documents([str(file)])
    prompts: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(document.text.splitlines(), start=1):
        if not line.strip():
            continue
        options: dict[str, Any] = _parse(line, number, file) if file.suffix == ".jsonl" else {"prompt": line}
        texts = options.get("stop", stops)
        options["stop"] = [text for text in ([texts] if isinstance(texts, str) else texts) if text]
        prompts.append((number, options))
    return prompts


def _parse(line: str, number: int, file: Path) -> dict[str, Any]:
    try:
        options = json.loads(line)
    except ValueError as error:
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


def _request(
    number: int, options: dict[str, Any], common: "Request", tokenizer: "Tokenizer", allow_special: bool, file: Path
) -> "Request":
    ids = tokenizer.encode(options["prompt"], allow_special=allow_special)
    if not ids:
        raise GptcliError(f"{file}, line {number}: the prompt is empty.", "Give at least one character.")
    try:
        sampling = SamplingConfig(**{**asdict(common.sampling), **{k: options[k] for k in _SAMPLING if k in options}})
    except GptcliError as error:
        raise GptcliError(f"{file}, line {number}: {error.message}", error.hint) from error
    counts = {key: options[key] for key in ("max_new_tokens", "min_new_tokens") if key in options}
    for key, value in counts.items():
        if value < (1 if key == "max_new_tokens" else 0):
            raise GptcliError(f"{file}, line {number}: {key} is {value}.", "Leave it out for the common one.")
    seed = options.get("seed", common.seed + number - 1)
    return replace(common, prompt=ids, sampling=sampling, seed=seed, **counts)
