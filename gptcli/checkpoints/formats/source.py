"""The result type of the readers of foreign formats, and functions that the readers share."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli import tokenizers
from gptcli.checkpoints.verify import listed
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer, chat_template, choice, foreign, tokenizer_json, vocabulary
from gptcli.tokenizers.gpt2 import CONFIG_FILE, GPT2Tokenizer, is_gpt2s
from gptcli.tokenizers.none import NoTokenizer
from gptcli.tokenizers.offsets import end_text
from gptcli.tokenizers.template import OF_CHECKPOINT, Template
from gptcli.tokenizers.text import END_OF_TEXT


@dataclass(frozen=True)
class Source:
    """A GPT-2 from a foreign format, translated to our names and checked.

    Attributes:
        format: the name of the foreign format, for messages.
        config: the model's shape.
        tensors: by our names and in our layouts, in the file's dtype (float16, bfloat16 or float32), mostly
            memory-mapped.
        tokenizer: the model's tokenizer.
        notes: assumptions made, one line each.
    """

    format: str
    config: GPTConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    notes: list[str] = field(default_factory=list)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file ``path``.

    Raises:
        GptcliError: the file cannot be read, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GptcliError(
            f"{path} cannot be read: {error.strerror or error}.", "Check that the directory is complete."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise GptcliError(f"{path} is not JSON: {reason}.", "Download or copy it again.") from error
    if not isinstance(value, dict):
        raise GptcliError(f"{path} is not a JSON object but {value!r:.60}.", "Download or copy it again.")
    return value


def read_pickle(path: Path) -> dict[str, Any]:
    """A dict that torch.save wrote, read with ``weights_only=True``: code in the file is not executed.

    Raises:
        GptcliError: the file holds code, is damaged, or is not a dict.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise GptcliError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    try:
        # torch.load can map only the zip format; the older format is read into memory.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a hostile pickle can make torch.load raise any exception
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
    """``values``, if all keys are strings and all values are plain tensors; detached.

    Raises:
        GptcliError: a key is not a string; or a value is not a tensor, is sparse, quantised or not on the CPU, or has
            less storage than elements (a stride of 0 makes a shape of any size out of a few bytes).
    """
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise GptcliError(
                f"{where}: {name!r:.60} is a {type(value).__name__}, not a tensor.", "Give the weights of a GPT-2."
            )
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise GptcliError(
                f"{where}: not plain float16, bfloat16 or float32 weights: {listed([f'{name} {value.dtype}'])}.",
                "Quantised weights of other programs cannot be read; take the original model.",
            )
    return {name: value.detach() for name, value in values.items()}


def find_tokenizer(directory: Path, vocab_size: int, notes: list[str]) -> Tokenizer:
    """The tokenizer of a model of ``vocab_size`` rows, with the template of its conversations if that works.

    Args:
        directory: of the weights.
        vocab_size: of the model.
        notes: gets a line for each assumption, and for the template.

    Raises:
        GptcliError: see `_find_vocabulary`; or the file with the template is damaged.
    """
    tokenizer = _find_vocabulary(directory, vocab_size, notes)
    source = None if isinstance(tokenizer, NoTokenizer) else _find_template(directory, tokenizer)
    if source is None:
        return tokenizer
    try:
        template = Template(OF_CHECKPOINT, source, tokenizer)
        template.wrap("A prompt.")
        template.end()
    except GptcliError as error:
        notes.append(f"The model's chat template is left out. {error.message}")
    else:
        tokenizer.chat_template = source
        notes.append("The model has a chat template: generate writes each prompt with it.")
    return tokenizer


def _find_template(directory: Path, tokenizer: Tokenizer) -> str | None:
    """The chat template; it sets ``bos_token`` itself where that is not the end of text, as it is in our checkpoints.

    Without a bos_token in tokenizer_config.json, transformers takes the end of text for GPT-2's class, and nothing for
    others.
    """
    source, settings = chat_template.read(directory), directory / CONFIG_FILE
    if source is None or "bos_token" not in source:
        return source
    config = read_json(settings) if settings.is_file() else {}
    is_gpt2s = str(config.get("tokenizer_class", "GPT2Tokenizer")).startswith("GPT2Tokenizer")
    named = config.get("bos_token", END_OF_TEXT if is_gpt2s else "")
    text = named.get("content") if isinstance(named, dict) else named
    if text == end_text(tokenizer):
        return source
    return f"{{% set bos_token = {json.dumps(text or '', ensure_ascii=False)} %}}\n{source}"


