"""Short ways to tokens and logits that tests share, and an engine whose every probability is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptcli.config.model import GPTConfig
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Engine, Scorer
from gptcli.inference.sampling import Drawable
from gptcli.inference.sequence import Request, Token
from gptcli.inference.speculative import Drafter, Tally


def continued(
    engine: Engine | Scorer, request: Request, drafter: Drafter | None = None, tally: Tally | None = None, **how: Any
) -> list[Token]:
    """The tokens of one request alone."""
    scorer = engine if isinstance(engine, Scorer) else Scorer(engine)
    return list(generate(Scheduler(scorer, drafter, tally, **how), request))


def ids_of(engine: Engine | Scorer, request: Request, drafter: Drafter | None = None, **how: Any) -> list[int]:
    """The ids of `continued`."""
    return [token.id for token in continued(engine, request, drafter, **how)]


def together(engine: Engine, requests: Sequence[Request], *how: Any) -> list[list[int]]:
    """The ids of every request, all decoded in the slots of one engine."""
    scheduler = Scheduler(Scorer(engine, *how))
    sequences = [scheduler.add(request) for request in requests]
    while not all(sequence.done for sequence in sequences):
        scheduler.step()
    assert not scheduler.step()
    return [[token.id for token in sequence.tokens] for sequence in sequences]


def read(engine: Engine, slot: int, ids: Sequence[int], start: int, *, every: bool = False, exit_at: int = 0) -> Any:
    """Logits after tokens of one slot, from position ``start`` on."""
    return engine.forward([slot], [ids], [start], every=every, exit_at=exit_at)


def step(engine: Engine, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> Any:
    """Logits after one token of each slot."""
    return engine.forward(slots, [[token] for token in ids], positions)


class Table:
    """An engine of one slot whose logits are rows of a table: by the last token, or by the position."""

    slots, at_once, prompt_tokens, verifies = 1, 12, 0, True

    def __init__(self, rows: Any, context_length: int = 16, by_position: bool = False) -> None:
        self.rows, self.by_position = np.array(rows, np.float32), by_position
        self.config = GPTConfig(
            vocab_size=self.rows.shape[1], context_length=context_length, emb_dim=1, n_heads=1, n_layers=1
        )

    def forward(
        self,
        slots: Sequence[int],
        ids: Sequence[Sequence[int]],
        positions: Sequence[int],
        *,
        every: bool = False,
        exit_at: int = 0,
    ) -> np.ndarray:
        (row,), (start,) = ids, positions
        assert all(0 <= i < self.config.vocab_size for i in row)
        found = self.rows[start : start + len(row)] if self.by_position else self.rows[list(row)]
        return (found if every else found[-1:]).copy()

    def fork(self, source: int, target: int, length: int) -> None:
        raise AssertionError("there is one slot")

    def quantized_copy(self, bits: int) -> "Table":
        raise AssertionError("a table has no weights")

    def device_sampler(self, requests: Sequence[Request], drawable: Drawable | None = None) -> None:
        """None: numpy draws."""
