"""Captures of CUDA graphs: the collector must not free another graph meanwhile."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from gptcli.device import graphs


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_collected_during_a_capture_and_again_after_it(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    given: list[tuple[Any, Any]] = []

    @contextmanager
    def recorded(graph: Any, pool: Any) -> Iterator[None]:
        given.append((graph, pool))
        yield

    monkeypatch.setattr(torch.cuda, "graph", recorded)
    graph: Any = object()
    try:
        with graphs.capture(graph, "pool"):
            assert not gc.isenabled()
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert gc.isenabled()
    assert given == [(graph, "pool")]


def test_a_collector_that_is_off_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: nullcontext())
    gc.disable()
    try:
        with graphs.capture(None):  # type: ignore[arg-type]
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.gpu
def test_a_graph_that_is_garbage_disturbs_no_capture() -> None:
    x = torch.zeros(8, device="cuda")

    def captured() -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with graphs.capture(graph):
            for _ in range(50):
                x.add_(1)
                assert [[] for _ in range(1000)]  # enough objects for the collector to run
        return graph

    old: list[Any] = [captured()]
    old.append(old)
    del old
    captured().replay()
    assert float(x[0]) == 50
