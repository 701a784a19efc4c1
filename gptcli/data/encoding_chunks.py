"""Texts cut into chunks that can be encoded apart, for tokens that are those of the whole."""

import re
from collections.abc import Iterable, Iterator

from gptcli.tokenizers.gpt2 import WHITE_SPACE

PORTION = 2**20  # characters

# No piece that GPT-2's pattern finds, and no word, goes on from another character into white space, and nothing looks
# back: the two sides of such a place can be encoded apart.
_CUT = re.compile(rf"(?<=[^{WHITE_SPACE}])[{WHITE_SPACE}]")

# What a text gives, in order: whether a separator comes first, and text.
Portion = list[tuple[bool, str]]


def chunks(pieces: Iterable[tuple[bool, str]], size: int = PORTION) -> Iterator[Portion]:
    """Texts in chunks of at least ``size`` characters, which depend on the texts alone and may be encoded apart.

    A text that must be cut is cut before the first white space after ``size`` characters that follows something else.

    Args:
        pieces: texts in pieces, however cut: (whether a text begins here, piece).
        size: characters.
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
