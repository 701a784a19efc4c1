"""The recipe of a training run: every setting that decides the weights, checked on construction, without torch."""

from dataclasses import dataclass
from typing import Literal

from gptcli.config.fields import check, duration, duration_with_unit, in_panel, like, require, seconds_text
from gptcli.config.model import GPTConfig

Init = Literal["gpt2", "course"]
Schedule = Literal["constant", "cosine", "linear", "wsd"]
Optimizer = Literal["adamw", "adam", "sgd", "adafactor", "muon"]
Final = Literal["best", "last"]
Precision = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

model_setting = in_panel("Model")
training = in_panel("Training")
evaluation = in_panel("Watching")


@dataclass(frozen=True)
class RecipeConfig:
    """What decides a run's weights, besides its model and texts. The defaults are those of the course's pretraining
    run, except that the gradient is clipped.

    Without clipping, the large gradients of the first steps stay in AdamW's second moments for the rest of a short run
    (beta2 is 0.999), and the loss stays on its plateau for longer.

    Lengths are in tokens, `train_share` is a fraction of the characters, learning rates are per optimizer step,
    `max_time` and `for_time` are in seconds. `dtype` "auto" becomes the name of a dtype once the device is known.
    Evaluations belong to the recipe because `early_stop` depends on them.

    Raises:
        SettingError: a value is outside its range.
    """

    context_length: int = like(GPTConfig, "context_length", 256)
    stride: int | None = training(None, "Tokens from one window to the next; the context by default.", at_least=1)
    batch_size: int = training(4, "Windows a step.", at_least=1, common=True)
    for_time: float | None = training(
        None, "Train for this time, as in 30s, 10m, 2h, from the start of the process to its end; gptcli chooses "
        "what you do not set, for the text, the time and the machine.", at_least=30, common=True, called="for",
        metavar="TIME", parser=duration_with_unit, text=seconds_text, hint="Give at least 30s, as in 90s, 10m or 2h.",
    )  # fmt: skip
    epochs: int = training(10, "Times through the text.", at_least=1, on_resume=True, common=True)
    max_steps: int | None = training(
        None, "Stop after this number of steps, whatever {epochs} is.", at_least=1, on_resume=True, common=True
    )
    max_time: float | None = training(
        None, "Stop after this time, as in 90s, 10m, 2h.", above=0, on_resume=True, metavar="TIME", parser=duration,
        hint="Give 90s, 10m or 2h.",
    )  # fmt: skip
    early_stop: int | None = training(
        None, "Stop after N evaluations without a better validation loss.", at_least=1, on_resume=True
    )
    learning_rate: float = training(
        5e-4, "The optimizer's peak rate.", also="--lr", above=0, common=True,
        hint="The course trains with 5e-4; GPT-2-sized models take 1e-4 to 1e-3.",
    )  # fmt: skip
    min_learning_rate: float | None = training(None, "Rate at the end of the schedule; a tenth of the peak by default.")
    warmup_steps: int = training(0, "Steps of linear warm-up.", at_least=0, hint="0 turns it off.")
    schedule: Schedule = training(
        "constant", "After the warm-up: constant, cosine, linear, or wsd (constant, then a linear cooldown)."
    )
    schedule_steps: int | None = training(
        None, "Steps that {schedule} is planned for; all steps of the run by default.", at_least=1, on_resume=True
    )
    cooldown_start: int | None = training(
        None, "Step at which wsd's cooldown begins; by default so that it ends with the schedule.", at_least=1
    )
    cooldown_share: float = training(
        0.5, "Length of wsd's cooldown, as a share of the steps before it.", above=0, hint="0.5 is the default."
    )
    optimizer: Optimizer = training("adamw", "adamw, adam, sgd (with momentum), adafactor or muon.")
    weight_decay: float = training(
        0.1, "Weight decay; on matrices only.", at_least=0, hint="0.1 is usual, 0 turns it off."
    )
    beta1: float = training(
        0.9, "AdamW's first decay; sgd's momentum.", at_least=0, below=1,
        hint="AdamW's usual values are 0.9 and 0.999 (0.95 for long runs).",
    )  # fmt: skip
    beta2: float = training(
        0.999, "AdamW's second decay rate.", at_least=0, below=1,
        hint="AdamW's usual values are 0.9 and 0.999 (0.95 for long runs).",
    )  # fmt: skip
    embedding_rate: float = training(
        1.0, "Muon's rate of embeddings and head, as a multiple of {learning_rate}.", above=0, hint="1 is the default."
    )
    momentum_warmup: int = training(
        0, "Steps in which Muon's momentum grows from 0.85 to 0.95.", at_least=0, hint="0 turns it off."
    )
    grad_clip: float = training(
        1.0, "Largest gradient norm, 0 for no limit.", at_least=0, hint="1.0 is usual, 0 turns it off."
    )
    average_share: float = training(
        0.0, "Evaluate and keep the average of the weights over the newest steps, about this share of them all.",
        at_least=0, below=1, hint="0.1 is usual, 0 turns it off.",
    )  # fmt: skip
    seed: int = training(123, "Seed of weights, order and dropout; the same seed repeats the run.", common=True)
    init: Init = model_setting("course", "First weights: course (torch's defaults) or gpt2 (std 0.02).")
    dtype: Dtype = training(
        "auto",
        "Dtype of matrix products: auto (float32 on a CPU, bfloat16 on a GPU that has it), float32, bfloat16, float16.",
    )
    train_share: float = evaluation(
        0.9, "Share of the characters (of prepared tokens) to train on.", above=0, at_most=1,
        hint="0.9 trains on the first 90% of the characters and validates on the rest; 1 validates on nothing.",
    )  # fmt: skip
    eval_every: int = evaluation(5, "Steps between evaluations.", at_least=1)
    eval_batches: int = evaluation(5, "Batches of each part that an evaluation reads.", at_least=1)
    eval_all: bool = evaluation(False, "Evaluate on the whole validation part.")

    final: Final = evaluation(
        "best", "The weights that the checkpoint holds: of the best evaluation, or the last.", on_resume=True
    )

    def __post_init__(self) -> None:
        check(self)
        require(
            self.min_learning_rate is None or 0 <= self.min_learning_rate <= self.learning_rate,
            f"{{min_learning_rate}} is {self.min_learning_rate}, outside [0, {self.learning_rate}].",
            "It is the rate that the schedule ends on; a tenth of {learning_rate} is usual.",
        )
