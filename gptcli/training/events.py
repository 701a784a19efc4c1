"""The events of a training run, which trainer.train yields."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stepped:
    """One optimizer step.

    ``loss`` (nats a token) and ``grad_norm`` (L2) are from before the update. ``tokens_per_second`` is the speed of
    recent steps; a session's warm-up steps count only until there are others. ``mfu`` is defined at `Evaluated`; None
    where the device's peak is not known. ``seconds_left`` is the forecast of the remaining time; None while too little
    has been measured.
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
    """A step that changed no weight, because ``loss`` or ``grad_norm`` was not finite."""

    step: int
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class RolledBack:
    """A rollback to the snapshot of ``step`` steps; the learning rate is now ``rate_factor`` times the schedule's."""

    step: int
    rate_factor: float


@dataclass(frozen=True)
class Evaluated:
    """One row of metrics.jsonl. ``step`` is the last step that was done, from 0; -1 before the first.

    ``train_loss`` and ``val_loss`` are in nats a token, over the same windows in every evaluation. ``seconds`` counts
    from the run's start, evaluations included. ``grad_norm`` is that of the last step, ``memory`` the peak so far in
    bytes, ``skipped`` the number of skipped steps so far. ``mfu`` is the model FLOPs utilization: 6 FLOPs a parameter
    and token, divided by the devices' peak FLOPs in the same time.
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
class CooldownBegan:
    """A run for a fixed time begins its cooldown with step ``step``; it has ``total_steps`` steps."""

    step: int
    total_steps: int


@dataclass(frozen=True)
class EpochEnded:
    """Epoch ``epoch`` (from 1) has trained on all of its batches; ``step`` steps are done."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Saved:
    """The snapshot of ``step`` steps has been written to ``path`` and synced; ``ended``: nothing is left to do."""

    step: int
    path: Path
    ended: bool = False


@dataclass(frozen=True)
class Noted:
    """One line to report to the user."""

    text: str


Event = Stepped | Skipped | RolledBack | Evaluated | CooldownBegan | EpochEnded | Saved | Noted
