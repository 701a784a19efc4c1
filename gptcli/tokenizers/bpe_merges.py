"""The merges of byte-level BPE (Sennrich et al., 2016), equal to those of Hugging Face's trainer, without the library.

The most frequent pair of neighbours is merged first; of equally frequent ones that with the lowest ids, where the bytes
are numbered by their letters' code points and each merge gets the next number.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from gptcli.tokenizers.gpt2 import WHITE_SPACE, byte_letters
from gptcli.tokenizers.text import without_surrogates

Pair = tuple[int, int]


@cache
def _pattern() -> Any:
    import regex  # tiktoken needs it, too

    space = f"[{WHITE_SPACE}]"
    return regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+"
        rf"| ?[^{WHITE_SPACE}\p{{L}}\p{{N}}]+|{space}+(?![^{WHITE_SPACE}])|{space}+"
    )


def merges(pieces: Iterable[str], count: int, min_frequency: int) -> list[tuple[str, str]]:
    """The first merges of a text in GPT-2's byte letters, until ``count`` tokens are made; fewer for a short text.

    Takes about a second for a megabyte and a thousand merges.

    Args:
        pieces: the text, cut only where GPT-2's pre-split cuts.
        count: tokens beside the 256 bytes.
        min_frequency: how often a pair must occur to be merged.
    """
    words = Counter(word for piece in pieces for word in _pattern().findall(without_surrogates(piece)))
    letters = byte_letters()
    names = sorted(letters.values())
    number = {letter: place for place, letter in enumerate(names)}
    of_byte = [number[letters[byte]] for byte in range(256)]
    return _Merger([[of_byte[byte] for byte in word.encode()] for word in words], list(words.values()), names).run(
        count, min_frequency
    )


class _Merger:
    def __init__(self, words: list[list[int]], counts: Sequence[int], names: list[str]) -> None:
        self.words, self.counts, self.names = words, counts, names
        self.numbers = {name: place for place, name in enumerate(names)}
        self.frequency: Counter[Pair] = Counter()
        self.places: defaultdict[Pair, set[int]] = defaultdict(set)  # the words that a pair may be in
        for place, word in enumerate(words):
            for pair in pairwise(word):
                self.frequency[pair] += counts[place]
                self.places[pair].add(place)
        self.queue = [(-frequency, pair) for pair, frequency in self.frequency.items()]
        heapq.heapify(self.queue)

    def run(self, count: int, min_frequency: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        most = len(self.names) + count
        while self.queue and len(self.names) < most:
            frequency, pair = heapq.heappop(self.queue)
            now = self.frequency[pair]
            if -frequency != now:  # it has become rarer since
                heapq.heappush(self.queue, (-now, pair))
            elif now < min_frequency:
                break
            else:
                found.append((self.names[pair[0]], self.names[pair[1]]))
                self._merge(pair, self._numbered("".join(found[-1])))
        return found

    def _numbered(self, name: str) -> int:
        """The number of a token, which two pairs can make."""
        if name not in self.numbers:
            self.numbers[name] = len(self.names)
            self.names.append(name)
        return self.numbers[name]

    def _merge(self, pair: Pair, new: int) -> None:
        changed: set[Pair] = set()
        for place in self.places.pop(pair):
            before, count = self.words[place], self.counts[place]
            after = _merged(before, pair, new)
            if len(after) == len(before):
                continue
            for old in pairwise(before):
                self.frequency[old] -= count
            for each in pairwise(after):
                self.frequency[each] += count
                if new in each:
                    self.places[each].add(place)
                    changed.add(each)
            self.words[place] = after
        self.frequency[pair] = 0
        for each in changed - {pair}:
            heapq.heappush(self.queue, (-self.frequency[each], each))


def _merged(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    out: list[int] = []
    place, last = 0, len(word) - 1
    while place <= last:
        if place < last and (word[place], word[place + 1]) == pair:
            out.append(new)
            place += 2
        else:
            out.append(word[place])
            place += 1
    return out
