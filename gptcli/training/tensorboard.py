"""Writes the events of a run as TensorBoard event files in RUN/tensorboard/."""

from importlib.util import find_spec
from pathlib import Path

from gptcli.checkpoints.layout import EVENT_FILES
from gptcli.errors import GptcliError
from gptcli.training.events import Evaluated, Event, RolledBack, Saved, Stepped


def require() -> None:
    """Refuse to log to TensorBoard where its package is missing."""
    if find_spec("tensorboard") is None:
        raise GptcliError(
            "--log tensorboard needs the package tensorboard, which is not installed.",
            'Install it with pip install "gptcli[tensorboard]", or go without: --log none.',
        )


class EventLog:
    """The event files of a run; TensorBoard drops earlier records of ``first_step`` and later steps (purge_step).

    Args:
        run: its directory.
        first_step: the first step of this session.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self.run = run
        self._open(first_step)

    def _open(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.writer = SummaryWriter(str(self.run / EVENT_FILES), purge_step=first_step)
        except OSError as error:
            raise self._cannot_write(error) from error

    def record(self, event: Event) -> None:
        """Write the values of ``event``; flush at each evaluation and each save.

        Raises:
            GptcliError: the disk is full or not writable.
        """
        try:
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
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()

    def _add(self, step: int, values: dict[str, float | None]) -> None:
        for tag, value in values.items():
            if value is not None:
                self.writer.add_scalar(tag, value, step)

    def _cannot_write(self, error: OSError) -> GptcliError:
        return GptcliError(
            f"Cannot write {self.run / EVENT_FILES}: {error.strerror or error}.",
            f"Make room, or go on without it: gptcli train --resume {self.run} --log none",
        )
