"""How texts are generated, beside how a token is drawn: a frozen dataclass, without torch."""

from dataclasses import dataclass

from gptcli.config.fields import check, in_panel, require
from gptcli.config.sampling import Overflow

text = in_panel("Text")


@dataclass(frozen=True)
class GenerationConfig:
    """How many texts of how many tokens, and what happens at their ends.

    Raises:
        SettingError: a value is outside its range, or at least more tokens are asked for than at most.
    """

    max_new_tokens: int = text(100, "Stop after this number of tokens.", also="-n", at_least=1, common=True)
    min_new_tokens: int = text(
        0, "The text does not end before this number of tokens.", at_least=0, hint="0 turns it off."
    )
    num_samples: int = text(1, "How many texts to generate.", at_least=1, common=True)
    seed: int | None = text(None, "Seed of the random numbers; the same seed repeats the text.", common=True)
    ignore_eot: bool = text(False, "Continue after the end-of-text token.")
    raw: bool = text(
        False,
        "Continue the prompt itself. Without it, a fine-tuned checkpoint answers the prompt, in its run's template.",
        common=True,
    )
    overflow: Overflow = text(
        "slide",
        "When the context is full: slide drops the older half, crop one token a step (exact and slow), error refuses.",
    )
    draft: str = text(
        "auto",
        "A draft that proposes the next tokens, for speed. A draft never changes the text, and is refused where it "
        "would (by the torch engine in 16 bits). int8 or int4 (the model itself, packed), ngram, a smaller checkpoint "
        "with the same tokenizer (./int8 if it has such a name), or none; auto is int8 for a long text from a large "
        "float32 model on a CPU.",
        path="name",
    )
    contrast_layer: int | None = text(None, "Score tokens by what the last layer adds to this layer's scores.")

    def __post_init__(self) -> None:
        check(self)
        require(
            self.min_new_tokens <= self.max_new_tokens,
            f"{{min_new_tokens}} {self.min_new_tokens} is more than {{max_new_tokens}} {self.max_new_tokens}.",
            "Raise the one or lower the other.",
        )
