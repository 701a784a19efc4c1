"""One recipe computed in every way, and killed: python tests/benchmarks/same_numbers.py [TEXT]

1. Twelve processes run one command: one SHA-256 of the weights.
2. Compiled kernels or torch alone, in 1, 2 and 3 parts, with 1 and 2 threads, in 1 and 2 processes (gloo): the loss of
   the first step differs from that of the first row by at most 1e-6 of it, that of the tenth by at most 1e-4. The steps
   have dropout.
3. A run that is killed (SIGKILL) twice and resumed with its number of threads: the weights of an undisturbed run.

Prints what came out, and ends with exit code 1 if a part fails. Every run is a process of its own, on the CPU.
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gptcli.kernels.cpu import numba_support, train_kernels

ROOT = Path(__file__).parents[2]
BATCH, CONTEXT, WIDTH, DROP = 12, 128, 192, 0.1
assert train_kernels.is_worthwhile(BATCH * CONTEXT, WIDTH)  # else a run takes no compiled kernels
FIRST, TENTH = 1e-6, 1e-4  # relative differences allowed
STEPS, LONG = 10, 24
KILLS = (5, 14)  # the steps whose snapshots a run leaves behind when it is killed


def train(out: Path, text: str, threads: int, accumulate: int) -> None:
    """Ten steps in this process, which may be one of several; their losses in OUT.json."""
    import gptcli

    losses: list[float] = []

    def keep(event: gptcli.events.Event) -> None:
        if isinstance(event, gptcli.events.Stepped):
            losses.append(event.loss)

    gptcli.train(
        text, out, tokenizer="char", on_event=keep,
        model=gptcli.GPTConfig(emb_dim=WIDTH, n_heads=3, n_layers=2, context_length=CONTEXT, drop_rate=DROP),
        recipe=gptcli.RecipeConfig(
            batch_size=BATCH, context_length=CONTEXT, max_steps=STEPS, eval_every=STEPS, seed=3, init="gpt2"
        ),
        runtime=gptcli.RuntimeConfig(device="cpu", threads=threads, accumulate=accumulate, sample_every=0),
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        found = {"losses": losses, "numba": numba_support.numba_reason() is None}
        out.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")


def environment(folder: Path, numba: bool) -> dict[str, str]:
    """For a process with the numba that is installed, or with one that cannot be imported."""
    paths = [str(ROOT)]
    if not numba:
        (folder / "absent").mkdir(exist_ok=True)
        (folder / "absent" / "numba.py").write_text("raise ImportError('left out')\n", encoding="utf-8")
        paths.insert(0, str(folder / "absent"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}


def run(command: list[Any], env: dict[str, str]) -> None:
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")


def step_losses(
    folder: Path, text: str, *, numba: bool = True, accumulate: int = 1, threads: int = 1, processes: int = 1
) -> tuple[list[float], str]:
    """The losses of the ten steps of a new run, and the SHA-256 of its weights."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    command = [sys.executable, *launcher, __file__, text, "--one", out, threads, accumulate]
    run(command, environment(folder, numba))
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (len(found["losses"]), found["numba"]) == (STEPS, numba)
    return found["losses"], sha256(out)


def sha256(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def twelve_runs(folder: Path, text: str) -> bool:
    hashes = [step_losses(folder, text, threads=2)[1] for _ in range(12)]
    print(f"12 runs of one command, 2 threads: {len(set(hashes))} hash ({hashes[0][:16]}…)")
    return len(set(hashes)) == 1


def grid(folder: Path, text: str, kernels: tuple[bool, ...]) -> bool:
    print("relative differences from numba, 1 part, 1 thread, 1 process:")
    print("kernels  parts  threads  processes  first loss  differs by  tenth loss  differs by  most of ten  weights")
    expected, _ = step_losses(folder, text)
    good = True
    for numba, accumulate, threads, processes in itertools.product(kernels, (1, 2, 3), (1, 2), (1, 2)):
        losses, weights = step_losses(
            folder, text, numba=numba, accumulate=accumulate, threads=threads, processes=processes
        )
        differences = [abs(loss / right - 1) for loss, right in zip(losses, expected, strict=True)]
        passed = differences[0] <= FIRST and differences[-1] <= TENTH
        good &= passed
        words = f"{'numba' if numba else 'torch':7}  {accumulate:5}  {threads:7}  {processes:9}  {losses[0]:.8f}"
        words += f"  {differences[0]:10.1e}  {losses[-1]:.8f}  {differences[-1]:10.1e}  {max(differences):11.1e}"
        words += f"  {weights[:8]}…"
        print(words if passed else f"{words}  FAILS")
    return good


def killed(folder: Path, text: str, numba: bool, threads: int) -> bool:
    env = environment(folder, numba)
    place = Path(tempfile.mkdtemp(dir=folder))
    gptcli: list[Any] = [sys.executable, "-m", "gptcli", "train"]
    settings = (
        "--size", "tiny", "--tokenizer", "char", "--context-length", CONTEXT, "--emb-dim", WIDTH, "--n-heads", 3,
        "--n-layers", 2, "--drop-rate", DROP, "--batch-size", BATCH, "--max-steps", LONG, "--eval-every", LONG,
        "--seed", 3, "--sample-every", 0, "--save-every", 1, "--device", "cpu", "--threads", threads,
    )  # fmt: skip
    whole, out = place / "whole", place / "killed"
    run([*gptcli, text, *settings, "--out", whole], env)
    begin: list[Any] = [*gptcli, text, *settings, "--out", out]
    resume: list[Any] = [*gptcli, "--resume", out, "--threads", threads]
    for number, step in enumerate(KILLS):
        process = subprocess.Popen(
            list(map(str, resume if number else begin)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not reached(out, step):
            time.sleep(0.001)
        process.kill()
        if process.wait() == 0:
            raise SystemExit(f"The run ended before it could be killed at step {step}.")
    run(resume, env)
    same = sha256(out) == sha256(whole)
    print(
        f"killed twice, {'numba' if numba else 'torch'}, {threads} thread{'s' * (threads > 1)}: "
        f"{'the same bytes' if same else 'OTHER BYTES'} ({sha256(whole)[:16]}…, {sha256(out)[:16]}…)"
    )
    return same


def reached(out: Path, step: int) -> bool:
    """Whether a snapshot of ``step`` steps or more has been written."""
    return any(int(path.name.removeprefix("step-")) >= step for path in (out / "training").glob("step-????????"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default=str(ROOT / "data" / "story.txt"))
    parser.add_argument("--part", choices=("twelve", "numba", "torch", "killed"), help="only this part")
    parser.add_argument("--one", nargs=3, metavar=("OUT", "THREADS", "PARTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        train(Path(given.one[0]), given.text, int(given.one[1]), int(given.one[2]))
        return
    good = True
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if given.part in (None, "twelve"):
            good &= twelve_runs(folder, given.text)
        if given.part in (None, "numba", "torch"):
            good &= grid(folder, given.text, {"numba": (True,), "torch": (False,)}.get(given.part, (True, False)))
        if given.part in (None, "killed"):
            for numba, threads in itertools.product((True, False), (1, 2)):
                good &= killed(folder, given.text, numba, threads)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
