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


def profile(size: str, rows: int = 1) -> None:
    """The kernels of 20 drawn steps, by time."""
    engine = TorchEngine(model_of(size), 640, rows)
    step_seconds(engine, rows)
    draws = engine.device_sampler([Request([5], 400, SamplingConfig(0.8), seed=n) for n in range(rows)])
    assert draws is not None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(20):
            draws._run()
        torch.cuda.synchronize()
    for event in sorted(found.key_averages(), key=lambda event: -event.device_time_total)[:12]:
        took = event.device_time_total
        say(event.key[:60], f"{event.count // 20}", f"{took / 20:.1f} us", f"{took / event.count:.2f} each")
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


ONE_ROW = {  # outputs and warps of a program
    "float": ((4, 4), (4, 8), (8, 8), (16, 8)),
    "int8": ((4, 4), (8, 4), (16, 4), (16, 8)),
    "int4": ((4, 4), (8, 4), (16, 4), (16, 8)),
}
FEW_ROWS = ((8, 4, 64), (16, 4, 64), (32, 4, 64), (8, 8, 64))  # BLOCK_N, KB and KW of few_rows.py
HEAD = ((64, 1, 128), (32, 4, 64), (128, 1, 64))
MOST_WEIGHTS = {"float": 128, "int8": 256, "int4": 256}  # of a thread, with one row


def shapes_of(launch: Any, rows: int, kind: str) -> dict[str, dict[str, Any]]:
    """Options to try in place of a product's own, by what they are called; {} are its own."""
    if rows == 1:
        width = launch.options["WIDTH"]
        shapes = {
            f"{n} outputs, {warps} warps": {"BLOCK_N": n, "num_warps": warps}
            for n, warps in ONE_ROW[kind]
            if n * width <= MOST_WEIGHTS[kind] * 32 * warps
        }
    else:
        shapes = {"own, no fetch": {"FETCH": 0}} | {
            f"{n} outputs, {kb} x {kw} inputs": {"BLOCK_N": n, "KB": kb, "KW": kw, "num_warps": max(4, kb)}
            for n, kb, kw in (HEAD if launch.name == "head" else FEW_ROWS)
        }
    return {"own": {}} | {
        title: changes for title, changes in shapes.items() if launch.options | changes != launch.options
    }


def tune(size: str, rows: int, kind: str) -> None:
    """The products of a layer in several shapes of a program, on weights that no cache holds."""
    bits = {"int8": 8, "int4": 4}
    model = model_of(size, n_layers=1) if kind == "float" else packed_of(size, bits[kind], n_layers=1)
    engine = TorchEngine(model, 640, rows, report=print)
    step = engine._kernels
    assert step is not None
    step.places.fill_(100)
    for launch in step.launches(1):
        if launch.name in ("embed", "norm", "attend") or (launch.name == "head" and size != "small"):
            continue
        rows_of = launch.arguments[1]
        copies = [rows_of] + [rows_of.clone() for _ in range(min(60, int(1e8 / rows_of.nbytes) + 1))]
        outputs = len(rows_of)
        found = []
        for title, changes in shapes_of(launch, rows, kind).items():
            options = launch.options | changes
            grid = (-(-outputs // options["BLOCK_N"]), *launch.grid[1:])
            several = [
                dataclasses.replace(
                    launch, grid=grid, options=options, arguments=(launch.arguments[0], copy, *launch.arguments[2:])
                )
                for copy in copies
            ]
            try:
                found.append((timed_together(several), title))
            except Exception as error:
                print(f"  {launch.name} {title}: {str(error).splitlines()[0][:100]}", flush=True)
        if rows > 1 and kind == "float":
            x = launch.arguments[0][:rows]
            products = [functools.partial(torch.nn.functional.linear, x, copy) for copy in copies]
            found.append((captured(products), "cuBLAS, the product only"))
        found.sort()
        own = launch.options
        now = ", ".join(f"{name} {own[name]}" for name in ("BLOCK_N", "KB", "KW", "num_warps") if name in own)
        print(f"{size} {kind} {rows} rows {launch.name} ({outputs}; own: {now})", flush=True)
        for took, title in found:
            print(f"    {title}: {took * 1e6:.2f} us, {launch.weight_bytes / took / 1e9:,.0f} GB/s", flush=True)
        del copies, several


def tune_named(what: str) -> None:
    size, rows, kind = what.split(":")
    tune(size, int(rows), kind)


def timed_together(launches: Sequence[Any]) -> float:
    """Seconds of each of these launches in one graph."""
    return captured([launch.run for launch in launches])


def captured(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds of each of these calls in one graph."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return seconds(graph.replay, 7) / len(calls)


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
    parser.add_argument("--profile", nargs="*", default=[], help="SIZE or SIZE:ROWS, as small xl:8")
    parser.add_argument(
        "--tune", nargs="*", default=[], help="SIZE:ROWS:KIND, as small:1:float xl:1:int4 small:8:float"
    )
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    jobs: list[tuple[str, Callable[[], None]]] = []
    for what in options.profile:
        size, _, rows = what.partition(":")
        jobs.append((f"profile {what}", functools.partial(profile, size, int(rows or 1))))
    jobs += [(f"tune {what}", functools.partial(tune_named, what)) for what in options.tune]
    run(jobs)


if __name__ == "__main__":
    main()
