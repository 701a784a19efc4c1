"""A training run that takes a second: its text, the options of its model, and what a kill leaves of it."""

import shutil
from pathlib import Path

TEXT = "the cat sat on the mat, and the dog sat on the log.\n" * 12
MODEL = ("--emb-dim", 16, "--n-heads", 2, "--n-layers", 2, "--context-length", 16)
TINY = ("--tokenizer", "char", *MODEL)


def killed_after(step: int, whole: str, run: str) -> None:
    """Copy the run ``whole``, which keeps every snapshot, as it would be if killed after that of ``step``."""
    shutil.copytree(whole, run)
    snapshots = sorted(Path(run, "training").iterdir())
    kept = [path for path in snapshots if path.name <= f"step-{step:08d}"]
    for path in snapshots[len(kept) :]:
        shutil.rmtree(path)
    Path(run, "model.safetensors").unlink()
    shutil.copy(kept[-1] / "model.safetensors", run)
