"""Completions of many prompts, decoded together and yielded in the order of the prompts."""

from collections.abc import Callable, Iterator, Sequence

from gptcli.inference.decode import SlotDecoder, decode_together
from gptcli.inference.sequence import Request, Token
from gptcli.inference.streaming import Completion, StopTexts
from gptcli.tokenizers import Tokenizer


def completions(
    decoder: SlotDecoder,
    requests: Sequence[Request],
    stops: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    on_token: Callable[[], object] = lambda: None,
) -> Iterator[Completion]:
    """The whole completion of every request, in the order of the requests.

    Args:
        decoder: its engine's slots are the number of requests decoded together.
        requests: what to continue and how.
        stops: for each request the texts to end before.
        tokenizer: the checkpoint's.
        on_token: called for every token, of whichever request.
    """
    drawn: list[list[Token]] = [[] for _ in requests]
    ends = [_StopWatch(tokenizer, texts) for texts in stops]
    finished: set[int] = set()
    given = 0
    work = decode_together(decoder.engine, requests, decoder.contrast, decoder.drawable)
    stopped: bool | None = None
    while True:
        try:
            number, token = work.send(stopped)
        except StopIteration:
            return
        stopped = None
        if token is not None:
            drawn[number].append(token)
            on_token()
            stopped = ends[number].found(token.id)
            continue
        finished.add(number)
        while given in finished:
            result = Completion(iter(drawn[given]), tokenizer, requests[given].max_new_tokens, stops[given])
            for _ in result:
                pass
            yield result
            given += 1


class _StopWatch:
    """Detects a stop text in the decoded text of one request's tokens."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._stream = tokenizer.stream()
        self._stops = StopTexts(stops)

    def found(self, token_id: int) -> bool:
        self._stops.push(self._stream.push(token_id))
        return self._stops.found
