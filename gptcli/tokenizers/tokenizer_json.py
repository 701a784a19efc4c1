"""Reads Hugging Face's tokenizer.json if it is byte-level BPE with GPT-2's pre-split; raises GptcliError otherwise."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.tokenizers.gpt2 import byte_letters
from gptcli.tokenizers.text import END_OF_TEXT

FILE = "tokenizer.json"
MOST_IDS = 4_000_000  # the ids up to the largest are listed, so a file must not claim billions of them
_WAY_OUT = "gptcli reads byte-level BPE with GPT-2's pre-split, and never takes another tokenizer for it."
_DOWNLOAD = "Download or copy it again."
# GPT-2's split pattern, in the form that a Split step of the tokenizers library has it.
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Fields of the model with the values that have no effect.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


@dataclass(frozen=True)
class Description:
    """The content of a tokenizer.json that determines token ids.

    Attributes:
        vocab: token, with its bytes written as GPT-2's byte letters, -> id.
        merges: pairs of tokens in order of rank, the lowest first.
        added: text of each added token, which BPE does not produce, -> id.
        kept: the added tokens that are not special; encoding finds them in a text.
        end: the end-of-text token; None if there is none.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int]
    kept: list[str]
    end: str | None

    def id_of(self, token: str) -> int:
        """The id of ``token`` in ``added``, or else in ``vocab``."""
        return self.added[token] if token in self.added else self.vocab[token]

    def fingerprint(self) -> str:
        """SHA-256, in hex, of all attributes; the file's formatting has no effect."""
        parts = [
            *(f"{token_id} {token}" for token, token_id in sorted(self.vocab.items(), key=lambda item: item[1])),
            *map(" ".join, self.merges),
            *(f"{token_id} {token}" for token, token_id in sorted(self.added.items(), key=lambda item: item[1])),
            *sorted(self.kept),
            self.end or "",
        ]
        counts = f"bpe {len(self.vocab)} {len(self.merges)} {len(self.added)}"
        return hashlib.sha256("\0".join([counts, *parts]).encode("utf-8", "surrogatepass")).hexdigest()


def parse(content: bytes, file: Path) -> dict[str, Any]:
    """The JSON object in ``content``.

    Raises:
        GptcliError: ``content`` is not a JSON object.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise GptcliError(f"{file} is not JSON: {reason}.", _DOWNLOAD) from error
    if not isinstance(value, dict):
        raise GptcliError(f"{file} is not a JSON object but {value!r:.60}.", _DOWNLOAD)
    return value


def describe(content: bytes, file: Path, config: Mapping[str, Any]) -> Description:
    """The `Description` of a tokenizer.json.

    Args:
        content: the bytes of the file.
        file: its path, for messages.
        config: the content of tokenizer_config.json, or an empty mapping.

    Raises:
        GptcliError: the file is damaged, or is not byte-level BPE with GPT-2's pre-split.
    """
    everything = parse(content, file)
    model = everything.get("model")
    if not isinstance(model, dict):
        raise GptcliError(f"{file} has no model.", _DOWNLOAD)
    _check_model(model, file)
    _check_steps(everything, file)
    vocab, merges = _vocab(model, file), _merges(model, file)
    added, kept = _added(everything.get("added_tokens") or [], file)
    _check_table(vocab, merges, added, file)
    return Description(vocab, merges, added, kept, _end(config, vocab | added))


def _check_model(model: Mapping[str, Any], file: Path) -> None:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise GptcliError(f"{file} is a tokenizer of type {kind!r:.40}, not byte-level BPE.", _WAY_OUT)
    for name, harmless in _HARMLESS.items():
        if model.get(name) not in harmless:
            raise GptcliError(f"{file}: the model's {name} is {model[name]!r:.40}, which is not supported.", _WAY_OUT)


def _check_steps(everything: Mapping[str, Any], file: Path) -> None:
    """Raise GptcliError unless the steps before BPE (on the text) and after it (on the ids) are GPT-2's."""
    for step in _flat(everything.get("normalizer"), "normalizers"):
        raise _unsupported(file, "normalizer", step)
    steps = _flat(everything.get("pre_tokenizer"), "pretokenizers")
    split = steps[0] if len(steps) == 2 and steps[0].get("type") == "Split" else None
    if split is not None:
        written = split.get("pattern") == {"Regex": _GPT2_SPLIT} and split.get("behavior") == "Isolated"
        if not written or split.get("invert", False):
            raise _unsupported(file, "pre_tokenizer", split)
    last = steps[-1] if steps else {"type": None}
    cuts = last.get("use_regex", True) != (split is not None)
    if len(steps) != (1 if split is None else 2) or last.get("type") != "ByteLevel" or not cuts:
        raise _unsupported(file, "pre_tokenizer", next((s for s in steps if s.get("type") != "ByteLevel"), last))
    if last.get("add_prefix_space", True):
        raise GptcliError(f"{file}: it puts a space before every text (add_prefix_space), unlike GPT-2.", _WAY_OUT)
    for step in _flat(everything.get("post_processor"), "processors"):
        template = step.get("single") if step.get("type") == "TemplateProcessing" else None
        adds_nothing = (
            isinstance(template, list) and all("Sequence" in part for part in template) and len(template) == 1
        )
        if step.get("type") != "ByteLevel" and not adds_nothing:
            raise _unsupported(file, "post_processor", step)


