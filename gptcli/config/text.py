"""How texts are read: a frozen dataclass, checked on construction, without torch."""

from dataclasses import dataclass
from typing import Literal

from gptcli.config.fields import check, in_panel

DecodingErrors = Literal["strict", "replace", "ignore"]
text_setting = in_panel("Text")


@dataclass(frozen=True)
class TextConfig:
    """How the bytes of texts become characters, and characters tokens.

    Raises:
        SettingError: ``errors`` is none of its choices.
    """

    encoding: str | None = text_setting(None, "Encoding of the texts; UTF-8 or their byte-order mark by default.")
    errors: DecodingErrors = text_setting(
        "strict", "Treatment of bytes that do not decode: strict (an error), replace or ignore."
    )
    allow_special: bool = text_setting(False, "Read <|endoftext|> in the text as the token, not as text.")

    def __post_init__(self) -> None:
        check(self)


preparing = in_panel("Preparing")


@dataclass(frozen=True)
class PrepareConfig:
    """How texts become token shards. `shard_tokens` None: 2^25; `workers` None: all cores.

    Raises:
        SettingError: a value is outside its range.
    """

    tokenizer: str = preparing(
        "gpt2",
        "gpt2, char, byte, word; bpe:N: train one of N tokens; or a directory that holds one.",
        common=True,
    )
    train_share: float = preparing(
        0.9, "Share of the characters that bpe:N is trained on.", above=0, at_most=1, hint="0.9 is the default."
    )
    field: str | None = preparing(
        None, "The files are JSON Lines, and this field of every line is a text of its own.", common=True
    )
    shard_tokens: int | None = preparing(None, "Tokens a shard (2^25 by default).")
    workers: int | None = preparing(
        None, "Threads that encode; all cores by default.", at_least=1, hint="Leave it out for all cores."
    )

    def __post_init__(self) -> None:
        check(self)
