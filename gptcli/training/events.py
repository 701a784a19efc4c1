"""What happens in a training run, one by one, as trainer.py yields it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stepped:
    """One optimizer step.

    Loss in nats and gradient norm are from before the update; ``tokens_per_second`` is the speed of recent steps, the
    first of a session left out; ``mfu`` the share of the devices' peak that it makes use of, None where the peak is not
    known; ``seconds_left`` how long the run will still take, None while too little has been measured.
    """

    step: int
    epoch: int
    loss: float
    tokens_per_second: float
    grad_norm: float
    learning_rate: float
    mfu: float | None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A step that changed nothing, because ``loss`` or ``grad_norm`` was not finite."""

    step: int
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class RolledBack:
    """Too many such steps in a row: the run is at ``step`` steps again, and trains at ``rate_factor`` of its rate."""

    step: int
    rate_factor: float


@dataclass(frozen=True)
class Evaluated:
    """One row of metrics.jsonl.

    Losses in nats a token, of the same windows each time; ``seconds`` since the start, evaluations included;
    ``grad_norm`` of the last step; ``memory`` at its peak so far, in bytes; ``skipped`` steps so far; ``mfu``, "model
    FLOPs utilization": 6 FLOPs a parameter and token, as a share of what the devices could do in the same time.
    """

    step: int
    epoch: int
    tokens_seen: int
    train_loss: float
    val_loss: float | None
    learning_rate: float
    tokens_per_second: float
    seconds: float
    grad_norm: float
    memory: int
    skipped: int
    mfu: float | None


@dataclass(frozen=True)
class EpochEnded:
    """Every batch of epoch ``epoch`` (from 1) has been seen; ``step`` steps are done."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Saved:
    """A snapshot of ``step`` steps is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Noted:
    """Something a user should know, in one line."""

    text: str


Event = Stepped | Skipped | RolledBack | Evaluated | EpochEnded | Saved | Noted
