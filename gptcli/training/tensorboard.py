"""Writes the events of a run as TensorBoard event files in RUN/tensorboard/."""

from importlib.util import find_spec
from pathlib import Path

from gptcli.checkpoints.layout import EVENT_FILES
from gptcli.errors import SettingError
from gptcli.training.events import Evaluated, Event, RolledBack, Saved, Stepped


def require() -> None:
    """Refuse to log to TensorBoard where its package is missing."""
    if find_spec("tensorboard") is None:
        raise SettingError(
            "{log} tensorboard needs the package tensorboard, which is not installed.",
            'Install it with pip install "gptcli[tensorboard]", or go without: {log} none.',
        )


class EventFiles:
    """The event files of a run; TensorBoard drops earlier records of ``first_step`` and later steps (purge_step).

    Args:
        run: its directory.
        first_step: the first step of this session.
    """

    name = "TensorBoard's event files"

    def __init__(self, run: Path, first_step: int) -> None:
        self.run, self.first_step = run, first_step

    def start(self) -> None:
        self._open(self.first_step)

    def on(self, event: Event) -> None:
        """Write the values of ``event``; flush at each evaluation and each save."""
        if isinstance(event, Stepped):
            self._add(event.step, {
                "loss/batch": event.loss, "learning_rate": event.learning_rate, "grad_norm": event.grad_norm,
                "speed/tokens_per_second": event.tokens_per_second, "speed/mfu": event.mfu,
            })  # fmt: skip
        elif isinstance(event, Evaluated):
            self._add(event.step, {
                "loss/train": event.train_loss, "loss/validation": event.val_loss, "memory_bytes": event.memory,
            })  # fmt: skip
        elif isinstance(event, RolledBack):
            self.writer.close()
            self._open(event.step)
        if isinstance(event, Evaluated | Saved):
            self.writer.flush()

    def end(self) -> None:
        self.writer.close()

    def _open(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.run / EVENT_FILES), purge_step=first_step)

    def _add(self, step: int, values: dict[str, float | None]) -> None:
        for tag, value in values.items():
            if value is not None:
                self.writer.add_scalar(tag, value, step)
