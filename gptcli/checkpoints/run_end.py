"""Whether a run in a directory has reached its end, told by its files alone. Imports no torch."""

import json
import tomllib
from pathlib import Path
from typing import Any

from gptcli.checkpoints import layout, run_lock
from gptcli.errors import GptcliError

# What a damaged or a foreign file raises.
_UNREADABLE = (GptcliError, OSError, ValueError, KeyError, TypeError, AttributeError)


def is_unfinished(run: Path) -> bool:
    """Whether ``run`` can be resumed, has steps or epochs to go, and no process trains it now."""
    try:
        training = layout.read_config(run)[1]["training"]
        recipe, step = training["recipe"], int(training["step"])
        if not any((run / layout.SNAPSHOTS).glob("step-*")) or recipe.get("early_stop") or recipe.get("max_time"):
            return False
        if _decided_by_clock(recipe):
            unfinished = _has_time_left(run, step)
        elif recipe.get("max_steps") is not None:
            unfinished = step < recipe["max_steps"]
        else:
            rows = (run / layout.METRICS).read_text(encoding="utf-8").splitlines()
            unfinished = not rows or json.loads(rows[-1])["epoch"] < recipe["epochs"]
        if unfinished:
            run_lock.refuse_held(run)
    except _UNREADABLE:
        return False
    return bool(unfinished)


def is_worth_resuming(run: Path) -> bool:
    """Whether ``run`` has a snapshot to go on from, and is no run for a fixed time that has had all of it."""
    if not any((run / layout.SNAPSHOTS).glob("step-*")):
        return False
    try:
        training = layout.read_config(run)[1]["training"]
        return not _decided_by_clock(training["recipe"]) or _has_time_left(run, int(training["step"]))
    except _UNREADABLE:
        return True


def _decided_by_clock(recipe: dict[str, Any]) -> bool:
    return recipe.get("for_time") is not None and recipe.get("cooldown_start") is None


def _has_time_left(run: Path, step: int) -> bool:
    settings = tomllib.loads((run / layout.SETTINGS).read_text(encoding="utf-8"))
    return "cooldown_start" not in settings or step < int(settings["max_steps"])
