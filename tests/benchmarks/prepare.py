"""gptcli prepare beside tiktoken, and training on what it made: python tests/benchmarks/prepare.py --megabytes 1000

Three questions. Is it as fast as tiktoken's own encode_ordinary_batch with as many threads? (In turns, on slices of one
text, in one process; tiktoken has its slice in memory already.) Does its memory stay flat? (One process for the whole
text.) Does training on the result start at once, and in the memory that a small text takes?
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gptcli.data.prepare import Preparation, PreparationRequest
from gptcli.device.resources import usable_cpus
from gptcli.tokenizers.gpt2 import GPT2Tokenizer, _encoding

ROOT = Path(__file__).parents[2]
MB = 1_000_000
TINY = "--emb-dim 32 --n-heads 2 --n-layers 1 --context-length 64 --batch-size 4 --eval-batches 1 --sample-every 0"


def synthetic(megabytes: float, path: Path, seed: int = 1) -> None:
    """The bundled story's paragraphs in any order, some of their words made up."""
    random_numbers = random.Random(seed)
    paragraphs = [p.split(" ") for p in (ROOT / "data" / "story.txt").read_text(encoding="utf-8").split("\n\n")]
    written = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        while written < megabytes * MB:
            words = list(random_numbers.choice(paragraphs))
            for _ in range(len(words) // 10 + 1):
                letters = random_numbers.choices("abcdefghijklmnopqrstuvwxyz", k=random_numbers.randint(2, 9))
                words[random_numbers.randrange(len(words))] = "".join(letters)
            written += out.write(" ".join(words) + "\n\n")


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """What a call takes: wall time, and the time of all cores."""
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def measured(*arguments: object, until: Path | None = None) -> tuple[float, float, float]:
    """A gptcli process: the seconds to its end (or until there is a file), its cores' seconds, its peak memory in MB.

    A process begins with the peak of the one that started it: this one must be small still.
    """
    command = [sys.executable, "-m", "gptcli", *map(str, arguments)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while until is not None and not until.exists() and time.perf_counter() - started < 600:
        time.sleep(0.01)
    seen = time.perf_counter() - started
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    took = seen if until is not None else time.perf_counter() - started
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MB


def prepare_and_train(folder: Path, name: str, megabytes: float, workers: int) -> None:
    text, out = folder / f"{name}.txt", folder / f"{name}.tokens"
    synthetic(megabytes, text)
    took, cpu, memory = measured("prepare", text, "--out", out, "--workers", workers, "-q")
    print(f"{megabytes:,.0f} MB prepared in {took:.1f} s, {memory:.0f} MB of memory at the peak")
    for steps in (1, 200):
        run = folder / f"{name}-{steps}"
        command = ("train", out, *TINY.split(), "--max-steps", steps, "--out", run, "-q")
        took, cpu, memory = measured(*command, until=run / "metrics.jsonl")
        print(f"  training: first step and evaluation after {took:.1f} s ", end="")
        print(f"({cpu:.1f} s of the cores' time for {steps} steps in all), {memory:.0f} MB at the peak")


def compare_rates(folder: Path, workers: int, megabytes: float, rounds: int) -> None:
    GPT2Tokenizer().encode("the tables are read once")
    GPT2Tokenizer().save(folder)  # and spelt once, which takes a second
    ratios, cpu_ratios = [], []
    for number in range(rounds):
        path = folder / f"slice-{number}.txt"
        synthetic(megabytes, path, seed=number)
        text = path.read_text(encoding="utf-8")
        parts = [text[i : i + 2**20] for i in range(0, len(text), 2**20)]
        preparation = Preparation(folder / f"slice-{number}", PreparationRequest((str(path),)))
        wall, cpu = seconds(lambda: preparation.run(workers))  # noqa: B023
        own_wall, own_cpu = seconds(lambda: _encoding().encode_ordinary_batch(parts, num_threads=workers))  # noqa: B023
        ratios.append(own_wall / wall)
        cpu_ratios.append(own_cpu / cpu)
        print(f"  slice {number}: {len(text) / MB / wall:6.2f} MB/s; tiktoken {len(text) / MB / own_wall:6.2f} MB/s")
    print(
        f"rate: {statistics.median(ratios):.2f} x tiktoken's with {workers} threads "
        f"({min(ratios):.2f} to {max(ratios):.2f}); by the cores' time {statistics.median(cpu_ratios):.2f} x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--workers", type=int, default=usable_cpus())
    parser.add_argument("--slice", type=float, default=32, help="megabytes of each of the slices that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prepare-"))
    try:
        for name, megabytes in (("small", 2.0), ("large", options.megabytes)):
            prepare_and_train(folder, name, megabytes, options.workers)
        compare_rates(folder, options.workers, options.slice, options.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
