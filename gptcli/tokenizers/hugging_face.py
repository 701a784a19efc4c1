"""Writes our tokenizers as Hugging Face's tokenizer.json and tokenizer_config.json; AutoTokenizer's ids are ours.

AutoTokenizer takes <|endoftext|> in a text for the token, as ``encode`` does with ``allow_special``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptcli.tokenizers.gpt2 import CONFIG_FILE, byte_letters
from gptcli.tokenizers.text import END_OF_TEXT
from gptcli.tokenizers.tokenizer_json import FILE

# Python's `\s`: Unicode's White_Space, and U+001C to U+001F.
_WHITE_SPACE = r"[\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
_PUNCTUATION = r"""[,.:;?_!"()']|--"""
_NO_SPACE_BEFORE = r"""^(?![,.:;?!"()'])"""
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def of_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], end: int) -> dict[str, Any]:
    """Byte-level BPE with GPT-2's pre-split.

    Args:
        vocab: token in GPT-2's byte letters, and <|endoftext|> -> id.
        merges: pairs of tokens, the lowest rank first.
        end: the id of <|endoftext|>.
    """
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": vocab,
        "merges": [f"{left} {right}" for left, right in merges],  # every version of the library reads this form
    }  # fmt: skip
    return _content(model, pre_tokenizer=_BYTE_LEVEL, decoder=_BYTE_LEVEL, end=end)


def of_bytes(end: int) -> dict[str, Any]:
    """The 256 bytes, whose ids are their values, and the end of text."""
    letters = byte_letters()
    return of_bpe({letters[byte]: byte for byte in range(256)} | {END_OF_TEXT: end}, [], end)


def of_characters(characters: Sequence[str]) -> dict[str, Any] | None:
    """One token per character; None for a vocabulary with a lone surrogate, which UTF-8 cannot encode.

    The library raises an error for a character outside the vocabulary, as `CharTokenizer` does.
    """
    if any("\ud800" <= character <= "\udfff" for character in characters):
        return None
    vocab = {character: token_id for token_id, character in enumerate(characters)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    return _content(model, pre_tokenizer=_split(r"[\s\S]", "Isolated"), decoder={"type": "Fuse"})


def of_words(words: Sequence[str], end: int, unknown: str) -> dict[str, Any] | None:
    """Words and punctuation marks, without white space; None for a vocabulary with a lone surrogate.

    Args:
        words: in order of ids, <|endoftext|> and ``unknown`` included.
        end: the id of <|endoftext|>.
        unknown: the token of words outside the vocabulary.
    """
    if any("\ud800" <= character <= "\udfff" for word in words for character in word):
        return None
    model = {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)}, "unk_token": unknown}
    steps = [_split(_WHITE_SPACE, "Removed"), _split(_PUNCTUATION, "Isolated")]
    spaced = {"type": "Replace", "pattern": {"Regex": _NO_SPACE_BEFORE}, "content": " "}
    first = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return _content(
        model,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoder={"type": "Sequence", "decoders": [spaced, {"type": "Fuse"}, first]},
        end=end,
    )


def dumped(content: Mapping[str, Any]) -> bytes:
    """The bytes of tokenizer.json."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def write(directory: Path, content: bytes | Mapping[str, Any] | None, end: str | None) -> None:
    """Write tokenizer.json and tokenizer_config.json; nothing if ``content`` is None. Raises OSError."""
    if content is None:
        return
    (directory / FILE).write_bytes(content if isinstance(content, bytes) else dumped(content))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if end is not None:
        config |= {"bos_token": end, "eos_token": end}
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


def _content(
    model: Mapping[str, Any], pre_tokenizer: Mapping[str, Any], decoder: Mapping[str, Any], end: int | None = None
) -> dict[str, Any]:
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [] if end is None else [{"id": end, "content": END_OF_TEXT, **added}],
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