def _find_vocabulary(directory: Path, vocab_size: int, notes: list[str]) -> Tokenizer:
    """The tokenizer in the weights' directory; without its files, GPT-2's if vocab_size is 50,257, else `NoTokenizer`.

    GPT-2's tokenizer is not assumed if the directory has a vocabulary that is not GPT-2's: the model then gets
    `NoTokenizer`, which raises an error when it is used. ``notes`` gets a line for each assumption.

    Raises:
        GptcliError: tokenizer.json is damaged or unsupported; or GPT-2's tokenizer would be assumed, but the directory
            has files of another tokenizer.
    """
    if (directory / vocabulary.FILE).is_file():
        return choice.read(directory)
    if (directory / tokenizer_json.FILE).is_file():
        return _read_tokenizer_json(directory, vocab_size, notes)
    names = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's, OpenAI's
    for vocab, merges in names:
        if (directory / vocab).is_file() and (directory / merges).is_file():
            if _is_gpt2s(directory / vocab, directory / merges) and vocab_size >= GPT2Tokenizer.vocab_size:
                return _gpt2s(vocab_size, notes)
            notes.append(f"{directory / vocab} is not GPT-2's vocabulary: the checkpoint gets no tokenizer.")
            return NoTokenizer()
    if vocab_size == GPT2Tokenizer.vocab_size:
        _refuse_others(directory)
        notes.append("No vocabulary beside the weights: 50,257 tokens are taken to be GPT-2's.")
        return tokenizers.build("gpt2")
    notes.append(f"No vocabulary beside the weights, and {vocab_size:,} tokens are not GPT-2's: no tokenizer.")
    return NoTokenizer()


def _gpt2s(vocab_size: int, notes: list[str]) -> Tokenizer:
    if vocab_size > GPT2Tokenizer.vocab_size:
        notes.append(f"{vocab_size - GPT2Tokenizer.vocab_size} tokens beyond GPT-2's have no text.")
    return tokenizers.build("gpt2")


def _read_tokenizer_json(directory: Path, vocab_size: int, notes: list[str]) -> Tokenizer:
    """See `foreign.read`; also raises GptcliError if the model has fewer rows than there are ids."""
    file = directory / tokenizer_json.FILE
    tokenizer = foreign.read(directory)
    if tokenizer.vocab_size > vocab_size:
        raise GptcliError(
            f"{file} has ids up to {tokenizer.vocab_size - 1:,}, but the model has {vocab_size:,} rows.",
            "They come from two models: put the model's own tokenizer.json beside its weights.",
        )
    if isinstance(tokenizer, GPT2Tokenizer):
        return _gpt2s(vocab_size, notes)
    without = vocab_size - tokenizer.vocab_size + len(tokenizer.holes)
    notes.append(
        f"The tokenizer is {file}: {tokenizer.vocab_size - len(tokenizer.holes):,} tokens"
        + (f", and {without:,} rows of the model have no text." if without else ".")
    )
    return tokenizer


# Files of unsupported tokenizers.
_OTHERS = {
    "spiece.model": "SentencePiece",
    "tokenizer.model": "SentencePiece",
    "sentencepiece.bpe.model": "SentencePiece",
    "vocab.txt": "WordPiece",
}


def _refuse_others(directory: Path) -> None:
    """Raise GptcliError if a file in ``directory`` shows that the model's tokenizer is not GPT-2's."""
    way_out = f"Put its {tokenizer_json.FILE} beside it; byte-level BPE with GPT-2's pre-split is read."
    for name, kind in _OTHERS.items():
        if (directory / name).is_file():
            raise GptcliError(f"{directory / name} is a {kind} tokenizer, which is not supported.", way_out)
    for one, other in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        for here, missing in ((one, other), (other, one)):
            if (directory / here).is_file() and not (directory / missing).is_file():
                raise GptcliError(
                    f"{directory} has {here} but no {missing}: its tokenizer is incomplete.",
                    f"Put {missing} of the same model beside it.",
                )
    settings = directory / CONFIG_FILE
    named = read_json(settings).get("tokenizer_class") if settings.is_file() else None
    if named is not None and named not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise GptcliError(
            f"{settings} says that the tokenizer is a {named!r:.60}, and {tokenizer_json.FILE} is missing.", way_out
        )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise GptcliError(
            f"{file} cannot be read: {error.strerror or error}.", "Check that the directory is complete."
        ) from error


def _is_gpt2s(vocab: Path, merges: Path) -> bool:
    """Whether the two files have the content of GPT-2's files on the hub, apart from formatting."""
    lines = _read(merges).decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n").split("\n")
    try:
        entries = json.loads(_read(vocab))
        return lines[0] == "#version: 0.2" and is_gpt2s(entries, lines[1:])
    except (ValueError, RecursionError, AttributeError, TypeError):
        return False
