"""Requests of every kind, and what they must get in company."""

from collections.abc import Sequence

import numpy as np
from decoding import ids_of, together

from gptcli.config.sampling import SamplingConfig
from gptcli.inference.engine import Engine
from gptcli.inference.sequence import Request

SAMPLINGS = (SamplingConfig(0), SamplingConfig(1.1, top_k=30), SamplingConfig(0.9, repetition_penalty=1.2))


def ragged_requests(common: Sequence[int] = ()) -> list[Request]:
    """Ragged prompts, every third beginning with ``common``; other options each, some past a short context, some ended
    by a token."""
    rng = np.random.default_rng(0)
    return [
        Request(
            [*(common if n % 3 == 0 else ()), *rng.integers(0, 61, rng.integers(1, 30)).tolist()],
            int(rng.integers(1, 50)),
            SAMPLINGS[n % 3],
            seed=n,
            eot_id=n if n % 4 == 0 else None,
            overflow="crop" if n % 5 == 0 else "slide",
        )
        for n in range(14)
    ]


def assert_each_as_alone(requests: Sequence[Request], alone: Engine, in_slots: Engine) -> None:
    """Every request gets the tokens that it gets alone."""
    rows = together(in_slots, requests)
    assert rows == [ids_of(alone, request) for request in requests]
    assert len({len(row) for row in rows}) > 5
