"""The shape of a model: a frozen dataclass, checked on construction, without torch."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from gptcli.config.fields import check, in_panel, like, require
from gptcli.errors import SettingError, nearest

Activation = Literal["gelu_new", "gelu", "relu"]
model_setting = in_panel("Model")


def up_to(largest: int) -> dict[str, int]:
    """The range of a size: at most far more than any model has, so that no file's makes a product overflow."""
    return {"at_least": 1, "at_most": largest}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2-class model, with the course's field names. The defaults are GPT-2 small.

    The last five settings are for variants in other GPT-2 checkpoints: the width of the feed-forward layer (None:
    4 · emb_dim), its activation (gelu_new is the tanh approximation), the epsilon of the layer norms, whether attention
    scores are divided by √head_dim, and whether they are also divided by the layer's number, counted from 1.

    Attributes:
        labels: the classes of a classifier, in the order of its logits; empty for a language model. A classifier has
            an output head of its own, whatever ``tie_weights`` says.

    Raises:
        SettingError: a size is out of its range, emb_dim is not divisible by n_heads, drop_rate is outside [0, 1), the
            activation is unknown, layer_norm_eps is outside (0, 1), labels are one, equal, empty or no texts.
    """

    vocab_size: int = model_setting(50_257, "Entries of the vocabulary.", **up_to(100_000_000))
    context_length: int = model_setting(1_024, "Tokens that the model reads at once.", common=True, **up_to(10_000_000))
    emb_dim: int = model_setting(768, "Width of the residual stream.", **up_to(100_000))
    n_heads: int = model_setting(12, "Attention heads in a block.", **up_to(10_000))
    n_layers: int = model_setting(12, "Transformer blocks.", **up_to(10_000))
    drop_rate: float = model_setting(
        0.1, "Dropout rate.", at_least=0, below=1,
        hint="Dropout is the share of activations set to zero: 0.1 is GPT-2's, 0 turns it off.",
    )  # fmt: skip
    qkv_bias: bool = model_setting(True, "A bias on queries, keys and values.")
    tie_weights: bool = model_setting(True, "Use the token embedding as the output head.")
    ffn_dim: int | None = model_setting(
        None, "Width of the feed-forward layer; 4 times {emb_dim} by default.", **up_to(1_000_000)
    )
    activation: Activation = model_setting("gelu_new", "Activation of the feed-forward layer: gelu_new, gelu or relu.")
    layer_norm_eps: float = model_setting(
        1e-5, "Epsilon of the layer norms.", above=0, below=1, hint="GPT-2's is 1e-5."
    )
    scale_attn: bool = model_setting(True, "Divide attention scores by the root of a head's width.")
    scale_attn_by_layer: bool = model_setting(False, "Divide attention scores by the layer's number as well.")
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        self._check_labels()
        require(
            self.emb_dim % self.n_heads == 0,
            f"{{emb_dim}} {self.emb_dim} is not divisible by {{n_heads}} {self.n_heads}.",
            "Every head takes an equal share: try "
            f"{{emb_dim}} {self.n_heads * max(1, self.emb_dim // self.n_heads)} "
            f"or {{n_heads}} {_largest_divisor(self.emb_dim, self.n_heads)}.",
        )

    @property
    def hidden_dim(self) -> int:
        """F, the width of the feed-forward layer."""
        return 4 * self.emb_dim if self.ffn_dim is None else self.ffn_dim

    @property
    def head_dim(self) -> int:
        """D, the width of one attention head."""
        return self.emb_dim // self.n_heads

    @property
    def n_outputs(self) -> int:
        """Width of the logits: the number of labels, or V."""
        return len(self.labels) or self.vocab_size

    @property
    def embedding_is_head(self) -> bool:
        """Whether the token embedding is the output head as well."""
        return self.tie_weights and not self.labels

    @classmethod
    def preset(cls, size: str, **overrides: Any) -> "GPTConfig":
        """The preset ``size`` with ``overrides`` applied; an override that is None is ignored."""
        if size not in PRESETS:
            raise SettingError(f"There is no {{size}} {size!r}.", nearest(size, PRESETS))
        return replace(PRESETS[size], **{k: v for k, v in overrides.items() if v is not None})

    def with_changes(self, **overrides: Any) -> "GPTConfig":
        """This config with ``overrides`` applied; an override that is None is ignored."""
        return replace(self, **{k: v for k, v in overrides.items() if v is not None})

    def _check_labels(self) -> None:
        labels: Any = self.labels
        texts = isinstance(labels, list | tuple) and all(isinstance(label, str) and label for label in labels)
        require(texts, f"{{labels}} is {labels!r:.80}, but it must be a list of texts.", "Give every label a name.")
        object.__setattr__(self, "labels", tuple(labels))  # JSON has a list
        twice = len(set(labels)) < len(labels)
        require(not twice, f"{{labels}} has a label twice: {labels!r:.80}.", "Name every label once.")
        hint = "A classifier chooses between at least 2; leave it out for a language model."
        require(len(labels) != 1, f"{{labels}} has only {labels!r:.80}.", hint)


@dataclass(frozen=True)
class ShapeChanges:
    """What training changes of a preset's or a checkpoint's shape; None: the value that help shows."""

    context_length: int | None = like(GPTConfig, "context_length", shown_default="256")
    emb_dim: int | None = like(GPTConfig, "emb_dim", shown_default="the preset's")
    n_heads: int | None = like(GPTConfig, "n_heads", shown_default="the preset's")
    n_layers: int | None = like(GPTConfig, "n_layers", shown_default="the preset's")
    drop_rate: float | None = like(GPTConfig, "drop_rate", shown_default="0.1")
    qkv_bias: bool | None = like(GPTConfig, "qkv_bias", shown_default="off")
    tie_weights: bool | None = like(GPTConfig, "tie_weights", shown_default="off")
    ffn_dim: int | None = like(GPTConfig, "ffn_dim")
    activation: Activation | None = like(GPTConfig, "activation", shown_default="gelu_new")
    layer_norm_eps: float | None = like(GPTConfig, "layer_norm_eps", shown_default="1e-5")
    scale_attn: bool | None = like(GPTConfig, "scale_attn", shown_default="on")
    scale_attn_by_layer: bool | None = like(GPTConfig, "scale_attn_by_layer", shown_default="off")

    def __post_init__(self) -> None:
        check(self)


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


# Peak learning rates that suit them: from medium on GPT-3's (table 2.1, as below), for small the course's.
PRESET_RATES = {"tiny": 2e-3, "mini": 1e-3, "small": 5e-4, "medium": 3e-4, "large": 2.5e-4, "xl": 2e-4}


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
