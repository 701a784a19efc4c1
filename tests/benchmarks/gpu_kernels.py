"""The kernels of a decode step one by one: by time in the profiler, and products in several shapes of a program.

`python tests/benchmarks/gpu_kernels.py [--profile SIZE …] [--tune SIZE:ROWS:KIND …]`, on a CUDA GPU.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_decode import model_of, packed_of, run, say, seconds, step_seconds

from gptcli.config.sampling import SamplingConfig
from gptcli.inference.sequence import Request
from gptcli.inference.torch_engine import TorchEngine


def profile(size: str) -> None:
    """The kernels of 20 drawn steps, by time."""
    engine = TorchEngine(model_of(size), 640, 1)
    step_seconds(engine, 1)
    draws = engine.draws([Request([5], 400, SamplingConfig(0.8), seed=0)])
    assert draws is not None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(20):
            draws._run()  # type: ignore[attr-defined]
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.device_time_total)[:15]
    for event in events:
        per_step = event.device_time_total / 20
        say(
            event.key[:60],
            f"{event.count // 20} a step",
            f"{per_step:.1f} us",
            f"{per_step * 20 / event.count:.2f} each",
        )
    if engine._kernels is None:
        return
    for launch in {launch.name: launch for launch in engine._kernels.launches(1)}.values():
        took = timed(launch)
        say(
            f"  {launch.name} {launch.grid}",
            f"{took * 1e6:.2f} us",
            f"{launch.weight_bytes / took / 1e9:,.0f} GB/s",
            launch.weight_bytes,
        )


ONE_ROW = ((2, 4), (4, 4), (4, 8), (8, 4), (8, 8), (16, 8), (16, 4))  # outputs and warps of a program
FEW_ROWS = (  # outputs and inputs of a block, warps, stages
    (16, 128, 4, 4), (8, 128, 4, 4), (16, 256, 4, 3), (16, 128, 2, 5), (32, 128, 4, 4), (32, 256, 8, 3),
    (64, 128, 4, 4),
)  # fmt: skip


def tune(size: str, rows: int, kind: str) -> None:
    """The products of a layer in several shapes of a program, on weights that no cache holds."""
    model = model_of(size, n_layers=1) if kind == "float" else packed_of(size, {"int8": 8, "int4": 4}[kind], n_layers=1)
    engine = TorchEngine(model, 640, rows, tell=print)
    step = engine._kernels
    assert step is not None
    step.places.fill_(100)
    for launch in step.launches(1):
        if launch.name in ("embed", "attend"):
            continue
        rows_of = launch.arguments[1]
        copies = [rows_of] + [rows_of.clone() for _ in range(min(200, int(2e8 / rows_of.nbytes) + 1))]
        outputs = len(rows_of)
        found = []
        for shape in ONE_ROW if rows == 1 else FEW_ROWS:
            options = dict(launch.options)
            if rows == 1:
                options |= {"BLOCK_N": shape[0], "num_warps": shape[1]}
            else:
                options |= dict(zip(("BLOCK_N", "BLOCK_K", "num_warps", "num_stages"), shape, strict=True))
            grid = (-(-outputs // shape[0]), *launch.grid[1:])
            several = [
                dataclasses.replace(
                    launch, grid=grid, options=options, arguments=(launch.arguments[0], copy, *launch.arguments[2:])
                )
                for copy in copies
            ]
            try:
                took = timed_together(several)
            except Exception as error:
                print(f"  {launch.name} {shape}: {str(error).splitlines()[0][:100]}", flush=True)
                continue
            found.append((took, shape))
        found.sort()
        now = launch.options["BLOCK_N"], launch.options.get("BLOCK_K"), launch.options["num_warps"]
        best = ", ".join(f"{shape}: {t * 1e6:.2f} us {launch.weight_bytes / t / 1e9:,.0f}" for t, shape in found)
        print(f"{size} {kind} {rows} rows {launch.name} N {outputs} (now {now}) GB/s {best}", flush=True)
        del copies, several


def tune_named(what: str) -> None:
    size, rows, kind = what.split(":")
    tune(size, int(rows), kind)


def timed_together(launches: Sequence[Any]) -> float:
    """Seconds of each of these launches in one graph."""
    for launch in launches[:1]:
        launch.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch.run()
    return seconds(graph.replay, 7) / len(launches)


def timed(launch: Any, times: int = 50) -> float:
    """Seconds of a launch within a graph of many; its weights may lie in the cache."""
    launch.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            launch.run()
    return seconds(graph.replay, 10) / times


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", nargs="*", default=[], help="sizes, as small xl")
    parser.add_argument(
        "--tune", nargs="*", default=[], help="SIZE:ROWS:KIND, as small:1:float xl:1:int4 small:8:float"
    )
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    jobs: list[tuple[str, Callable[[], None]]] = []
    jobs += [(f"profile {size}", functools.partial(profile, size)) for size in options.profile]
    jobs += [(f"tune {what}", functools.partial(tune_named, what)) for what in options.tune]
    run(jobs)


if __name__ == "__main__":
    main()
