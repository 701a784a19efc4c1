"""The shape of a model: a frozen dataclass, checked on construction, without torch."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from gptcli.config.fields import require
from gptcli.errors import GptcliError, nearest

Activation = Literal["gelu_new", "gelu", "relu"]


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2-class model, with the course's field names. The defaults are GPT-2 small.

    The last five fields are for variants in other GPT-2 checkpoints: the width of the feed-forward layer (None:
    4 · emb_dim), its activation (gelu_new is the tanh approximation), the epsilon of the layer norms, whether attention
    scores are divided by √head_dim, and whether they are also divided by the layer's number, counted from 1.

    Raises:
        GptcliError: a size is not positive, emb_dim is not divisible by n_heads, drop_rate is outside [0, 1), the
            activation is unknown, layer_norm_eps is not positive.
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
            require(
                (isinstance(value, int) and value >= 1) or (name == "ffn_dim" and value is None),
                f"{name} is {value!r}, but it counts something and must be a whole number of at least 1.",
                f"Give {name} a positive whole number.",
            )
        require(
            self.emb_dim % self.n_heads == 0,
            f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}.",
            f"Every head takes an equal share: try --emb-dim {self.n_heads * max(1, self.emb_dim // self.n_heads)} "
            f"or --n-heads {_largest_divisor(self.emb_dim, self.n_heads)}.",
        )
        require(
            0.0 <= self.drop_rate < 1.0,
            f"drop_rate is {self.drop_rate}, outside [0, 1).",
            "Dropout is the share of activations set to zero: 0.1 is GPT-2's, 0 turns it off.",
        )
        require(
            self.activation in get_args(Activation),
            f"There is no activation {self.activation!r}.",
            nearest(str(self.activation), get_args(Activation)),
        )
        require(
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
        """The preset ``size`` with ``overrides`` applied; an override that is None is ignored."""
        if size not in PRESETS:
            raise GptcliError(f"There is no size {size!r}.", nearest(size, PRESETS))
        return replace(PRESETS[size], **{k: v for k, v in overrides.items() if v is not None})

    def with_changes(self, **overrides: Any) -> "GPTConfig":
        """This config with ``overrides`` applied; an override that is None is ignored."""
        return replace(self, **{k: v for k, v in overrides.items() if v is not None})


def _largest_divisor(number: int, at_most: int) -> int:
    return next(n for n in range(min(number, at_most), 0, -1) if number % n == 0)


# Our field -> the field of Hugging Face's config.json, which has none for qkv_bias.
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


# Table 2.1 of "Language Models are Few-Shot Learners" (Brown et al., 2020); for parameter counts only.
# Two rows are corrected: 13B has emb_dim 5140 there, but 40 heads of 128 make 5120; XL has 24 heads, which do not
# divide 2048 (16 do).
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
