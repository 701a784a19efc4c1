"""Tokens -> text pieces, ended before a stop text even if it spans several tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from gptcli.inference.sequence import Token
from gptcli.tokenizers import Tokenizer

FinishReason = Literal["length", "end of text", "stop"]


class StopTexts:
    """Emits text up to the first stop text; holds back an end that may become a stop text.

    Args:
        stops: non-empty texts to end before.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Append a piece; return the held text that cannot belong to a stop text."""
        self._held += piece
        ends = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            certain, self._held = self._held[: min(ends)], ""
            return certain
        keep = self._possible_beginning()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """The rest of the held text, at the end of the stream."""
        rest, self._held = self._held, ""
        return rest

    def _possible_beginning(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop text."""
        longest = min(len(self._held), max((len(stop) for stop in self.stops), default=0))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self.stops)), 0)


class Completion:
    """The text of one request: iterate over its pieces, then read ``tokens``, ``text`` and ``finish_reason``.

    Args:
        tokens: as `generation.generate` yields them.
        tokenizer: the checkpoint's.
        max_new_tokens: the request's limit, for ``finish_reason``.
        stops: texts to end before.
    """

    def __init__(
        self, tokens: Iterable[Token], tokenizer: Tokenizer, max_new_tokens: int, stops: Sequence[str] = ()
    ) -> None:
        self.tokens: list[Token] = []
        self.text = ""
        self._source = tokens
        self._stream = tokenizer.stream()
        self._stops = StopTexts(stops)
        self._max_new_tokens = max_new_tokens

    @property
    def finish_reason(self) -> FinishReason:
        if self._stops.found:
            return "stop"
        return "length" if len(self.tokens) >= self._max_new_tokens else "end of text"

    def __iter__(self) -> Iterator[str]:
        for token in self._source:
            self.tokens.append(token)
            yield from self._emit(self._stops.push(self._stream.push(token.id)))
            if self._stops.found:
                return
        yield from self._emit(self._stops.push(self._stream.flush()))
        if not self._stops.found:
            yield from self._emit(self._stops.flush())

    def _emit(self, piece: str) -> Iterator[str]:
        if piece:
            self.text += piece
            yield piece
