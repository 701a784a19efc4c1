"""Cuts texts into chunks; the tokens of the chunks, encoded separately and joined, are the tokens of the texts."""

import re
from collections.abc import Iterable, Iterator

from gptcli.tokenizers.gpt2 import WHITE_SPACE

PORTION = 2**20  # characters

# A place before white space and after another character. No match of GPT-2's pattern and no word spans such a place,
# and the pattern has no lookbehind, so both sides can be encoded separately.
_CUT = re.compile(rf"(?<=[^{WHITE_SPACE}])[{WHITE_SPACE}]")

# The parts of a chunk, in order: (whether the end-of-text token comes first, text).
Portion = list[tuple[bool, str]]


def chunks(pieces: Iterable[tuple[bool, str]], size: int = PORTION) -> Iterator[Portion]:
    """Texts in chunks of at least ``size`` characters (the last may be shorter), to be encoded separately.

    A longer text is cut before the first white space, from ``size`` characters on, that follows another character.
    Where the chunks end depends only on the texts and ``size``, not on the sizes of the pieces.

    Args:
        pieces: texts in pieces of any size: (whether a text begins with this piece, piece).
        size: in characters.
    """
    chunk: Portion = []
    length = 0
    for part in _cut_texts(pieces, size):
        chunk.append(part)
        length += len(part[1])
        if length >= size:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def _cut_texts(pieces: Iterable[tuple[bool, str]], size: int) -> Iterator[tuple[bool, str]]:
    held, separated, texts = "", False, 0
    for begins, piece in pieces:
        if begins:
            if held:
                yield separated, held
            held, separated = "", texts > 0
            texts += 1
        looked_at = len(held)
        held += piece
        while cut := _CUT.search(held, max(size, looked_at)):
            yield separated, held[: cut.start()]
            held, separated, looked_at = held[cut.start() :], False, 0
    if held:
        yield separated, held
