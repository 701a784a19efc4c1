"""What follows a run's events: a life cycle that every subscriber has, and the ones that write into the run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from gptcli.checkpoints import checkpoint
from gptcli.checkpoints.layout import LOSS_PICTURE, METRICS
from gptcli.errors import GptcliError
from gptcli.training import loss_plots
from gptcli.training.events import Evaluated, Event


class Subscriber(Protocol):
    """Follows a run. One that raises is reported once and removed, and the run continues.

    Attributes:
        name: what is lost where it is dropped, as a sentence begins with it: "The loss picture".
    """

    name: str

    def start(self) -> None:
        """Called once, before the first event; the run's directory exists."""

    def on(self, event: Event) -> None:
        """Called with every event, in order, in the thread that trains."""

    def end(self) -> None:
        """Called once, after the last event, also where the run ends by an error."""


class Subscribers:
    """The subscribers of a run that have not failed.

    Args:
        subscribers: they get every event in this order.
        warn: called with a line about one that is dropped.
    """

    def __init__(self, subscribers: Iterable[Subscriber], warn: Callable[[str], None]) -> None:
        self._following, self._warn = list(subscribers), warn

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start all of them; end all of them that are left when the context ends, however it ends."""
        self._each(lambda subscriber: subscriber.start())
        try:
            yield
        except BaseException:
            self._warn = lambda _: None  # the run's own error is what its user needs
            raise
        finally:
            self._each(lambda subscriber: subscriber.end())

    def publish(self, event: Event) -> None:
        """Hand ``event`` to all of them that are left."""
        self._each(lambda subscriber: subscriber.on(event))

    def _each(self, call: Callable[[Subscriber], None]) -> None:
        for subscriber in list(self._following):
            try:
                call(subscriber)
            except Exception as error:
                self._following.remove(subscriber)
                self._report(subscriber, error)

    def _report(self, subscriber: Subscriber, error: Exception) -> None:
        cause = error.message if isinstance(error, GptcliError) else f"{type(error).__name__}: {error}"
        try:
            self._warn(f"{subscriber.name}: removed, and the run continues. {' '.join(cause.split())}")
        except Exception:  # stderr itself is closed
            self._warn = lambda _: None


class Metrics:
    """A row of metrics.jsonl for each evaluation.

    Args:
        run: the run's directory.
    """

    name = "metrics.jsonl"

    def __init__(self, run: Path) -> None:
        self.run = run

    def start(self) -> None:
        pass

    def on(self, event: Event) -> None:
        if isinstance(event, Evaluated):
            checkpoint.append_metrics(self.run, asdict(event))

    def end(self) -> None:
        pass


class LossPicture:
    """The losses of all sessions as a PNG in the run's directory, drawn at the end.

    Args:
        run: the run's directory.
        tokens_per_epoch: positions that an epoch trains on.
    """

    name = "The loss picture"

    def __init__(self, run: Path, tokens_per_epoch: int) -> None:
        self.run, self.tokens_per_epoch = run, tokens_per_epoch

    def start(self) -> None:
        pass

    def on(self, event: Event) -> None:
        pass

    def end(self) -> None:
        if (self.run / METRICS).exists():
            rows = checkpoint.read_metrics(self.run)
            file, unit = self.run / LOSS_PICTURE, loss_plots.unit_of(self.run)
            loss_plots.draw_losses(rows, self.tokens_per_epoch, file, self.run.name, unit)
