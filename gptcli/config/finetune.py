"""How a checkpoint is fine-tuned: a frozen dataclass, checked on construction, without torch."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from gptcli.config.fields import check, fields_of, in_panel, like, require
from gptcli.config.lora import DEFAULT_RANK, TARGETS, LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import Dtype, Final, Optimizer, RecipeConfig, Schedule
from gptcli.config.runtime import RuntimeConfig
from gptcli.config.text import DecodingErrors, TextConfig

LossOn = Literal["answers", "all"]
Method = Literal["sft", "dpo"]

data = in_panel("Examples")
training = in_panel("Training")

TOKENS_A_STEP = 1_024  # of the default batch
MOST_A_STEP = 32  # examples
LEAST_STEPS = 10  # of an epoch, where there are so many examples
EPOCHS = ((1_000, 3), (10_000, 2))  # up to so many examples, so many epochs; else one
WARMUP = 0.06  # share of all steps
EVALUATED = 64  # examples of each part that an evaluation looks at
TRAINED = r"all|head|last:[1-9][0-9]*|lora(:[1-9][0-9]*)?"
RATES = {"sft": (5e-5, 2e-4), "dpo": (1e-6, 1e-5)}  # of all weights, and of adapters


@dataclass(frozen=True)
class FinetuneConfig:
    """How examples are read and learned. Where a field is None, the examples decide (see `recipe`).

    Fields that `RecipeConfig` has as well mean the same here; other defaults suit weights that are trained already.

    Raises:
        SettingError: a value is outside its range.
    """

    fields: str | None = data(
        None, "Other names of the fields, as in prompt=question,completion=answer; others are then ignored.",
        metavar="NAMES", common=True,
    )  # fmt: skip
    skip_bad: bool = data(False, "Leave out rows that cannot be used, and count them.", common=True)
    template: str | None = data(
        None, "Template that makes a text of messages: alpaca, chat, plain, or a file of Jinja2; by default "
        "the checkpoint's own, or the one that suits the examples.", path="name", common=True,
    )  # fmt: skip
    loss_on: LossOn = data("answers", "Compute the loss on the answers alone, or on all of every text.", common=True)
    encoding: str | None = like(TextConfig, "encoding", panel="Examples")
    errors: DecodingErrors = like(TextConfig, "errors", "strict", panel="Examples")
    context_length: int | None = like(
        GPTConfig, "context_length", shown_default="the checkpoint's", panel="Examples",
        help="The most tokens of an example; of a longer one, the beginning of the prompt is cut off.",
    )  # fmt: skip
    train_share: float = like(
        RecipeConfig, "train_share", 0.9, panel="Examples", help="Share of the examples to train on.",
        hint="0.9 trains on nine of ten examples and validates on the rest; 1 validates on nothing.",
    )  # fmt: skip
    method: Method = training(
        "sft", "sft: learn to write the answers. dpo: learn to prefer the chosen answer of each pair to the rejected.",
        common=True,
    )  # fmt: skip
    dpo_beta: float = training(
        0.1, "How strongly dpo keeps the model near the one that it begins with.", above=0, hint="0.1 is usual."
    )
    train: str = training(
        "all", "All weights; last:N, the last blocks and the head; head; or lora:RANK, adapters beside frozen weights.",
        common=True, metavar="all|last:N|head|lora[:RANK]",
    )  # fmt: skip
    lora_alpha: float | None = training(
        None, "An adapter's product is scaled by this over its rank; twice the rank by default.", above=0
    )
    lora_targets: str | None = training(
        None,
        "The matrices that get an adapter, as in attn.c_attn,mlp.c_fc; all four of a block by default.",
    )
    batch_size: int | None = like(
        RecipeConfig, "batch_size", shown_default="as many as have 1,024 tokens", help="Examples a step."
    )
    epochs: int | None = like(
        RecipeConfig, "epochs", shown_default="1 to 3, fewer for more", help="Times through the examples."
    )
    max_steps: int | None = like(RecipeConfig, "max_steps")
    max_time: float | None = like(RecipeConfig, "max_time")
    early_stop: int = like(
        RecipeConfig, "early_stop", 5, at_least=0, hint="0 turns it off.", common=True,
        help="Stop after N evaluations without a better validation loss; 0 never stops.",
    )  # fmt: skip
    learning_rate: float | None = like(
        RecipeConfig, "learning_rate", shown_default="5e-05, 0.0002 for lora; 1e-06, 1e-05 for dpo",
        hint="5e-5 is usual for weights that are trained already, 2e-4 for adapters.",
    )  # fmt: skip
    min_learning_rate: float | None = like(RecipeConfig, "min_learning_rate")
    warmup_steps: int | None = like(RecipeConfig, "warmup_steps", shown_default="6% of all")
    schedule: Schedule = like(RecipeConfig, "schedule", "cosine")
    schedule_steps: int | None = like(RecipeConfig, "schedule_steps")
    optimizer: Optimizer = like(RecipeConfig, "optimizer", "adamw")
    weight_decay: float = like(RecipeConfig, "weight_decay", 0.1)
    beta1: float = like(RecipeConfig, "beta1", 0.9)
    beta2: float = like(RecipeConfig, "beta2", 0.999)
    grad_clip: float = like(RecipeConfig, "grad_clip", 1.0)
    drop_rate: float | None = like(GPTConfig, "drop_rate", shown_default="the checkpoint's", panel="Training")
    seed: int = like(RecipeConfig, "seed", 123, help="Seed of split, order and dropout; the same seed repeats the run.")
    dtype: Dtype = like(RecipeConfig, "dtype", "auto")
    eval_every: int | None = like(RecipeConfig, "eval_every", shown_default="a tenth of an epoch")
    eval_batches: int | None = like(RecipeConfig, "eval_batches", shown_default="64 examples")
    eval_all: bool = like(RecipeConfig, "eval_all", False)
    final: Final = like(RecipeConfig, "final", "best")

    def __post_init__(self) -> None:
        check(self)
        require(
            re.fullmatch(TRAINED, self.train) is not None,
            f"{{train}} is {self.train!r}, which names no weights.",
            "Give all, head, lora, or last:2 for the last two blocks, the last norm and the head.",
        )
        require(
            self.method == "dpo" or self.dpo_beta == FinetuneConfig.dpo_beta,
            "{dpo_beta} is of {method} dpo.",
            "Give {method} dpo, or leave {dpo_beta} out.",
        )
        require(
            self.method == "sft" or self.loss_on == "answers",
            "{method} dpo compares answers, and {loss_on} is all.",
            "Leave {loss_on} out.",
        )
        for name in ("lora_alpha", "lora_targets"):
            require(
                getattr(self, name) is None or self.adapter is not None,
                f"{{{name}}} is of adapters, but {{train}} is {self.train}.",
                f"Give {{train}} lora, or leave {{{name}}} out.",
            )

    @property
    def adapter(self) -> LoRAConfig | None:
        """What ``train`` says of adapters; None where it names other weights."""
        if not self.train.startswith("lora"):
            return None
        rank = int(self.train.removeprefix("lora").removeprefix(":") or DEFAULT_RANK)
        targets = TARGETS if self.lora_targets is None else tuple(map(str.strip, self.lora_targets.split(",")))
        return LoRAConfig(rank, 2.0 * rank if self.lora_alpha is None else self.lora_alpha, targets)

    def recipe(self, examples: int, length: float, context_length: int) -> RecipeConfig:
        """The recipe of a run; what is not set follows from the examples.

        Args:
            examples: how many there are to train on.
            length: their mean length in tokens.
            context_length: the most tokens of one.

        Raises:
            SettingError: two settings contradict each other.
        """
        found: dict[str, Any] = {
            name: getattr(self, name) for name in fields_of(RecipeConfig) if name in fields_of(FinetuneConfig)
        }
        found = {name: value for name, value in found.items() if value is not None}
        batch = self.batch_size or _batch_size(examples, length)
        epochs = self.epochs or next((epochs for most, epochs in EPOCHS if examples <= most), 1)
        steps = max(1, examples // min(batch, examples))
        found = {
            "epochs": epochs,
            "warmup_steps": round(WARMUP * (self.max_steps or steps * epochs)),
            "eval_every": max(1, steps // 10),
            "eval_batches": -(-EVALUATED // batch),
            "learning_rate": RATES[self.method][self.adapter is not None],
            **found,
            "batch_size": batch,
            "context_length": context_length,
            "early_stop": self.early_stop or None,
        }
        return RecipeConfig(**found)


FINETUNE_RUNTIME = RuntimeConfig(accumulate=None, sample_prompt="")


def _batch_size(examples: int, length: float) -> int:
    """A power of two of examples that have about TOKENS_A_STEP tokens together."""
    most = min(MOST_A_STEP, TOKENS_A_STEP / length, max(1, examples // LEAST_STEPS))
    return int(2 ** math.floor(math.log2(max(1, most))))
