"""The speed of this machine on each work (a timed workload), and the limit that the hardware sets to it.

Decoding one sequence reads every weight once per token: its limit is the read bandwidth of memory. Prefill and training
consist of matrix products: their limit is the rate of a large product, by the fastest library that is at hand
(products.py). A batch is limited by the lower of the two.

The speed of a shared machine changes by half within minutes. So in each turn every contender (engine in one precision)
does the work once, and ratios between contenders are computed within a turn.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from gptcli.device import placement
from gptcli.evaluation.benchmark.engines import Contender, Setting, Task
from gptcli.evaluation.benchmark.products import libraries
from gptcli.model import cost

TRIALS = 3  # products of each library before the fastest is chosen
LIMIT_SIZES = {"cpu": (2**28, 1024, 1), "cuda": (2**30, 8192, 5), "mps": (2**29, 2048, 5)}
TRAINING_COPIES = 4  # of the weights' size: weights, gradients and two moments
SHARE_OF_MEMORY = 0.8


@dataclass(frozen=True)
class Row:
    """One row of the table: a work by a contender.

    Attributes:
        work: title of the work.
        subject: name of the engine and its precision.
        rate: the median of the repetitions, in ``unit``.
        low, high: the slowest and the fastest repetition.
        unit: "tokens/s" or "s".
        repetitions: the number of timed repetitions.
        limit: the median of the limits measured in the same turns, in ``unit``; None for a work without a limit.
        fraction: the median over turns of rate / limit.
        beside: the median over turns of rate / the rate of the peer (the fastest of several); None without a peer.
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
    """A timed workload, and the numbers from which its limit follows.

    Attributes:
        name: the value of ``--work``.
        title: the name with its sizes, for the table.
        tokens: tokens per repetition; 0 where the result is the time in seconds.
        flops: FLOPs of matrix products per token; 0 where they do not limit the work.
        per_reading: tokens per reading of all weights; 0 where reading them does not limit the work.
    """

    name: str
    title: str
    tokens: int = 0
    flops: float = 0
    per_reading: int = 0


def works(setting: Setting) -> list[Work]:
    """All works, in the order of the table."""
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
    """FLOPs of training per token, by two counts: the rule 6N, and all matrix products including attention's."""
    counted = cost.flops_per_token(setting.config, setting.training_length)
    return {"6N": cost.training_flops_rule(setting.config), "with attention": counted.training}


class Limits:
    """The read bandwidth and product rate of a device, measured at every call.

    Args:
        device: the device to measure.
        dtype: the dtype of the matrix products.

    Attributes:
        library: the name of the library that multiplies; chosen once, when the object is made.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self._bytes, self._side, self._times = LIMIT_SIZES[device.type]
        self._long = torch.ones(self._bytes // 4, device=device)
        # Random numbers, because a GPU multiplies ones faster: fewer bits switch, so it draws less power.
        numbers = torch.rand(self._side, self._side, generator=torch.Generator().manual_seed(0))
        candidates = libraries(numbers.to(device, dtype))
        self.library, self._product = min(candidates.items(), key=lambda each: self._best_of(each[1]))

    def read_rate(self) -> float:
        """Bytes per second of a sum over a float32 vector larger than the caches."""
        return self._bytes * self._times / self._seconds(self._long.sum)

    def product_rate(self) -> float:
        """FLOP/s of a square matrix product."""
        return 2 * self._side**3 * self._times / self._seconds(self._product)

    def _best_of(self, product: Callable[[], Any]) -> float:
        """Seconds of the quickest of `TRIALS` runs, after one that includes the library's initialization."""
        product()
        return min(self._seconds(product) for _ in range(TRIALS))

    def allowed(self, work: Work, weight_bytes: int) -> float | None:
        """The limit of ``work`` in tokens per second, measured now; None where nothing limits it."""
        read = self.read_rate() / weight_bytes * work.per_reading if work.per_reading else None
        multiplied = self.product_rate() / work.flops if work.flops else None
        return min((rate for rate in (read, multiplied) if rate is not None), default=None)

    def _seconds(self, call: Callable[[], Any]) -> float:
        return seconds(lambda: [call() for _ in range(self._times)], self.device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call, until ``device`` has finished its kernels."""
    placement.synchronise(device)
    start = time.perf_counter()
    call()
    placement.synchronise(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Turn:
    """One repetition of a contender: its rate (or its seconds), and the mean of the limits before and after it."""

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
    """Time a work of all contenders in turns, ``repetitions`` times each after an untimed one: a row for each.

    Args:
        work: the work.
        contenders: the engines that do it; `Row.beside` compares each with the peers among them.
        repetitions: at least 1.
        limits: measured before and after each repetition.
        at_once: keep all models in memory; else each model is built anew, and run once untimed, in every turn.
        done: called after each repetition of a contender.
    """
    limits.allowed(work, 1)  # the first call includes the libraries' initialization
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
    """Whether the models of all contenders, with gradients and moments for training, fit into free memory together."""
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
