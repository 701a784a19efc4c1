"""What the slots of an engine's cache hold, so that no slot reads what it or another one holds already."""

from collections.abc import Sequence

from gptcli.inference.arrays import Array
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

    def fill(self, slot: int, ids: Sequence[int]) -> Array:
        """Let a slot hold ``ids`` and nothing else; scores (1, V) of the last of them.

        The longest prefix that any slot holds is kept or copied. A prompt that a slot holds whole is not read at all.
        """
        common = [_common_prefix(ids, held) for held in self.ids]
        source = max(range(len(common)), key=lambda n: (common[n], n == slot))
        prompt = next((p for p, n in zip(self._prompts, common, strict=True) if p and p[0] == len(ids) == n), None)
        known = len(ids) if prompt is not None else min(common[source], len(ids) - 1)
        if prompt is None and known < WORTH_SHARING:
            known = 0
        elif source != slot:
            self._scorer.engine.fork(source, slot, known)
        scores = self._scorer.forward([slot], [ids[known:]], [known]) if prompt is None else prompt[1]
        self.ids[slot] = list(ids)
        self._prompts[slot] = len(ids), scores + 0.0
        return scores + 0.0 if prompt is not None else scores

    def append(self, slot: int, ids: Sequence[int]) -> None:
        """Note that the engine has read ``ids`` after those that the slot held."""
        self.ids[slot] += ids


def _common_prefix(ids: Sequence[int], held: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    length = min(len(ids), len(held))
    return next((n for n in range(length) if ids[n] != held[n]), length)
