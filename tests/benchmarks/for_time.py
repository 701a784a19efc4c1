"""gptcli train --for beside other ways to spend the time: python tests/benchmarks/for_time.py TEXT...

Every run is a process with the same time and the same number of threads, one after another. The figures are bits a
byte of the part that is held out: of the checkpoint, which has the best weights. The times need a quiet machine. Modes:

- The usual one: --for beside a sweep of as much time for each run, and beside nanoGPT's recipe for a CPU, for each text
  and each of --seeds. The sweep varies what --for has chosen: half and twice its learning rate, the next smaller and
  the next larger shape; --sweep 5 adds a run without dropout and with AdamW's usual weight decay of 0.1, --sweep 0
  leaves the sweep out, --without nanogpt the other. Each run of --for is repeated from its config.toml, and the
  weights are compared byte for byte, unless --without repeat.
  Five minutes on Shakespeare beside five runs: --time 5m --sweep 5 --without repeat.
- --ends 30s 45s 60s 90s 2m 3m: only runs of these times. A table: seconds from the start of the process to its exit
  beside the time, what is allowed (the larger of 3 s and 3%), and whether config.toml repeats the run.
  With --burner another process computes on one core from the middle of each run on; 10% are allowed then.
- --pieces: what each part of the recipe brings: the run of --for, and runs with one part changed (Muon, the momentum
  that grows, the rate of embeddings, the average of weights), and with one that gptcli does not have
  (training_pieces.py).
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from gptcli.config.fields import duration_with_unit
from gptcli.training.budget import SHAPES

NANOGPT: dict[str, object] = {
    "tokenizer": "char", "n-layers": 4, "n-heads": 4, "emb-dim": 128, "context-length": 64, "batch-size": 12,
    "drop-rate": 0, "learning-rate": 1e-3, "schedule": "cosine", "warmup-steps": 100, "beta2": 0.99, "init": "gpt2",
    "max-steps": 2000, "eval-every": 100, "eval-batches": 20, "sample-every": 0,
}  # fmt: skip

GPTCLI = ("-m", "gptcli")
PIECES = Path(__file__).with_name("training_pieces.py")
CHANGED: dict[str, tuple[Sequence[str], Sequence[object]]] = {
    "AdamW, not Muon": (GPTCLI, ("--optimizer", "adamw", "--learning-rate", "same")),
    "AdamW, half the rate": (GPTCLI, ("--optimizer", "adamw", "--learning-rate", "half")),
    "momentum constant": (GPTCLI, ("--momentum-warmup", 0)),
    "embedding rate × 2": (GPTCLI, ("--embedding-rate", 2)),
    "no averages": (GPTCLI, ("--average-share", 0)),
    "projections from 0": ((str(PIECES), "zero"), ()),
}


def gptcli(*words: object, program: Sequence[str] = GPTCLI) -> str:
    """What a command prints on stdout."""
    done = subprocess.run(
        [sys.executable, *program, *map(str, words)], capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(f"gptcli {' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def trained(out: Path, text: str, *options: object, program: Sequence[str] = GPTCLI) -> tuple[float, float]:
    """The held-out bits a byte of a run, and its seconds from start to exit."""
    began = time.perf_counter()
    gptcli("train", text, *options, "--out", out, "--force", "--quiet", program=program)
    took = time.perf_counter() - began
    return held_out(out), took


def held_out(run: Path) -> float:
    found = json.loads(gptcli("evaluate", "--part", "validation", "--checkpoint", run, "--json"))
    return float(found["results"][0]["per_byte"]["bits"])


def settings_of(run: Path) -> dict[str, object]:
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))


def is_repeated(run: Path) -> bool:
    """Whether config.toml gives the weights of ``run`` again, to the byte."""
    again = run.with_name(f"{run.name}-again")
    gptcli("train", "--config", run / "config.toml", "--out", again, "--force", "--quiet")
    return (run / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def sweep(run: Path, count: int) -> dict[str, Sequence[object]]:
    """Options of runs around what ``run`` was trained with, at most five."""
    used = settings_of(run)
    rate, place = float(str(used["learning_rate"])), SHAPES.index((used["n_layers"], used["emb_dim"]))
    shape = ("--n-layers", used["n_layers"], "--emb-dim", used["emb_dim"])
    # At an end of the list, the two next ones of the other side.
    near = sorted((each for each in range(len(SHAPES)) if each != place), key=lambda each: abs(each - place))[:2]
    runs: dict[str, Sequence[object]] = {
        f"rate × {factor}": (*shape, "--learning-rate", factor * rate) for factor in (0.5, 2)
    }
    for n in near:
        runs[f"shape {n - place:+d}"] = ("--n-layers", SHAPES[n][0], "--emb-dim", SHAPES[n][1])
    runs["no dropout"] = (*shape, "--drop-rate", 0, "--weight-decay", 0.1)
    return dict(list(runs.items())[:count])


class Burner:
    """A process that computes on one core, from ``delay`` seconds after the start to the end of the context."""

    def __init__(self, delay: float) -> None:
        self._timer = threading.Timer(delay, self._burn)
        self._process: subprocess.Popen[bytes] | None = None

    def _burn(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def ends(text: str, times: Sequence[str], with_burner: bool, repeats: bool, out: Path, more: Sequence[object]) -> None:
    """A row for each time: how far from it a run ends."""
    print(f"{Path(text).name}{', a burner on one core from the middle on' if with_burner else ''}")
    print(f"{'time':>6} {'took':>8} {'off':>7} {'allowed':>8}  within  repeats  held-out bits a byte", flush=True)
    for written in times:
        seconds, run = duration_with_unit(written), out / f"{Path(text).stem}-{written}"
        if with_burner:
            with Burner(seconds / 2):
                bits, took = trained(run, text, "--for", written, *more)
        else:
            bits, took = trained(run, text, "--for", written, *more)
        allowed = 0.1 * seconds if with_burner else max(3.0, 0.03 * seconds)
        within = "yes" if abs(took - seconds) <= allowed else "NO"
        same = ("yes" if is_repeated(run) else "NO") if repeats else "-"
        print(
            f"{written:>6} {took:7.2f}s {took - seconds:+6.2f}s {allowed:7.2f}s  {within:6}  {same:7}  {bits:.3f}",
            flush=True,
        )


def pieces(text: str, written: str, seeds: Sequence[int], out: Path, more: Sequence[object]) -> None:
    """A row for each changed part: its bits a byte beside those of --for, by seed."""
    found: dict[str, dict[int, float]] = {}
    for seed in seeds:
        run = out / f"{Path(text).stem}-{seed}"
        found.setdefault("--for", {})[seed] = trained(run, text, "--for", written, "--seed", seed, *more)[0]
        rate = float(str(settings_of(run)["learning_rate"]))
        for label, (program, options) in CHANGED.items():
            given = [{"same": rate, "half": rate / 2}.get(str(option), option) for option in options]
            bits, _ = trained(
                run.with_name(f"{run.name}-piece"), text, "--for", written, "--seed", seed, *given, *more,
                program=program,
            )  # fmt: skip
            found.setdefault(label, {})[seed] = bits
            print(f"  {label}, seed {seed}: {bits:.3f}", flush=True)
    table(found)


def table(found: Mapping[str, Mapping[int, float]]) -> None:
    """Means over the seeds, and the mean difference from --for with the differences by seed."""
    for label, values in found.items():
        each = ", ".join(f"{value:.3f}" for value in values.values())
        differences = [value - found["--for"][seed] for seed, value in values.items()]
        ratio = 1 + sum(differences) / sum(found["--for"][seed] for seed in values)
        apart = ", ".join(f"{difference:+.3f}" for difference in differences)
        print(f"  {label:20} {statistics.mean(values.values()):.3f} ({each}), {ratio - 1:+.1%} ({apart})", flush=True)


def compared(text: str, options: argparse.Namespace, more: Sequence[object], chosen: Sequence[object]) -> None:
    """The runs of --for, of the sweep and of nanoGPT's recipe."""
    name, seconds, found = Path(text).stem, duration_with_unit(options.time), dict[str, dict[int, float]]()
    for seed in options.seeds:
        common = [*more, "--seed", seed]
        run = options.out / f"{name}-{seed}"
        bits, took = trained(run, text, "--for", options.time, *common, *chosen)
        found.setdefault("--for", {})[seed] = bits
        print(f"{name}, seed {seed}: {bits:.3f} bits a byte, {took - seconds:+.1f} s of {seconds:g} s", flush=True)
        if "repeat" not in options.without:
            print(f"  its config.toml repeats it: {'yes' if is_repeated(run) else 'NO'}", flush=True)
        for label, settings in sweep(run, options.sweep).items():
            there = options.out / f"{name}-{seed}-sweep"
            found.setdefault(label, {})[seed] = trained(there, text, "--for", options.time, *common, *settings)[0]
            print(f"  {label}: {found[label][seed]:.3f}", flush=True)
        if "nanogpt" not in options.without:
            there = options.out / f"{name}-{seed}-nanogpt"
            words = [
                word for key, value in (NANOGPT | {"max-time": f"{seconds}s"}).items() for word in (f"--{key}", value)
            ]
            bits, _ = trained(there, text, *words, "--tie-weights", *common)
            found.setdefault("nanoGPT's", {})[seed] = bits
    table(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--time", default="1m", help="of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of every run; the physical cores by default")
    parser.add_argument("--sweep", type=int, default=4, choices=range(6), help="runs of the sweep")
    parser.add_argument("--without", nargs="*", default=[], choices=["nanogpt", "repeat"])
    parser.add_argument("--ends", nargs="+", metavar="TIME", help="only how far from these times runs end")
    parser.add_argument("--burner", action="store_true", help="with --ends: another process on one core")
    parser.add_argument("--pieces", action="store_true", help="only what each part of the recipe brings")
    parser.add_argument("--option", nargs="*", default=[], help="more options of --for, as name=value")
    parser.add_argument("--out", type=Path, default=Path("for-time"))
    options = parser.parse_args()
    more: list[object] = ["--threads", options.threads] if options.threads else []
    chosen = [word for option in options.option for word in (f"--{option.split('=')[0]}", option.split("=")[1])]
    for text in options.texts:
        if options.ends:
            ends(text, options.ends, options.burner, "repeat" not in options.without, options.out, [*more, *chosen])
        elif options.pieces:
            print(Path(text).stem, flush=True)
            pieces(text, options.time, options.seeds, options.out, [*more, *chosen])
        else:
            compared(text, options, more, chosen)


if __name__ == "__main__":
    main()
