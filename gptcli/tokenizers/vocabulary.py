"""Our own JSON file of a tokenizer, by which gptcli knows its own: writing, reading with checks, the fingerprint."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError

FILE = "tokenizer_gptcli.json"
COPY_AGAIN = "The checkpoint is damaged or mixed from two; copy it again, or train again."


def fingerprint(kind: str, vocabulary: Sequence[str]) -> str:
    """SHA-256, in hex, of the kind and the vocabulary, in order of ids, as a compact ASCII JSON array."""
    return hashlib.sha256(json.dumps([kind, *vocabulary], separators=(",", ":")).encode("ascii")).hexdigest()


def write(directory: Path, kind: str, vocabulary: Sequence[str]) -> None:
    """Write FILE into ``directory``. Raises OSError."""
    # ASCII with escapes, because UTF-8 cannot encode a lone surrogate in a vocabulary.
    text = json.dumps({"kind": kind, "vocabulary": list(vocabulary)}, indent=1)
    (directory / FILE).write_text(text + "\n", encoding="ascii", newline="\n")


def write_mark(directory: Path, kind: str, fingerprint: str) -> None:
    """Write FILE without a vocabulary, for a kind that has it in other files. Raises OSError."""
    text = json.dumps({"kind": kind, "fingerprint": fingerprint}, indent=1)
    (directory / FILE).write_text(text + "\n", encoding="ascii", newline="\n")


def read_mark(directory: Path) -> dict[str, Any]:
    """The content of FILE: at least its kind, a string.

    Raises:
        GptcliError: the file is missing, not JSON, or without a kind.
    """
    content = _parsed(directory / FILE)
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise GptcliError(f"{directory / FILE} has no kind of tokenizer.", COPY_AGAIN)
    return content


def read(directory: Path, kind: str) -> list[str]:
    """The vocabulary in ``directory``, in order of ids.

    Raises:
        GptcliError: the file is missing, not JSON, of another kind, or not a list of distinct strings.
    """
    file = directory / FILE
    content = _parsed(file)
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind") if isinstance(content, dict) else content
        raise GptcliError(f"{file} is not a {kind} tokenizer's: its kind is {str(found)[:40]!r}.", COPY_AGAIN)
    vocabulary = content.get("vocabulary")
    if not isinstance(vocabulary, list):
        raise GptcliError(f'{file} has no list "vocabulary".', COPY_AGAIN)
    ids: dict[str, int] = {}
    for number, token in enumerate(vocabulary):
        if not isinstance(token, str) or not token:
            raise GptcliError(f"{file}: token {number} is {str(token)[:40]!r}, not a piece of text.", COPY_AGAIN)
        if token in ids:
            raise GptcliError(f"{file}: tokens {ids[token]} and {number} are both {token!r}.", COPY_AGAIN)
        ids[token] = number
    return vocabulary


def _parsed(file: Path) -> Any:
    try:
        return json.loads(read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise GptcliError(f"{file} is not JSON: {error}.", COPY_AGAIN) from error


def read_bytes(file: Path) -> bytes:
    """The bytes of a tokenizer's file.

    Raises:
        GptcliError: the file is missing or cannot be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise GptcliError(f"{file.parent} has no {file.name}: its tokenizer is missing.", COPY_AGAIN) from error
    except OSError as error:
        raise GptcliError(f"Cannot read {file}: {error.strerror}.", COPY_AGAIN) from error


def unknown_id(token_id: int, kind: str, vocab_size: int) -> GptcliError:
    """The error for an id that no token has."""
    return GptcliError(
        f"There is no token {token_id}: the {kind} vocabulary has the ids 0 to {vocab_size - 1:,}.",
        "The ids, or the model that made them, belong to another tokenizer.",
    )
