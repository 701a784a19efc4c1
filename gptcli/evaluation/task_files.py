"""Files of task items, one a line: lambada (the last word), choices (one of several endings), cloze (a blank).

The fields of each format, as JSON, one item a line; further fields are ignored:

lambada   {"text": "He looked for his keys and could not find his keys"}
choices   {"context": "The kettle boiled, so she", "endings": ["made tea.", "was a kettle."], "label": 0}
cloze     {"text": "The ___ barked at the cat.", "options": ["dog", "stone"], "label": 0}
          {"text": "The capital of France is ___", "answer": "Paris"}

The text and its context are encoded separately; the tokens of the text after as many as the context has are scored, as
in lm-eval. Items longer than the model's context lose tokens on the left.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config.evaluation import Convention, Task
from gptcli.data.text_decoding import chunks, decoded
from gptcli.errors import GptcliError

BLANK = "___"
SHAPES = {
    "lambada": '{"text": "… all of it, the last word included"}',
    "choices": '{"context": "…", "endings": ["…", "…"], "label": 0}',
    "cloze": '{"text": "… ___ …", "options": ["…", "…"], "label": 0} or {"text": "… ___", "answer": "…"}',
}
_QUOTES = str.maketrans({"“": '"', "”": '"'})


@dataclass(frozen=True)
class Candidate:
    """One way to complete an item.

    Attributes:
        before: the context.
        scored: the text that is scored.
        after: the text that follows, scored too; empty except in a cloze with options.
        length: UTF-8 bytes of the answer in the file.
    """

    before: str
    scored: str
    after: str
    length: int


@dataclass(frozen=True)
class Item:
    """One line of a task file.

    Attributes:
        line: its number, from 1.
        candidates: the completions; a single one where the model has to predict the word itself.
        label: index of the right one.
    """

    line: int
    candidates: tuple[Candidate, ...]
    label: int


def read_items(file: Path, task: Task, convention: Convention = "openai", limit: int | None = None) -> list[Item]:
    """The items of a task file, read as any other text is: UTF-8 unless it begins with another's byte-order mark.

    Empty lines are skipped.

    Args:
        file: in a format of the module's docstring.
        task: the format.
        convention: for lambada, "openai" writes curly quotes, `` and '' as ", as OpenAI's copy of the set has them
            (lm-eval's lambada_openai); "raw" takes the text as it is (lambada_standard).
        limit: read at most this number of items.

    Raises:
        GptcliError: the file cannot be read or has no item; a line is not JSON or lacks the task's fields.
    """
    try:
        # A line ends at \n alone: JSON may hold other characters that end a line of text, such as U+2028.
        lines = "".join(decoded(str(file), chunks(file), None, "strict")).split("\n")
    except OSError as error:
        raise GptcliError(f"Cannot read {file}: {error.strerror}.", "Give the path of a file of JSON lines.") from error
    items: list[Item] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and (limit is None or len(items) < limit):
            item = _read_item(line, number, file, task, convention)
            has_options, first_has = len(item.candidates) > 1, bool(items) and len(items[0].candidates) > 1
            if items and has_options != first_has:
                has, but = ("options", "none") if has_options else ("no options", "some")
                raise _wrong(file, number, f"has {has}, but line {items[0].line} has {but}", task)
            items.append(item)
    if not items:
        raise GptcliError(f"{file} has no item.", f"A line of the task {task} is {SHAPES[task]}")
    return items


def _read_item(line: str, number: int, file: Path, task: Task, convention: Convention) -> Item:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _wrong(file, number, f"is not JSON ({error})", task) from error
    if not isinstance(row, dict):
        raise _wrong(file, number, "is no JSON object", task)

    def field(name: str, kind: type) -> Any:
        if not isinstance(row.get(name), kind) or isinstance(row.get(name), bool):
            what = {str: "text", int: "whole number", list: "list"}[kind]
            raise _wrong(file, number, f"has no {what} under {name!r}", task)
        return row[name]

    def choices(name: str) -> tuple[list[str], int]:
        texts, label = field(name, list), field("label", int)
        if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise _wrong(file, number, f"has no two texts under {name!r}", task)
        if not 0 <= label < len(texts):
            raise _wrong(file, number, f"has label {label}, but {len(texts)} {name} (the first is 0)", task)
        return texts, label

    if task == "choices":
        context = field("context", str)
        endings, label = choices("endings")
        return Item(number, tuple(_ending(context, text) for text in endings), label)
    text = field("text", str)
    if task == "lambada":
        if convention == "openai":
            text = text.translate(_QUOTES).replace("``", '"').replace("''", '"')
        before, space, word = text.rstrip().rpartition(" ")
        if not before.strip():
            raise _wrong(file, number, "has no last word with words before it", task)
        return Item(number, (_with_space(before + space, word, "", _bytes(word)),), 0)
    if text.count(BLANK) != 1:
        raise _wrong(file, number, f"has {text.count(BLANK)} blanks {BLANK}, not 1", task)
    before, after = text.split(BLANK)
    if "options" in row:
        options, label = choices("options")
        return Item(number, tuple(_filling(before, option, after) for option in options), label)
    answer = field("answer", str)
    if not answer.strip():
        raise _wrong(file, number, "has an empty answer", task)
    return Item(number, (_filling(before, answer, ""),), 0)


def _ending(context: str, ending: str) -> Candidate:
    space = "" if context[-1:].isspace() or ending[:1].isspace() or not context else " "
    return _with_space(context, space + ending, "", _bytes(ending.strip()))


def _filling(before: str, option: str, after: str) -> Candidate:
    return _with_space(before, option, after, _bytes(option))


def _with_space(before: str, scored: str, after: str, length: int) -> Candidate:
    """A candidate with the white space before the scored text moved into it: GPT-2's tokens begin with their space."""
    context = before.rstrip()
    return Candidate(context, before[len(context) :] + scored, after, length)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _wrong(file: Path, number: int, what: str, task: Task) -> GptcliError:
    return GptcliError(f"{file}, line {number} {what}.", f"A line of the task {task} is {SHAPES[task]}")
