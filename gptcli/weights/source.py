"""What every reader of a foreign format returns, and what they share."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli import tokenizers
from gptcli.config import GPTConfig
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.gpt2 import FILES_SHA256, GPT2Tokenizer
from gptcli.tokenizers.none import NoTokenizer


@dataclass(frozen=True)
class Source:
    """A GPT-2 as a foreign format holds it, translated and checked.

    Attributes:
        format: what it was, for people.
        config: the model's shape.
        tensors: by our names and in our layouts, in whatever floating dtype the file has; mapped from disk.
        tokenizer: the one that belongs to it.
        notes: what was assumed, one line each.
    """

    format: str
    config: GPTConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    notes: list[str] = field(default_factory=list)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        GptcliError: no such file, not JSON, not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GptcliError(f"{path} cannot be read: {error.strerror or error}.", "Is the directory complete?") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise GptcliError(f"{path} is not JSON: {reason}.", "Download or copy it again.") from error
    if not isinstance(value, dict):
        raise GptcliError(f"{path} is not a JSON object but {value!r:.60}.", "Download or copy it again.")
    return value


def read_pickle(path: Path) -> dict[str, Any]:
    """A dict that torch.save wrote, read with ``weights_only=True``: no code in it is ever run.

    Raises:
        GptcliError: it holds more than data, it is damaged, or it is no dict.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise GptcliError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    try:
        # The old format cannot be mapped and is read.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a hostile pickle can make the reader raise anything
        lines = " ".join(str(error).split())
        if "Unsupported " in lines and "GLOBAL" in lines:
            code = lines.partition("GLOBAL ")[2].split()[0]
            raise GptcliError(
                f"{path} holds code ({code:.60}), not only weights; nothing of it was run.",
                "Do not trust this file. Take a .safetensors file of the model, which cannot hold code.",
            ) from error
        raise GptcliError(
            f"{path} is not weights that torch.save wrote: {lines:.120}.", "Download or copy it again."
        ) from error
    if not isinstance(value, dict):
        raise GptcliError(
            f"{path} holds a {type(value).__name__}, not a dict of weights.", "Save model.state_dict(), not the model."
        )
    return value


def only_tensors(values: dict[Any, Any], where: str) -> dict[str, Tensor]:
    """``values``, held to be tensors by name.

    Raises:
        GptcliError: something else is among them.
    """
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise GptcliError(f"{where}: {name!r:.60} is a {type(value).__name__}, not a tensor.", "Is it a GPT-2?")
    return {name: value.detach() for name, value in values.items()}


def find_tokenizer(directory: Path, vocab_size: int, notes: list[str]) -> Tokenizer:
    """GPT-2's tokenizer if the files beside the weights, or else the size of the vocabulary, say so; otherwise none.

    A tokenizer is never guessed: a model whose vocabulary is unknown gets one that says so when it is asked for text.
    ``notes`` gets a line on what was assumed.
    """
    names = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's, OpenAI's
    for vocab, merges in names:
        if (directory / vocab).is_file() and (directory / merges).is_file():
            if _is_gpt2s(directory / vocab, directory / merges) and vocab_size >= GPT2Tokenizer.vocab_size:
                if vocab_size > GPT2Tokenizer.vocab_size:
                    notes.append(f"{vocab_size - GPT2Tokenizer.vocab_size} tokens beyond GPT-2's have no text.")
                return tokenizers.build("gpt2")
            notes.append(f"{directory / vocab} is not GPT-2's vocabulary: the checkpoint gets no tokenizer.")
            return NoTokenizer()
    if vocab_size == GPT2Tokenizer.vocab_size:
        notes.append("No vocabulary beside the weights: 50,257 tokens are taken to be GPT-2's.")
        return tokenizers.build("gpt2")
    notes.append(f"No vocabulary beside the weights, and {vocab_size:,} tokens are not GPT-2's: no tokenizer.")
    return NoTokenizer()


def _is_gpt2s(vocab: Path, merges: Path) -> bool:
    """Equal to the hub's files to the byte, or in what they say."""
    try:
        vocab_bytes, merges_bytes = vocab.read_bytes(), merges.read_bytes()
    except OSError as error:
        raise GptcliError(
            f"{vocab} cannot be read: {error.strerror or error}.", "Is the directory complete?"
        ) from error
    if (
        hashlib.sha256(merges_bytes.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n").hexdigest()
        != FILES_SHA256["merges.txt"]
    ):
        return False
    try:
        entries = json.loads(vocab_bytes)
        plain = json.dumps(dict(sorted(entries.items(), key=lambda item: item[1]))).encode("ascii")
    except (ValueError, RecursionError, AttributeError, TypeError):
        return False
    return hashlib.sha256(plain).hexdigest() == FILES_SHA256["vocab.json"]
