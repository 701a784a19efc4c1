"""gptcli bench: how every figure in the README is made."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli import options, render
from gptcli.config import PRESETS, GPTConfig
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.benchmark import Row

WORKS = ("load", "prefill", "decode", "batch", "train")


def bench(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A float32 checkpoint: its directory, or name under checkpoints/.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help=f"A preset with random weights: {', '.join(PRESETS)}.")
    ] = None,
    work: Annotated[
        list[str] | None, typer.Option("--work", help=f"Only this, may be given several times: {', '.join(WORKS)}.")
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", help="Measure each so many times.")] = 5,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens to decode in a repetition.")] = 64,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens of the prompt that prefill reads.")] = 512,
    batch: Annotated[int, typer.Option("--batch", help="Sequences at once.")] = 8,
    against: Annotated[str | None, typer.Option("--against", help="Measure this beside it: transformers.")] = None,
    as_json: options.Json = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Time loading, prefill, decoding, a batch and a training step on the CPU, each beside its limit."""
    for name, value in (("--repetitions", repetitions), ("--tokens", tokens), ("--prompt", prompt), ("--batch", batch)):
        if value < 1:
            raise GptcliError(f"{name} is {value}, but it must be at least 1.", "Leave it out for the default.")
    works = set(work or WORKS)
    for name in sorted(works - set(WORKS)):
        raise GptcliError(f"There is no --work {name!r}.", nearest(name, WORKS))
    if checkpoint is not None and size is not None:
        raise GptcliError("There are two models: a checkpoint and --size.", "Give one of the two.")
    if against is not None:
        _check_against(against)
    config = _config(checkpoint, size)
    tokens, prompt = min(tokens, config.context_length), min(prompt, config.context_length)

    rows = []
    with render.progress(None, "figure") as bar:
        for row in _rows(checkpoint, config, works, repetitions, tokens, prompt, batch, against, threads):
            rows.append(row)
            bar.update()
    if as_json:
        import platform

        render.print_json({"machine": platform.platform(), "rows": [asdict(row) for row in rows]})
    else:
        columns = [("work", "left"), ("with", "left"), ("median", "right"), ("slowest", "right"), ("fastest", "right")]
        columns += [("unit", "left"), ("limit", "right"), ("of the limit", "right")]
        render.print_table("", columns, (_cells(row) for row in rows), caption=f"{repetitions} repetitions each.")


def _check_against(name: str) -> None:
    import importlib.util

    if name != "transformers":
        raise GptcliError(f"There is no --against {name!r}.", nearest(name, ["transformers"]))
    if importlib.util.find_spec(name) is None:
        raise GptcliError("transformers is not installed.", "pip install transformers, or leave --against out.")


def _config(checkpoint: Path | None, size: str | None) -> GPTConfig:
    from gptcli import checkpoint_config as checkpoints

    if checkpoint is None:
        return GPTConfig.preset(size or "small")
    path = checkpoints.find(checkpoint)
    config, ours = checkpoints.read_config(path)
    if checkpoints.packed_bits(path, ours) < 32:
        raise GptcliError(f"{path} is packed already.", "Give the float32 checkpoint: bench packs it itself.")
    return config


def _rows(
    checkpoint: Path | None, config: GPTConfig, works: set[str], repetitions: int, tokens: int, prompt: int, batch: int,
    against: str | None, threads: int | None,
) -> Iterator["Row"]:  # fmt: skip
    from gptcli import benchmark, decoders
    from gptcli import checkpoint_config as checkpoints
    from gptcli import device as devices
    from gptcli.weightfile import WeightFile

    count = decoders.count_threads(threads)
    devices.set_threads(count)
    limits = benchmark.Limits()
    if checkpoint is None:
        weights: benchmark.Weights = benchmark.random_weights(config)
    else:
        weights = WeightFile(checkpoints.find(checkpoint) / checkpoints.WEIGHTS, config)
    hindrance = decoders.obstacle(config)
    if hindrance:
        render.warn(f"The CPU kernels cannot run here: {hindrance}.")
    for bits in (32, 8, 4) if not hindrance and works - {"train"} else ():
        yield from benchmark.cpu_engine(
            config, weights, bits, threads=count, tokens=tokens, prompt=prompt, batch=batch,
            repetitions=repetitions, works=works, limits=limits,
        )  # fmt: skip
    common = {"tokens": tokens, "prompt": prompt, "repetitions": repetitions, "works": works, "limits": limits}
    yield from benchmark.torch_engine(config, weights, **common)  # type: ignore[arg-type]
    if against:
        yield from benchmark.transformers_model(config, **common)  # type: ignore[arg-type]


def _cells(row: "Row") -> list[str]:
    """One line of the table."""
    digits = 2 if row.unit == "s" else 1
    numbers = [f"{value:,.{digits}f}" for value in (row.rate, row.low, row.high)]
    limit = "" if row.limit is None else f"{row.limit:,.1f}"
    return [row.work, row.subject, *numbers, row.unit, limit, "" if row.fraction is None else f"{row.fraction:.0%}"]
