"""Training settings: a frozen dataclass, checked on construction, without torch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gptcli.config.fields import require
from gptcli.errors import GptcliError, nearest

Init = Literal["gpt2", "course"]
Schedule = Literal["constant", "cosine", "linear"]
Optimizer = Literal["adamw", "adam", "sgd", "adafactor", "muon"]
Precision = Literal["float32", "bfloat16", "float16"]
Log = Literal["none", "tensorboard"]


@dataclass(frozen=True)
class TrainConfig:
    """Training settings. The defaults are those of the course's pretraining run, except that the gradient is clipped.

    Without clipping, the large gradients of the first steps stay in AdamW's second moments for the rest of a short run
    (beta2 is 0.999), and the loss stays on its plateau for longer.

    Lengths are in tokens, `train_share` is a fraction of the characters, learning rates are per optimizer step,
    `max_time` is in seconds. A step processes `batch_size` windows in `accumulate` parts, which only saves memory.
    `save_every` None: the interval is chosen from the cost of saving. `compile` None: the command decides by device and
    size of the run; elsewhere it is False.

    Raises:
        GptcliError: a value is outside its range.
    """

    context_length: int = 256
    stride: int | None = None
    batch_size: int = 4
    epochs: int = 10
    max_steps: int | None = None
    learning_rate: float = 5e-4
    min_learning_rate: float | None = None
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip: float = 1.0
    train_share: float = 0.9
    eval_every: int = 5
    eval_batches: int = 5
    eval_all: bool = False
    sample_every: int = 1
    sample_prompt: str = "Every effort moves you"
    init: Init = "course"
    seed: int = 123
    optimizer: Optimizer = "adamw"
    accumulate: int = 1
    recompute: bool = False
    compile: bool | None = None
    shard: bool = False
    dtype: Precision = "float32"
    max_time: float | None = None
    early_stop: int | None = None
    save_every: int | None = None
    keep: int = 2
    log: Log = "none"

    def __post_init__(self) -> None:
        for name in ("context_length", "batch_size", "epochs", "eval_every", "eval_batches", "accumulate", "keep"):
            require(
                getattr(self, name) >= 1,
                f"--{name.replace('_', '-')} is {getattr(self, name)}, but it must be at least 1.",
                f"Leave it out for the default, {type(self).__dataclass_fields__[name].default}.",
            )
        for name in ("stride", "max_steps", "early_stop", "save_every"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"--{name.replace('_', '-')} is {value}, but it must be at least 1.",
                "Leave it out for the default.",
            )
        for name in ("warmup_steps", "sample_every"):
            require(
                getattr(self, name) >= 0,
                f"--{name.replace('_', '-')} is {getattr(self, name)}, but it cannot be negative.",
                "0 turns it off.",
            )
        require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"--learning-rate is {self.learning_rate}, but it must be greater than 0.",
            "The course trains with 5e-4; GPT-2-sized models take 1e-4 to 1e-3.",
        )
        require(
            self.min_learning_rate is None or 0 <= self.min_learning_rate <= self.learning_rate,
            f"--min-learning-rate is {self.min_learning_rate}, outside [0, {self.learning_rate}].",
            "It is the rate that the schedule ends on; a tenth of --learning-rate is usual.",
        )
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"--weight-decay is {self.weight_decay}, but it cannot be negative.",
            "0.1 is usual, 0 turns it off.",
        )
        for name in ("beta1", "beta2"):
            require(
                0 <= getattr(self, name) < 1,
                f"--{name} is {getattr(self, name)}, outside [0, 1).",
                "AdamW's usual values are 0.9 and 0.999 (0.95 for long runs).",
            )
        require(
            math.isfinite(self.grad_clip) and self.grad_clip >= 0,
            f"--grad-clip is {self.grad_clip}, but it cannot be negative.",
            "1.0 is usual, 0 turns it off.",
        )
        require(
            0 < self.train_share <= 1,
            f"--train-share is {self.train_share}, outside (0, 1].",
            "0.9 trains on the first 90% of the characters and validates on the rest; 1 validates on nothing.",
        )
        require(
            self.accumulate <= self.batch_size,
            f"--accumulate is {self.accumulate}, but a step has only {self.batch_size} windows to share out.",
            "It is the number of parts that a step's --batch-size is computed in.",
        )
        require(
            self.max_time is None or self.max_time > 0,
            f"--max-time is {self.max_time}, but it must be longer than 0.",
            "Give 90s, 10m or 2h.",
        )
        for name, choices in (
            ("schedule", get_args(Schedule)),
            ("init", get_args(Init)),
            ("optimizer", get_args(Optimizer)),
            ("dtype", get_args(Precision)),
            ("log", get_args(Log)),
        ):
            if getattr(self, name) not in choices:
                raise GptcliError(
                    f"There is no --{name} {getattr(self, name)!r}.", nearest(getattr(self, name), choices)
                )
