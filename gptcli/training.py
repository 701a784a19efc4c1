"""The training loop. It yields what happens and prints nothing."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from gptcli.autograd import chunked_cross_entropy
from gptcli.config import TrainConfig
from gptcli.corpus import Corpus, Windows, shuffled
from gptcli.errors import GptcliError
from gptcli.model import GPTModel
from gptcli.optim import learning_rate, make_optimizer


@dataclass(frozen=True)
class Plan:
    """What a run will do, known before its first step.

    Attributes:
        context_length: T of a training window.
        batch_size: windows a step.
        train_windows, validation_windows: how many the corpus gives.
        steps_per_epoch, total_steps: optimizer steps; windows that do not fill a batch wait for the next epoch's
            shuffle.
        notes: what had to shrink to fit the text, a line each.
    """

    context_length: int
    batch_size: int
    train_windows: int
    validation_windows: int
    steps_per_epoch: int
    total_steps: int
    notes: tuple[str, ...]

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_length


@dataclass(frozen=True)
class Stepped:
    """One optimizer step: its loss in nats before the update, and how fast training has been so far."""

    step: int
    epoch: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """One row of metrics.jsonl. Losses in nats a token; ``seconds`` since the start, evaluations included."""

    step: int
    epoch: int
    tokens_seen: int
    train_loss: float
    val_loss: float | None
    learning_rate: float
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class EpochEnded:
    """Every batch of epoch ``epoch`` (from 1) has been seen; ``step`` steps are done."""

    epoch: int
    step: int


Event = Stepped | Evaluated | EpochEnded


def make_plan(corpus: Corpus, config: TrainConfig) -> Plan:
    """How many windows, batches and steps ``config`` makes of ``corpus``."""
    notes = []
    train = train_windows(corpus, config)
    if train.context_length < config.context_length:
        notes.append(
            f"The training text has {len(corpus.train)} tokens, too few for a window of {config.context_length}: "
            f"windows of {train.context_length} instead."
        )
    validation = validation_windows(corpus, config)
    if validation is not None and validation.context_length < train.context_length:
        notes.append(
            f"The validation text has {len(corpus.validation)} tokens: it is judged in one window of "
            f"{validation.context_length}."
        )
    batch_size = min(config.batch_size, len(train))
    if batch_size < config.batch_size:
        notes.append(f"The text gives {len(train)} windows, fewer than --batch-size {config.batch_size}: all at once.")
    steps_per_epoch = len(train) // batch_size
    total_steps = steps_per_epoch * config.epochs if config.max_steps is None else config.max_steps
    return Plan(
        train.context_length,
        batch_size,
        len(train),
        len(validation) if validation else 0,
        steps_per_epoch,
        total_steps,
        tuple(notes),
    )


def train_windows(corpus: Corpus, config: TrainConfig) -> Windows:
    """The windows to learn from, ``stride`` apart (the context length unless given)."""
    return Windows(corpus.train, config.context_length, config.stride or config.context_length)


def validation_windows(corpus: Corpus, config: TrainConfig) -> Windows | None:
    """The windows to be judged by: touching, so that every token counts once; None where there is no such text."""
    if len(corpus.validation) < 2:
        return None
    return Windows(corpus.validation, config.context_length, config.context_length)


@torch.inference_mode()
def mean_loss(model: GPTModel, windows: Windows, numbers: Sequence[int], batch_size: int) -> float:
    """Mean cross-entropy in nats a token over the windows ``numbers``, without dropout."""
    was_training = model.training
    model.eval()
    total = 0.0
    for start in range(0, len(numbers), batch_size):
        inputs, targets = (part.to(model.device) for part in windows.batch(numbers[start : start + batch_size]))
        total += float(chunked_cross_entropy(model.hidden(inputs), model.head, targets)) * len(inputs)
    model.train(was_training)
    return total / len(numbers)


def train(
    model: GPTModel, corpus: Corpus, config: TrainConfig, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Train ``model`` in place, as `make_plan` says.

    Between two events the model is whole, in train mode, and may be saved or spoken with.

    Args:
        model: on its device.
        corpus: what to learn.
        config: how.
        should_stop: asked before every step; True ends the run after a last evaluation.

    Yields:
        a `Stepped` every step, an `Evaluated` every ``eval_every`` steps and at the end, an `EpochEnded` an epoch.

    Raises:
        GptcliError: the loss is no longer finite; the weights are then those before the step that failed.
    """
    plan = make_plan(corpus, config)
    windows, validation = train_windows(corpus, config), validation_windows(corpus, config)
    judged = _judged_windows(windows, validation, config, plan.batch_size)
    optimizer = make_optimizer(model, config)
    torch.manual_seed(config.seed)
    model.train()
    began, trained_for = time.perf_counter(), 0.0
    step, epoch, evaluated_at, rate = 0, 0, -1, config.learning_rate

    def evaluate() -> Evaluated:
        speed = step * plan.tokens_per_step / trained_for if trained_for else 0.0
        train_loss = mean_loss(model, windows, judged[0], plan.batch_size)
        val_loss = mean_loss(model, validation, judged[1], plan.batch_size) if validation else None
        seconds = time.perf_counter() - began
        return Evaluated(step - 1, epoch, step * plan.tokens_per_step, train_loss, val_loss, rate, speed, seconds)

    while step < plan.total_steps and not should_stop():
        epoch += 1
        order = shuffled(len(windows), config.seed, epoch)
        for first in range(0, plan.steps_per_epoch * plan.batch_size, plan.batch_size):
            if step >= plan.total_steps or should_stop():
                break
            started = time.perf_counter()
            rate = learning_rate(config, step, plan.total_steps)
            loss = _step(model, optimizer, windows.batch(order[first : first + plan.batch_size]), rate, config)
            trained_for += time.perf_counter() - started
            if not math.isfinite(loss):
                raise _diverged(step, loss, config)
            step += 1
            yield Stepped(step - 1, epoch, loss, step * plan.tokens_per_step / trained_for)
            if (step - 1) % config.eval_every == 0:
                evaluated_at = step
                yield evaluate()
        else:
            yield EpochEnded(epoch, step)
    if step and evaluated_at != step:
        yield evaluate()


def _step(
    model: GPTModel,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    rate: float,
    config: TrainConfig,
) -> float:
    """One forward, backward and update at learning rate ``rate``; the loss before it. No update if it is not finite."""
    inputs, targets = (part.to(model.device) for part in batch)
    loss = chunked_cross_entropy(model.hidden(inputs), model.head, targets)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    loss.backward()
    if config.grad_clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # gradients would only take room during the next forward pass
    return value


def _judged_windows(
    windows: Windows, validation: Windows | None, config: TrainConfig, batch_size: int
) -> tuple[list[int], list[int]]:
    """Which windows every evaluation looks at: the same ones throughout the run, so that its losses compare."""
    count = config.eval_batches * batch_size
    train = shuffled(len(windows), config.seed, 0)[:count]
    validation_count = len(validation) if validation else 0
    held_out = list(range(validation_count)) if config.eval_all else list(range(min(count, validation_count)))
    return train, held_out


def _diverged(step: int, loss: float, config: TrainConfig) -> GptcliError:
    return GptcliError(
        f"The loss is {loss} at step {step}: training has diverged; the run keeps the last good checkpoint.",
        f"Lower --learning-rate (now {config.learning_rate:g}), or add --grad-clip 1 and --warmup-steps 100.",
    )