def _flat(step: Any, inner: str) -> list[dict[str, Any]]:
    """The steps of a "Sequence", or the single step, or an empty list."""
    if not isinstance(step, dict):
        return []
    steps = step.get(inner) if step.get("type") == "Sequence" else [step]
    return [each for each in steps if isinstance(each, dict)] if isinstance(steps, list) else []


def _unsupported(file: Path, name: str, step: Mapping[str, Any]) -> GptcliError:
    """The error for a step that GPT-2's tokenizer does not have, or has with other settings."""
    kind = step.get("type")
    settings = {key: value for key, value in step.items() if key != "type"}
    said = f" ({json.dumps(settings, ensure_ascii=True):.100})" if settings and kind in ("Split", "ByteLevel") else ""
    return GptcliError(f"{file}: its {name} is {kind!r:.40}{said}, which is not GPT-2's.", _WAY_OUT)


def _vocab(model: Mapping[str, Any], file: Path) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(value) is int and value >= 0 for value in vocab.values()):
        raise GptcliError(f"{file} has no vocab of tokens with their ids.", _DOWNLOAD)
    return vocab


def _merges(model: Mapping[str, Any], file: Path) -> list[tuple[str, str]]:
    """The merges as pairs; older versions of the library wrote a pair as the string "a b"."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise GptcliError(f"{file} has no list of merges.", _DOWNLOAD)
    pairs: list[tuple[str, str]] = []
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            raise GptcliError(f"{file}: merge {number} is {merge!r:.60}, not two tokens.", _DOWNLOAD)
        pairs.append((parts[0], parts[1]))
    return pairs


def _added(tokens: Any, file: Path) -> tuple[dict[str, int], list[str]]:
    added: dict[str, int] = {}
    kept: list[str] = []
    for token in tokens if isinstance(tokens, list) else [tokens]:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or type(token.get("id")) is not int or token["id"] < 0:
            raise GptcliError(f"{file}: an added token is {token!r:.80}, without its text or id.", _DOWNLOAD)
        added[content] = token["id"]
        if not token.get("special", False):
            odd = [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag, False)]
            if odd or any(letter.isspace() for letter in content):
                why = odd[0] if odd else "white space in it"
                raise GptcliError(
                    f"{file}: the added token {content!r:.60} has {why}, which is not supported.", _WAY_OUT
                )
            kept.append(content)
    return added, kept


def _check_table(vocab: Mapping[str, int], merges: list[tuple[str, str]], added: Mapping[str, int], file: Path) -> None:
    missing = [byte for byte, letter in byte_letters().items() if letter not in vocab]
    if missing:
        raise GptcliError(
            f"{file}: its vocabulary lacks {len(missing)} of the 256 bytes, the first 0x{min(missing):02x}.", _WAY_OUT
        )
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocab:
                raise GptcliError(f"{file}: a merge of {left!r:.40} and {right!r:.40} lacks {token!r:.40}.", _DOWNLOAD)
    named: dict[int, str] = {}
    for token, token_id in [*vocab.items(), *added.items()]:
        if token_id >= MOST_IDS:
            raise GptcliError(f"{file}: {token!r:.40} has the id {token_id}, beyond {MOST_IDS:,}.", _DOWNLOAD)
        if named.setdefault(token_id, token) != token:
            raise GptcliError(
                f"{file}: {named[token_id]!r:.40} and {token!r:.40} both have the id {token_id}.", _DOWNLOAD
            )
        if token in vocab and vocab[token] != token_id:
            raise GptcliError(f"{file}: {token!r:.40} has the ids {vocab[token]} and {token_id}.", _DOWNLOAD)


def _end(config: Mapping[str, Any], known: Mapping[str, int]) -> str | None:
    """The end-of-text token: eos_token of tokenizer_config.json, or else <|endoftext|>, if it is among ``known``."""
    named = config.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    if isinstance(named, str) and named in known:
        return named
    return END_OF_TEXT if END_OF_TEXT in known else None
