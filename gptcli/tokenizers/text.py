"""Text functions shared by the tokenizers: the end-of-text token, UTF-8, and escapes for unprintable characters."""

import codecs
from collections.abc import Callable

END_OF_TEXT = "<|endoftext|>"


def encode_with_special(
    text: str,
    encode_plain: Callable[[str], list[int]],
    eot_id: int | None,
    allow_special: bool,
    special: str = END_OF_TEXT,
) -> list[int]:
    """Token ids of ``text``; with ``allow_special``, ``special`` in it becomes ``eot_id``, else it is ordinary text."""
    if not allow_special or eot_id is None or special not in text:
        return encode_plain(text)
    first, *others = text.split(special)
    ids = encode_plain(first)
    for part in others:
        ids.append(eot_id)
        ids += encode_plain(part)
    return ids


def to_utf8(text: str) -> bytes:
    """``text`` in UTF-8, which cannot encode surrogates: see `without_surrogates`."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return without_surrogates(text).encode("utf-8")


def without_surrogates(text: str) -> str:
    """``text`` with the character of a pair of surrogates in its place, and U+FFFD in that of a lone one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def printable(piece: bytes | str) -> str:
    """``piece`` on one line; bytes that are not UTF-8 and unprintable characters are escaped: \\xf0, \\n."""
    text = piece if isinstance(piece, str) else piece.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Utf8Stream:
    """Decodes token by token; the bytes of an incomplete character are kept until a later token completes it.

    Args:
        token_bytes: maps a token id to its bytes.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The whole characters that this token completes; may be empty."""
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD for remaining incomplete bytes, else nothing; resets the stream."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
