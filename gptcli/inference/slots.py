"""What the slots of an engine's cache hold, so that no slot reads what it or another one holds already."""

from collections.abc import Sequence

from gptcli.inference.arrays import Array, library
from gptcli.inference.engine import Scorer

WORTH_SHARING = 16  # tokens in the shortest common prefix that is kept or copied instead of read


class Slots:
    """The prefix cache: the ids in each slot, and the scores after the prompt that was last read into it.

    Args:
        scorer: the engine whose slots these are.

    Attributes:
        ids: the ids that each slot holds, from position 0 on.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.ids: list[list[int]] = [[] for _ in range(scorer.engine.slots)]
        self._scorer = scorer
        self._prompts: list[tuple[int, Array] | None] = [None] * scorer.engine.slots  # its length, its last scores

    def fill(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> Array:
        """Let each slot hold its ids and nothing else; scores (N, V) of the last of each, in the order of ``prompts``.

        The longest prefix that any slot holds is kept or copied. A prompt that a slot holds whole is not read at all.
        All others are read in one forward pass.
        """
        reads: list[tuple[int, list[int], int]] = []  # slot, ids, how many of them it holds
        for slot, ids in prompts:
            known, scores = self._keep_prefix(slot, ids)
            self.ids[slot] = list(ids[:known])
            self._prompts[slot] = None if scores is None else (len(ids), scores)
            if scores is None:
                reads.append((slot, list(ids), known))
        if reads:
            slots, starts = [slot for slot, _, _ in reads], [known for _, _, known in reads]
            read = self._scorer.forward(slots, [ids[known:] for _, ids, known in reads], starts)
            for row, (slot, ids, _) in enumerate(reads):
                self.ids[slot] = ids
                self._prompts[slot] = len(ids), read[row : row + 1] + 0.0
        found = [prompt[1] + 0.0 for slot, _ in prompts if (prompt := self._prompts[slot]) is not None]
        return found[0] if len(found) == 1 else library(found[0]).concatenate(found)

    def _keep_prefix(self, slot: int, ids: Sequence[int]) -> tuple[int, Array | None]:
        """Let a slot hold as many of the first ids as any slot holds: how many, and the scores after the last of all.

        The scores are None unless a slot holds the whole prompt, as it was last read.
        """
        common = [_common_prefix(ids, held) for held in self.ids]
        source = max(range(len(common)), key=lambda n: (common[n], n == slot))
        prompt = next((p for p, n in zip(self._prompts, common, strict=True) if p and p[0] == len(ids) == n), None)
        known = len(ids) if prompt is not None else min(common[source], len(ids) - 1)
        if prompt is None and known < WORTH_SHARING:
            known = 0
        elif source != slot:
            self._scorer.engine.fork(source, slot, known)
        return known, None if prompt is None else prompt[1]

    def append(self, slot: int, ids: Sequence[int]) -> None:
        """Note that the engine has read ``ids`` after those that the slot held."""
        self.ids[slot] += ids


def share_prefix(ids: Sequence[int], others: Sequence[int]) -> bool:
    """Whether reading one prompt after the other saves tokens, because the first ones are the same."""
    return _common_prefix(ids, others) >= WORTH_SHARING


def _common_prefix(ids: Sequence[int], held: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    length = min(len(ids), len(held))
    return next((n for n in range(length) if ids[n] != held[n]), length)
