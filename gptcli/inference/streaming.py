"""Tokens -> text pieces, ended before a stop text even if it spans several tokens; of one request, or of many."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Literal

from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.sequence import Request, Token
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


class TextStream:
    """The text of one request: `push` its tokens and then `end` it, or iterate over the pieces that `stream` gives.

    Args:
        request: the limit of tokens and the texts to end before.
        tokenizer: the checkpoint's.
        source: the tokens to iterate over; closed where a stop text ends the completion.

    Attributes:
        tokens, text: all that was pushed, without what is held back.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, source: Generator[Token] | None = None) -> None:
        self.request = request
        self.tokens: list[Token] = []
        self.text = ""
        self._source = source
        self._stream = tokenizer.stream()
        self._stops = StopTexts(request.stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop text has been found."""
        return self._stops.found

    @property
    def finish_reason(self) -> FinishReason:
        if self.stopped:
            return "stop"
        return "length" if len(self.tokens) >= self.request.max_new_tokens else "end of text"

    def push(self, token: Token) -> str:
        """Append a token; the piece of text that is now certain, perhaps empty."""
        self.tokens.append(token)
        piece = self._stops.push(self._stream.push(token.id))
        self.text += piece
        return piece

    def end(self) -> str:
        """The rest of the text, after the last token; nothing after a stop text."""
        piece = "" if self.stopped else self._stops.push(self._stream.flush())
        piece += "" if self.stopped else self._stops.flush()
        self.text += piece
        return piece

    def __iter__(self) -> Iterator[str]:
        """The pieces of the text, as soon as each is certain.

        Raises:
            GptcliError: as `decode.generate` does.
        """
        if self._source is None:
            return
        try:
            for token in self._source:
                if piece := self.push(token):
                    yield piece
                if self.stopped:
                    return
            if piece := self.end():
                yield piece
        finally:
            self._source.close()


def stream(scheduler: Scheduler, request: Request, tokenizer: Tokenizer) -> TextStream:
    """The completion of one request, to iterate over while it is generated."""
    return TextStream(request, tokenizer, generate(scheduler, request))


def complete_all(
    scheduler: Scheduler,
    requests: Sequence[Request],
    tokenizer: Tokenizer,
    on_token: Callable[[], object] = lambda: None,
) -> Iterator[TextStream]:
    """The whole completion of every request, in the order of the requests, as soon as it and all before are whole.

    Args:
        scheduler: its engine's slots are the number of requests decoded together.
        requests: what to continue and how.
        tokenizer: the checkpoint's.
        on_token: called for every token, of whichever request.

    Raises:
        GptcliError: as `decode.generate` does, in the turn of the request that it concerns.
    """
    pairs = [(scheduler.add(request), TextStream(request, tokenizer)) for request in requests]
    completion_of = dict(pairs)
    try:
        for sequence, completion in pairs:
            while not sequence.done:
                for drawn_for, token in scheduler.step():
                    other = completion_of.get(drawn_for)
                    if other is None or other.stopped:
                        continue
                    other.push(token)
                    on_token()
                    if other.stopped:
                        scheduler.cancel(drawn_for)
            if sequence.error is not None:
                raise sequence.error
            completion.end()
            yield completion
    finally:
        for sequence, _ in pairs:
            scheduler.cancel(sequence)
