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

    encoding: str | None = text_setting(None, "Of the texts; UTF-8 or their byte-order mark by default.")
    errors: DecodingErrors = text_setting("strict", "Bytes that do not decode: strict, replace or ignore.")
    allow_special: bool = text_setting(False, "Read <|endoftext|> in the text as the token, not as text.")

    def __post_init__(self) -> None:
        check(self)
