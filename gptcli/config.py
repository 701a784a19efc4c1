"""Every setting of a model, of sampling and of training: frozen, validated when made, free of torch."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from gptcli.errors import GptcliError, nearest

Init = Literal["gpt2", "course"]
Schedule = Literal["constant", "cosine", "linear"]
Optimizer = Literal["adamw", "adam", "sgd", "adafactor", "muon"]
Precision = Literal["float32", "bfloat16", "float16"]
Log = Literal["none", "tensorboard"]
Overflow = Literal["slide", "crop", "error"]
Activation = Literal["gelu_new", "gelu", "relu"]


def _require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise GptcliError(message, hint)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2-class model, in the course's field names. The defaults are GPT-2 small.

    The last five fields are variants of the arithmetic that other people's models use: the width of the feed-forward
    layer (None: four times emb_dim), its activation (gelu_new is the tanh form), the epsilon of the layer norms,
    whether attention scores are divided by the root of head_dim, and whether also by the number of the layer, from 1.

    Raises:
        GptcliError: a size is not positive, emb_dim is not divisible by n_heads, drop_rate is outside [0, 1), there is
            no such activation, layer_norm_eps is not positive.
    """

    vocab_size: int = 50_257
    context_length: int = 1_024
    emb_dim: int = 768
    n_heads: int = 12
    n_layers: int = 12
    drop_rate: float = 0.1
    qkv_bias: bool = True
    tie_weights: bool = True
    ffn_dim: int | None = None
    activation: Activation = "gelu_new"
    layer_norm_eps: float = 1e-5
    scale_attn: bool = True
    scale_attn_by_layer: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "ffn_dim"):
            value = getattr(self, name)
            _require(
                (isinstance(value, int) and value >= 1) or (name == "ffn_dim" and value is None),
                f"{name} is {value!r}, but it counts something and must be a whole number of at least 1.",
                f"Give {name} a positive whole number.",
            )
        _require(
            self.emb_dim % self.n_heads == 0,
            f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}.",
            f"Every head takes an equal share: try --emb-dim {self.n_heads * max(1, self.emb_dim // self.n_heads)} "
            f"or --n-heads {_largest_divisor(self.emb_dim, self.n_heads)}.",
        )
        _require(
            0.0 <= self.drop_rate < 1.0,
            f"drop_rate is {self.drop_rate}, outside [0, 1).",
            "Dropout is the share of activations set to zero: 0.1 is GPT-2's, 0 turns it off.",
        )
        _require(
            self.activation in get_args(Activation),
            f"There is no activation {self.activation!r}.",
            nearest(str(self.activation), get_args(Activation)),
        )
        _require(
            0.0 < self.layer_norm_eps < math.inf,
            f"layer_norm_eps is {self.layer_norm_eps}, but it must be greater than 0.",
            "GPT-2's is 1e-5.",
        )

    @property
    def hidden_dim(self) -> int:
        """F, the width of the feed-forward layer."""
        return 4 * self.emb_dim if self.ffn_dim is None else self.ffn_dim

    @property
    def head_dim(self) -> int:
        """D, the width of one attention head."""
        return self.emb_dim // self.n_heads

    @classmethod
    def preset(cls, size: str, **overrides: Any) -> "GPTConfig":
        """The preset ``size`` with single fields replaced; overrides that are None count as absent."""
        if size not in PRESETS:
            raise GptcliError(f"There is no size {size!r}.", nearest(size, PRESETS))
        return replace(PRESETS[size], **{k: v for k, v in overrides.items() if v is not None})

    def with_changes(self, **overrides: Any) -> "GPTConfig":
        """This config with single fields replaced; overrides that are None count as absent."""
        return replace(self, **{k: v for k, v in overrides.items() if v is not None})


def _largest_divisor(number: int, at_most: int) -> int:
    return next(n for n in range(min(number, at_most), 0, -1) if number % n == 0)


# Our field -> Hugging Face's, in their config.json. They have no field for a missing qkv bias.
HUGGING_FACE_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
    "drop_rate": "resid_pdrop",
    "tie_weights": "tie_word_embeddings",
    "ffn_dim": "n_inner",
    "activation": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
    "scale_attn": "scale_attn_weights",
    "scale_attn_by_layer": "scale_attn_by_inverse_layer_idx",
}

PRESETS: dict[str, GPTConfig] = {
    "tiny": GPTConfig(context_length=128, emb_dim=128, n_heads=4, n_layers=4),
    "mini": GPTConfig(context_length=256, emb_dim=384, n_heads=6, n_layers=6),
    "small": GPTConfig(),
    "medium": GPTConfig(emb_dim=1_024, n_heads=16, n_layers=24),
    "large": GPTConfig(emb_dim=1_280, n_heads=20, n_layers=36),
    "xl": GPTConfig(emb_dim=1_600, n_heads=25, n_layers=48),
}

