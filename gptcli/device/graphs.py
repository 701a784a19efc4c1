"""CUDA graphs: launches that are recorded once and replayed together."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Iterator[None]:
    """Record the launches of the block in ``graph``, whose tensors lie in the memory ``pool``.

    Python's garbage collector does not run meanwhile: freeing another graph during a capture invalidates it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool):
            yield
    finally:
        if was_enabled:
            gc.enable()
