"""Token ids -> the text a reader sees, ended by stop texts even where they straddle tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from gptcli.inference.sequence import Token
from gptcli.tokenizers import Tokenizer

FinishReason = Literal["length", "end of text", "stop"]


class StopTexts:
    """Passes text on until a stop text begins; holds back what may yet become one.

    Args:
        stops: non-empty texts to end before.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found = False
        self._held = ""

    def push(self, piece: str) -> str:
        """What of the text so far is certain to stay and has not been passed on yet."""
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
        """What was held back and became no stop text."""
        rest, self._held = self._held, ""
        return rest

    def _possible_beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = min(len(self._held), max((len(stop) for stop in self.stops), default=0))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self.stops)), 0)


class Completion:
    """One text in the making: iterate for its pieces, then look at ``tokens``, ``text`` and ``finish_reason``.

    Args:
        tokens: as `generation.generate` yields them.
        tokenizer: the checkpoint's.
        max_new_tokens: what the run was limited to, to tell why it ended.
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