# Table 2.1 of "Language Models are Few-Shot Learners" (Brown et al., 2020); for counting only.
# Two of its rows do not add up: 13B's emb_dim 5140 is 40 heads of 128 = 5120, XL's 24 heads do not divide 2048 (16 do).
GPT3_PRESETS: dict[str, GPTConfig] = {
    name: GPTConfig(context_length=2_048, n_layers=layers, n_heads=heads, emb_dim=width)
    for name, layers, width, heads in (
        ("gpt3-small", 12, 768, 12),
        ("gpt3-medium", 24, 1_024, 16),
        ("gpt3-large", 24, 1_536, 16),
        ("gpt3-xl", 24, 2_048, 16),
        ("gpt3-2.7b", 32, 2_560, 32),
        ("gpt3-6.7b", 32, 4_096, 32),
        ("gpt3-13b", 40, 5_120, 40),
        ("gpt3", 96, 12_288, 96),
    )
}


@dataclass(frozen=True)
class SamplingConfig:
    """How logits become a distribution. Temperature 0 is greedy; a filter that is None is off.

    Raises:
        GptcliError: a value outside its range (NaN is outside every range).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"--temperature is {self.temperature}, but it must be 0 or more.",
            "0 always takes the likeliest token, 0.7 is calm, 1 is the model as it is, above 1 is wilder.",
        )
        _require(
            self.top_k is None or self.top_k >= 1,
            f"--top-k is {self.top_k}, but at least 1 token must remain to choose from.",
            "Give a whole number of at least 1, or leave --top-k out to keep every token.",
        )
        _require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"--top-p is {self.top_p}, outside (0, 1].",
            "0.9 keeps the likeliest tokens that make up 90% of the probability; 1 keeps all.",
        )
        _require(
            self.min_p is None or 0 <= self.min_p <= 1,
            f"--min-p is {self.min_p}, outside [0, 1].",
            "0.05 keeps the tokens that are at least a twentieth as likely as the likeliest.",
        )
        _require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            f"--repetition-penalty is {self.repetition_penalty}, but it must be greater than 0.",
            "1 is off, 1.1 to 1.3 makes repeats rarer.",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the course's pretraining run, with one difference: the gradient is clipped.

    Without it AdamW's second moments remember the first steps' large gradients for the rest of a short run, and the
    loss stays on its plateau for longer.

    Lengths are in tokens, `train_share` in characters, rates per optimizer step, `max_time` in seconds. A step sees
    `batch_size` windows in `accumulate` parts, which only saves memory. `save_every` None: as often as it is cheap.
    `compile` None: the command decides by device and size of the run; elsewhere it is False.

    Raises:
        GptcliError: a value outside its range.
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
            _require(
                getattr(self, name) >= 1,
                f"--{name.replace('_', '-')} is {getattr(self, name)}, but it must be at least 1.",
                f"Leave it out for the default, {type(self).__dataclass_fields__[name].default}.",
            )
        for name in ("stride", "max_steps", "early_stop", "save_every"):
            value = getattr(self, name)
            _require(
                value is None or value >= 1,
                f"--{name.replace('_', '-')} is {value}, but it must be at least 1.",
                "Leave it out for the default.",
            )
        for name in ("warmup_steps", "sample_every"):
            _require(
                getattr(self, name) >= 0,
                f"--{name.replace('_', '-')} is {getattr(self, name)}, but it cannot be negative.",
                "0 turns it off.",
            )
        _require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"--learning-rate is {self.learning_rate}, but it must be greater than 0.",
            "The course trains with 5e-4; GPT-2-sized models take 1e-4 to 1e-3.",
        )
        _require(
            self.min_learning_rate is None or 0 <= self.min_learning_rate <= self.learning_rate,
            f"--min-learning-rate is {self.min_learning_rate}, outside [0, {self.learning_rate}].",
            "It is the rate that the schedule ends on; a tenth of --learning-rate is usual.",
        )
        _require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"--weight-decay is {self.weight_decay}, but it cannot be negative.",
            "0.1 is usual, 0 turns it off.",
        )
        for name in ("beta1", "beta2"):
            _require(
                0 <= getattr(self, name) < 1,
                f"--{name} is {getattr(self, name)}, outside [0, 1).",
                "AdamW's usual values are 0.9 and 0.999 (0.95 for long runs).",
            )
        _require(
            math.isfinite(self.grad_clip) and self.grad_clip >= 0,
            f"--grad-clip is {self.grad_clip}, but it cannot be negative.",
            "1.0 is usual, 0 turns it off.",
        )
        _require(
            0 < self.train_share <= 1,
            f"--train-share is {self.train_share}, outside (0, 1].",
            "0.9 trains on the first 90% of the characters and validates on the rest; 1 validates on nothing.",
        )
        _require(
            self.accumulate <= self.batch_size,
            f"--accumulate is {self.accumulate}, but a step has only {self.batch_size} windows to share out.",
            "It is the number of parts that a step's --batch-size is computed in.",
        )
        _require(
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


def as_dict(config: GPTConfig | SamplingConfig | TrainConfig) -> dict[str, Any]:
    """The fields by name, ready for JSON."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
