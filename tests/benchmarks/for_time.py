"""gptcli train --for beside runs of other settings and nanoGPT's recipe: python tests/benchmarks/for_time.py TEXT...

Every run is a process with the same time and the same number of threads, one after another. The figures are bits a
byte of the part that is held out: of the checkpoint, which has the best weights. The sweep varies what --for has
chosen: half and twice its learning rate, the next smaller and the next larger shape. The times need a quiet machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from gptcli.config.fields import duration_with_unit
from gptcli.training.budget import SHAPES

NANOGPT: dict[str, object] = {
    "tokenizer": "char", "n-layers": 4, "n-heads": 4, "emb-dim": 128, "context-length": 64, "batch-size": 12,
    "drop-rate": 0, "learning-rate": 1e-3, "schedule": "cosine", "warmup-steps": 100, "beta2": 0.99, "init": "gpt2",
    "max-steps": 2000, "eval-every": 100, "eval-batches": 20, "sample-every": 0,
}  # fmt: skip


def gptcli(*words: object) -> str:
    """What a command prints on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "gptcli", *map(str, words)], capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(f"gptcli {' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def trained(out: Path, text: str, *options: object) -> tuple[float, float]:
    """The held-out bits a byte of a run, and its seconds from start to exit."""
    began = time.perf_counter()
    gptcli("train", text, *options, "--out", out, "--force", "--quiet")
    took = time.perf_counter() - began
    return held_out(out), took


def held_out(run: Path) -> float:
    found = json.loads(gptcli("evaluate", "--part", "validation", "--checkpoint", run, "--json"))
    return float(found["results"][0]["per_byte"]["bits"])


def sweep(run: Path) -> dict[str, Sequence[object]]:
    """Options of four runs around what ``run`` was trained with."""
    used = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    rate, place = used["learning_rate"], SHAPES.index((used["n_layers"], used["emb_dim"]))
    shape = ("--n-layers", used["n_layers"], "--emb-dim", used["emb_dim"])
    near = [SHAPES[max(place - 1, 0)], SHAPES[min(place + 1, len(SHAPES) - 1)]]
    runs: dict[str, Sequence[object]] = {
        f"rate × {factor}": (*shape, "--learning-rate", factor * rate) for factor in (0.5, 2)
    }
    return runs | {f"{layers} × {width}": ("--n-layers", layers, "--emb-dim", width) for layers, width in near}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--time", default="1m", help="of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of every run; the physical cores by default")
    parser.add_argument("--without", nargs="*", default=[], choices=["sweep", "nanogpt", "repeat"])
    parser.add_argument("--option", nargs="*", default=[], help="more options of --for, as name=value")
    parser.add_argument("--out", type=Path, default=Path("for-time"))
    options = parser.parse_args()
    seconds = duration_with_unit(options.time)
    threads = ["--threads", options.threads] if options.threads else []
    more = [word for option in options.option for word in (f"--{option.split('=')[0]}", option.split("=")[1])]
    for text in options.texts:
        name = Path(text).stem
        found: dict[str, list[float]] = {}
        for seed in options.seeds:
            common = [*threads, "--seed", seed]
            run = options.out / f"{name}-{seed}"
            bits, took = trained(run, text, "--for", options.time, *common, *more)
            found.setdefault("--for", []).append(bits)
            print(f"{name}, seed {seed}: {bits:.3f} bits a byte, {took - seconds:+.1f} s of {seconds:g} s", flush=True)
            if "repeat" not in options.without:
                again = run.with_name(f"{run.name}-again")
                gptcli("train", "--config", run / "config.toml", "--out", again, "--force", "--quiet")
                same = (run / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
                print(f"  its config.toml repeats it: {'yes' if same else 'NO'}", flush=True)
            if "sweep" not in options.without:
                for label, settings in sweep(run).items():
                    there = options.out / f"{name}-{seed}-sweep"
                    found.setdefault(label, []).append(
                        trained(there, text, "--for", options.time, *common, *settings)[0]
                    )
            if "nanogpt" not in options.without:
                there = options.out / f"{name}-{seed}-nanogpt"
                settings = NANOGPT | {"max-time": f"{seconds}s"}
                words = [word for name, value in settings.items() for word in (f"--{name}", value)]
                found.setdefault("nanoGPT's", []).append(trained(there, text, *words, "--tie-weights", *common)[0])
        for label, values in found.items():
            each = ", ".join(f"{value:.3f}" for value in values)
            ratio = statistics.mean(values) / statistics.mean(found["--for"])
            print(f"  {label:12} {statistics.mean(values):.3f} ({each}), {ratio - 1:+.1%}", flush=True)


if __name__ == "__main__":
    main()
