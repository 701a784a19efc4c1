"""How fast this machine runs a model, each figure beside the limit that was measured in turns with it.

Decoding one sequence reads every weight once a token: its limit is the memory's read bandwidth. A prompt and a training
step are matrix products: their limit is the rate of a large one. A batch is both, and held to the tighter of the two.

A machine that others share wanders by half within minutes. So all contenders do a work once, one after the other,
before any of them does it again, and they are compared within such a turn.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from gptcli.device import placement
from gptcli.evaluation.benchmark.engines import Contender, Setting, Task
from gptcli.model import cost

LIMIT_SIZES = {"cpu": (2**28, 1024, 1), "cuda": (2**30, 8192, 5), "mps": (2**29, 2048, 5)}
TRAINING_COPIES = 4  # of the weights: themselves, gradients and two moments
SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        work: what was done.
        subject: by which engine and in which precision.
        rate: the median, in ``unit``.
        low, high: the slowest and the fastest repetition.
        unit: "tokens/s" or "s".
        repetitions: how many times.
        limit: what the machine allows in the same unit, the median of the same turns; None where there is none.
        fraction: the median of rate / limit, turn by turn.
        beside: the median of rate / the peer's (the fastest one's of several), turn by turn; None without a peer.
    """

    work: str
    subject: str
    rate: float
    low: float
    high: float
    unit: str
    repetitions: int
    limit: float | None = None
    fraction: float | None = None
    beside: float | None = None


@dataclass(frozen=True)
class Work:
    """What is done, and what could limit it.

    Attributes:
        name: as ``--work`` has it.
        title: with its sizes.
        tokens: that doing it once handles; 0 where the time itself is the figure.
        flops: of the matrix products of a token; 0 where they are no limit.
        per_reading: tokens for which the weights are read once; 0 where that is no limit.
    """

    name: str
    title: str
    tokens: int = 0
    flops: float = 0
    per_reading: int = 0


def works(setting: Setting) -> list[Work]:
    """Every work there is, in the order of the table."""
    config, length = setting.config, setting.training_length
    head = 2 * config.emb_dim * config.vocab_size
    matrices = cost.flops_per_token(config).matrices
    together = setting.batch_steps * setting.batch
    return [
        Work("load", "load"),
        Work("prefill", f"prefill {setting.prompt}", setting.prompt, matrices - head + head / setting.prompt),
        Work("decode", f"decode {setting.tokens}", setting.tokens, per_reading=1),
        Work("batch", f"decode, {setting.batch} at once", together, matrices, per_reading=setting.batch),
        Work("train", f"train, {setting.rows} x {length}", setting.rows * length, 3 * matrices),
    ]


def training_flops(setting: Setting) -> dict[str, float]:
    """FLOPs of training on one token, by what is counted: the rule 6N, and every product, those of attention too."""
    counted = cost.flops_per_token(setting.config, setting.training_length)
    return {"6N": cost.training_flops_rule(setting.config), "with attention": counted.training}


class Limits:
    """What a device can do at best, measured anew at every call.

    Args:
        device: where.
        dtype: of the matrix products.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self._bytes, self._side, self._times = LIMIT_SIZES[device.type]
        self._long = torch.ones(self._bytes // 4, device=device)
        # Random numbers: a GPU multiplies ones in less time, since its wires change less.
        numbers = torch.rand(self._side, self._side, generator=torch.Generator().manual_seed(0))
        self._square = numbers.to(device, dtype)

    def read_rate(self) -> float:
        """Bytes a second of a sum over a vector that no cache holds."""
        return self._bytes * self._times / self._seconds(self._long.sum)

    def product_rate(self) -> float:
        """Floating-point operations a second of a square matrix product."""
        return 2 * self._side**3 * self._times / self._seconds(lambda: self._square @ self._square)

    def allowed(self, work: Work, weight_bytes: int) -> float | None:
        """Tokens a second that the device has room for now, with weights of so many bytes; None without a limit."""
        read = self.read_rate() / weight_bytes * work.per_reading if work.per_reading else None
        multiplied = self.product_rate() / work.flops if work.flops else None
        return min((rate for rate in (read, multiplied) if rate is not None), default=None)

    def _seconds(self, call: Callable[[], Any]) -> float:
        return seconds(lambda: [call() for _ in range(self._times)], self.device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """How long one call takes by the wall clock, until ``device`` has done all of it."""
    placement.synchronise(device)
    start = time.perf_counter()
    call()
    placement.synchronise(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Turn:
    """One contender's part of a turn: its rate (or its seconds), and the rate that was allowed around it."""

    rate: float
    allowed: float | None


def measure(
    work: Work,
    contenders: Sequence[Contender],
    repetitions: int,
    limits: Limits,
    *,
    at_once: bool,
    done: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Let contenders do a work in turns, ``repetitions`` times each after one that does not count: a row for each.

    Args:
        work: what to do.
        contenders: those that do it; its peers among them are who the others are held beside.
        repetitions: at least 1.
        limits: measured before and after each.
        at_once: keep all of them in memory; else each is made anew when its turn comes.
        done: called whenever one has done it.
    """
    limits.allowed(work, 1)  # the first call pays for preparations
    kept = [contender.ready(work.name) for contender in contenders] if at_once else []
    turns: list[list[Turn]] = [[] for _ in contenders]
    for number in range(repetitions + 1):
        for place, contender in enumerate(contenders):
            if number > 0 or at_once:
                task = kept[place] if at_once else contender.ready(work.name)
                if not at_once or number == 0:
                    task.run()
                if number > 0:
                    turns[place].append(_turn(work, task, limits, contender.cooldown))
                del task
            done()
    peers = [own for own, contender in zip(turns, contenders, strict=True) if contender.peer]
    fastest = [max(turn.rate for turn in same) for same in zip(*peers, strict=True)]
    return [_row(work, c.subject, own, fastest) for c, own in zip(contenders, turns, strict=True)]


def fit_at_once(work: Work, contenders: Sequence[Contender], device: torch.device) -> bool:
    """Whether the models of all contenders fit into memory, with what the work keeps beside them."""
    copies = TRAINING_COPIES if work.name == "train" else 1
    needed = copies * sum(contender.model_bytes for contender in contenders)
    return needed < SHARE_OF_MEMORY * placement.available_memory(device)


def _turn(work: Work, task: Task, limits: Limits, cooldown: float) -> Turn:
    before = limits.allowed(work, task.weight_bytes)
    took = seconds(task.run, limits.device)
    time.sleep(cooldown)
    after = limits.allowed(work, task.weight_bytes)
    allowed = (before + after) / 2 if before is not None and after is not None else None
    return Turn(work.tokens / took if work.tokens else took, allowed)


def _row(work: Work, subject: str, turns: Sequence[Turn], fastest: Sequence[float]) -> Row:
    rates = [turn.rate for turn in turns]
    low, high, unit = (min(rates), max(rates), "tokens/s") if work.tokens else (max(rates), min(rates), "s")
    limits = [turn.allowed for turn in turns if turn.allowed is not None]
    return Row(
        work.title,
        subject,
        median(rates),
        low,
        high,
        unit,
        len(rates),
        limit=median(limits) if limits else None,
        fraction=median(rate / limit for rate, limit in zip(rates, limits, strict=True)) if limits else None,
        beside=median(rate / theirs for rate, theirs in zip(rates, fastest, strict=True)) if fastest else None,
    )
