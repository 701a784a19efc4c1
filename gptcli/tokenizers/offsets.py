"""Which characters of a text each of its tokens stands for, and which texts are special tokens."""

from collections.abc import Sequence
from itertools import accumulate

from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.byte import ByteTokenizer
from gptcli.tokenizers.gpt2 import GPT2Tokenizer
from gptcli.tokenizers.protocol import Tokenizer
from gptcli.tokenizers.text import END_OF_TEXT, to_utf8
from gptcli.tokenizers.word import UNKNOWN, WordTokenizer

BYTE_LEVEL = (GPT2Tokenizer, BPETokenizer, ByteTokenizer)


def encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of ``text``, with its end-of-text tokens read as tokens, and the characters of each.

    Returns:
        ids, and for each (first character, one past the last); where a character has several tokens, each of them
        has it.

    Raises:
        GptcliError: as the tokenizer.
    """
    ids = tokenizer.encode(text, allow_special=True)
    if isinstance(tokenizer, WordTokenizer):
        return ids, tokenizer.spans(text)
    if not isinstance(tokenizer, BYTE_LEVEL):
        return ids, [(at, at + 1) for at in range(len(ids))]  # a token is a character
    ends = list(accumulate(len(tokenizer.token_bytes(token_id)) for token_id in ids))
    characters = [-1]  # the character that each byte belongs to, after one that belongs to none
    for byte in to_utf8(text):
        characters.append(characters[-1] + (byte & 0xC0 != 0x80))
    return ids, [(characters[begin + 1], characters[end] + 1) for begin, end in zip([0, *ends], ends, strict=False)]


def special_texts(tokenizer: Tokenizer) -> Sequence[str]:
    """The texts that encoding with special tokens, here or in AutoTokenizer, takes for a token."""
    if isinstance(tokenizer, BPETokenizer):
        described = tokenizer.description
        return [text for text in described.added if text not in described.kept]
    if isinstance(tokenizer, WordTokenizer):
        return [END_OF_TEXT, UNKNOWN]
    return [] if tokenizer.eot_id is None else [END_OF_TEXT]


def end_text(tokenizer: Tokenizer) -> str | None:
    """The text of the end-of-text token; None if there is none."""
    if tokenizer.eot_id is None:
        return None
    return tokenizer.decode([tokenizer.eot_id])


def special_in(texts: Sequence[str], tokenizer: Tokenizer) -> str | None:
    """The first special token whose text stands in one of ``texts``: encoding would take it for the token."""
    special = special_texts(tokenizer)
    return next((token for token in special if any(token in text for text in texts)), None)
