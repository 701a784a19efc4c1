"""What every tokenizer needs to know about text: the special token, UTF-8, and characters that cannot be printed."""

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
    """Token ids of ``text``; ``special`` in it becomes ``eot_id`` if allowed, and is ordinary text otherwise."""
    if not allow_special or eot_id is None or special not in text:
        return encode_plain(text)
    first, *others = text.split(special)
    ids = encode_plain(first)
    for part in others:
        ids.append(eot_id)
        ids += encode_plain(part)
    return ids


def to_utf8(text: str) -> bytes:
    """``text`` in UTF-8. Surrogate pairs become their character, lone surrogates U+FFFD: UTF-8 has no form for them."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


def printable(piece: bytes | str) -> str:
    """``piece`` on one line, with escapes for bytes that are no UTF-8 and for what cannot be printed: \\xf0, \\n."""
    text = piece if isinstance(piece, str) else piece.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Utf8Stream:
    """Decodes the bytes of one token after another; a character whose bytes are not all there yet is held back.

    Args:
        token_bytes: gives the bytes of a token id.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; it may be empty."""
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """What is still held back, as U+FFFD; the stream can then be used anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
