"""gptcli bench: how every figure in the README is made."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli import options, render
from gptcli.config.compute import ComputeConfig
from gptcli.config.evaluation import BenchConfig
from gptcli.config.model import PRESETS, GPTConfig
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.device.peak_flops import Peak
    from gptcli.evaluation.benchmark.works import Row

WORKS = ("load", "prefill", "decode", "batch", "train")


def bench(
    amounts: BenchConfig,
    compute: ComputeConfig,
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A float32 checkpoint: its directory, or name under checkpoints/.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help=f"A preset with random weights: {', '.join(PRESETS)}.")
    ] = None,
    work: Annotated[
        list[str] | None,
        typer.Option("--work", help=f"Measure only this; may be given several times: {', '.join(WORKS)}."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Time loading, prefill, decoding, a batch and a training step, each with its limit."""
    repetitions, batch, rows, length = amounts.repetitions, amounts.batch, amounts.rows, amounts.length
    against = amounts.against
    wanted = set(work or WORKS)
    for name in sorted(wanted - set(WORKS)):
        raise GptcliError(f"There is no --work {name!r}.", nearest(name, WORKS))
    if checkpoint is not None and size is not None:
        raise GptcliError("There are two models: a checkpoint and --size.", "Give one of the two.")
    if against is not None:
        _check_against(against)
    config = _config(checkpoint, size)
    if length is not None and length > config.context_length:
        raise GptcliError(
            f"--length {length} is longer than the model's context of {config.context_length} tokens.",
            f"Give at most {config.context_length}.",
        )

    from gptcli.checkpoints import layout
    from gptcli.checkpoints.adapters import open_weights
    from gptcli.device import peak_flops
    from gptcli.device import placement as devices
    from gptcli.evaluation.benchmark import baselines, engines, works
    from gptcli.inference.open import count_threads, obstacle

    placement = devices.choose(compute.device, compute.dtype)
    precision = devices.training_precision(compute.dtype, placement.device)
    on_cpu = placement.device.type == "cpu"
    if against == "ctranslate2" and not on_cpu:
        raise GptcliError(
            f"--against ctranslate2 is timed on the CPU alone, not on {placement.name}.", "Give --device cpu."
        )
    hindrance = obstacle(config) if on_cpu else None
    if hindrance:
        render.warn(f"The CPU kernels cannot run here: {hindrance}.")
    count = count_threads(compute.threads)
    devices.set_threads(count)
    weights = engines.random_weights(config) if checkpoint is None else open_weights(layout.find(checkpoint))
    render.note(f"On {placement.name}, {precision.name} ({precision.reason}), {count} threads.")
    tokens, prompt = (min(count, config.context_length) for count in (amounts.tokens, amounts.prompt))
    setting = engines.Setting(
        config, weights, tokens, prompt, batch, count, placement.device, precision.dtype, rows, length
    )
    everyone = engines.ours(setting)
    if against is not None:
        everyone += {"transformers": baselines.transformers, "ctranslate2": baselines.ctranslate2}[against](setting)
    doing = {
        each: [contender for contender in everyone if each.name in contender.works]
        for each in works.works(setting)
        if each.name in wanted and (each.name != "batch" or batch > 1)
    }

    found: list[Row] = []
    limits = works.Limits(placement.device, precision.dtype)
    with render.progress((repetitions + 1) * sum(map(len, doing.values())), "run") as bar:
        for each, group in doing.items():
            at_once = works.fit_at_once(each, group, placement.device)
            if not at_once:
                render.note(
                    f"{each.title}: the models do not fit into memory at once; each is made again for its turn."
                )
            bar.set_description(each.title)
            found += works.measure(each, group, repetitions, limits, at_once=at_once, done=bar.update)
    sheet = peak_flops.data_sheet(placement.device, precision.dtype)
    product = peak_flops.Peak(max(limits.product_rate() for _ in range(3)), f"measured, by {limits.library}")
    known = {"data_sheet": sheet, "measured": product} if sheet else {"measured": product}
    trained = {row.subject: row.rate for row in found if row.work == works.works(setting)[-1].title}
    flops = {
        who: {how: each * rate for how, each in works.training_flops(setting).items()} for who, rate in trained.items()
    }
    if as_json:
        import platform

        machine = {"machine": platform.platform(), "device": str(placement.device), "device_name": placement.name}
        render.print_json({
            **machine, "dtype": precision.name, "threads": count, "against": against,
            "product_by": limits.library,
            "peaks": {name: asdict(peak) for name, peak in known.items()}, "training_flops": flops,
            "rows": [asdict(row) for row in found],
        })  # fmt: skip
    else:
        _print_table(found, repetitions, against, limits.library)
        if flops:
            _print_utilization(flops, list(known.values()))


def _check_against(name: str) -> None:
    import importlib.util

    if importlib.util.find_spec(name) is None:
        raise GptcliError(f"{name} is not installed.", f"pip install {name}, or leave --against out.")


def _config(checkpoint: Path | None, size: str | None) -> GPTConfig:
    from gptcli.checkpoints import layout

    if checkpoint is None:
        return GPTConfig.preset(size or "small")
    path = layout.find(checkpoint)
    config, ours = layout.read_language_model(path)
    if layout.packed_bits(path, ours) < 32:
        raise GptcliError(f"{path} is packed already.", "Give the float32 checkpoint: bench packs it itself.")
    return config


def _print_table(rows: list["Row"], repetitions: int, against: str | None, library: str) -> None:
    columns = [("work", "left"), ("with", "left"), ("median", "right"), ("slowest", "right"), ("fastest", "right")]
    columns += [("unit", "left"), ("limit", "right"), ("of the limit", "right")]
    columns += [(f"beside {against}", "right")] if against else []
    caption = f"{repetitions} repetitions in turns; the last two columns are medians of the ratios within a turn. "
    caption += f"Limits: reading from memory, and a large matrix product by {library}, the fastest library here."
    render.print_table("", columns, (_cells(row, against) for row in rows), caption=caption)


def _print_utilization(flops: dict[str, dict[str, float]], peaks: list["Peak"]) -> None:
    """Training's FLOP/s by who trains and by what is counted, beside every peak: "model FLOPs utilization"."""
    columns = [("training with", "left"), ("counting", "left"), ("FLOP/s", "right")]
    columns += [(f"of {render.human_flops(peak.flops)}", "right") for peak in peaks]
    rows = [
        [who, how, render.human_flops(rate), *(_share(rate / peak.flops) for peak in peaks)]
        for who, counted in flops.items()
        for how, rate in counted.items()
    ]
    caption = "; ".join(f"{render.human_flops(peak.flops)}: {peak.source}" for peak in peaks)
    render.print_table("", columns, rows, caption=f"Peaks: {caption}. N: all parameters, embedding and head as one.")


def _share(value: float) -> str:
    """Per cent of a limit; nothing above it, where the limit is not one: both figures stand beside."""
    return f"{value:.0%}" if value <= 1 else ""


def _cells(row: "Row", against: str | None) -> list[str]:
    """One line of the table."""
    digits = 2 if row.unit == "s" else 1
    numbers = [f"{value:,.{digits}f}" for value in (row.rate, row.low, row.high)]
    limit = "" if row.limit is None else f"{row.limit:,.1f}"
    share = "" if row.fraction is None else _share(row.fraction)
    beside = "" if row.beside is None else f"{row.beside:.2f} ×"
    return [row.work, row.subject, *numbers, row.unit, limit, share, *([beside] if against else [])]
