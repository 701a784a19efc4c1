"""Ten sizes from tiny to medium beside the limit, as one picture: python tests/benchmarks/sizes.py FILE

Training (4 windows of 256 tokens, float32) and decoding of one text by the CPU engine in float32, int8 and int4, each
with the limit that `gptcli bench` holds it to. FILE.jsonl gets a line for each measured work; what stands there is not
measured again, so that the measurement can be done in pieces (--seconds). FILE.png is drawn when all are there.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gptcli.config.model import GPTConfig
from gptcli.device import placement
from gptcli.evaluation.benchmark import engines, works
from gptcli.inspection import pictures
from gptcli.model import cost

LENGTH = 256
SHAPES = (
    (4, 128), (5, 192), (6, 256), (6, 384), (8, 448), (8, 512), (10, 640), (12, 768), (18, 896), (24, 1024),
)  # fmt: skip
SUBJECTS = {
    "train": {"torch float32": "training"},
    "decode": {"cpu float32": "float32", "cpu int8": "int8", "cpu int4": "int4"},
}


def config(layers: int, width: int) -> GPTConfig:
    return GPTConfig(context_length=LENGTH, emb_dim=width, n_heads=max(4, width // 64), n_layers=layers)


def measured(shape: GPTConfig, work: str, repetitions: int, threads: int) -> Iterator[dict[str, Any]]:
    """The rows of one work, as `gptcli bench` prints them, with the number of parameters."""
    parameters = cost.parameter_count(shape)
    tokens = max(24, min(LENGTH, int(3e9 / parameters)))
    weights, cpu = engines.random_weights(shape), torch.device("cpu")
    setting = engines.Setting(shape, weights, tokens, LENGTH, 8, threads, cpu, torch.float32, length=LENGTH)
    group = [each for each in engines.ours(setting) if each.subject in SUBJECTS[work] and work in each.works]
    limits = works.Limits(cpu, torch.float32)
    (it,) = (each for each in works.works(setting) if each.name == work)
    for row in works.measure(it, group, repetitions, limits, at_once=True):
        yield {"parameters": parameters, "kind": work, "library": limits.library, **asdict(row)}


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Rates beside their limits, and the share of the limit where a rate is below it, over the number of parameters."""
    from matplotlib.ticker import EngFormatter

    figure = pictures.new_figure(11, 8)
    for place, (work, subjects) in enumerate(SUBJECTS.items()):
        rates, shares = figure.add_subplot(2, 2, 2 * place + 1), figure.add_subplot(2, 2, 2 * place + 2)
        for number, (subject, label) in enumerate(subjects.items()):
            line = sorted((row for row in rows if row["subject"] == subject and row["kind"] == work), key=_size)
            sizes, color = [row["parameters"] for row in line], f"C{number}"
            rates.plot(sizes, [row["rate"] for row in line], "o-", color=color, label=label)
            rates.plot(sizes, [row["limit"] for row in line], "--", color=color, label=f"limit of {label}")
            below = [row["fraction"] if row["fraction"] <= 1 else math.nan for row in line]  # caches hold small models
            shares.plot(sizes, below, "o-", color=color, label=label)
        for axes, what in ((rates, "tokens/s"), (shares, "share of the limit")):
            axes.set(xscale="log", xlabel="parameters", ylabel=what, title=f"{work}: {what}")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.grid(alpha=0.3)
            axes.legend()
        rates.set_yscale("log")
        rates.yaxis.set_major_formatter(EngFormatter(sep=""))
        shares.set_ylim(0, 1.1)
    pictures.save(figure, file)


def _size(row: dict[str, Any]) -> int:
    return int(row["parameters"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=480, help="begin no further work after this time")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    began, threads = time.perf_counter(), placement.set_threads(options.threads)
    lines = options.file.with_suffix(".jsonl")
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []
    known = {(row["parameters"], row["kind"]) for row in rows}
    for layers, width in SHAPES:
        shape = config(layers, width)
        for work in SUBJECTS:
            if (cost.parameter_count(shape), work) in known or time.perf_counter() - began > options.seconds:
                continue
            for row in measured(shape, work, options.repetitions, threads):
                rows.append(row)
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{layers:2} layers, {width:4} wide, {row['subject']}, {row['work']}: {row['rate']:.0f} tokens/s "
                    f"({row['low']:.0f} to {row['high']:.0f}), {row['fraction']:.2f} of the limit by {row['library']}",
                    flush=True,
                )
    done, all_works = len({(row["parameters"], row["kind"]) for row in rows}), len(SHAPES) * len(SUBJECTS)
    if done < all_works:
        print(f"{done} of {all_works} works are measured: the same command measures the others and draws the picture")
    else:
        draw(rows, options.file.with_suffix(".png"))


if __name__ == "__main__":
    main()
