"""Sampling settings: a frozen dataclass, checked on construction, without torch."""

from dataclasses import dataclass
from typing import Literal

from gptcli.config.fields import check, in_panel

Overflow = Literal["slide", "crop", "error"]
sampling_setting = in_panel("Sampling")


@dataclass(frozen=True)
class SamplingConfig:
    """How logits become a distribution over tokens. Temperature 0 is greedy; a filter that is None is off.

    Raises:
        SettingError: a value is outside its range (NaN is outside every range).
    """

    temperature: float = sampling_setting(
        1.0, "0 is greedy; 1 takes the model's probabilities.", also="-t", at_least=0, common=True,
        hint="0 always takes the likeliest token, 0.7 favours likely tokens, 1 takes the model's probabilities.",
    )  # fmt: skip
    top_k: int | None = sampling_setting(
        None, "Choose among the k likeliest tokens.", at_least=1, common=True,
        hint="Give a whole number of at least 1, or leave {top_k} out to keep every token.",
    )  # fmt: skip
    top_p: float | None = sampling_setting(
        None, "Choose among the likeliest tokens with this share of the probability.", above=0, at_most=1, common=True,
        hint="0.9 keeps the likeliest tokens that make up 90% of the probability; 1 keeps all.",
    )  # fmt: skip
    min_p: float | None = sampling_setting(
        None, "Choose among tokens with this share of the likeliest one's probability.", at_least=0, at_most=1,
        hint="0.05 keeps the tokens that are at least a twentieth as likely as the likeliest.",
    )  # fmt: skip
    repetition_penalty: float = sampling_setting(
        1.0, "Above 1 makes repeats rarer; 1 is off.", above=0, hint="1 is off, 1.1 to 1.3 makes repeats rarer."
    )
    frequency_penalty: float = sampling_setting(
        0.0, "Subtract this from a token's logit for every time that it was drawn; 0 is off.",
        hint="0 is off, 0.1 to 1 makes repeats rarer, below 0 makes them more frequent.",
    )  # fmt: skip
    presence_penalty: float = sampling_setting(
        0.0, "Subtract this from the logit of every token that was drawn; 0 is off.",
        hint="0 is off, 0.1 to 1 makes repeats rarer, below 0 makes them more frequent.",
    )  # fmt: skip
    no_repeat_ngram_size: int | None = sampling_setting(
        None, "Never repeat this number of tokens in a row, of the prompt or the text.", at_least=1,
        hint="3 forbids three tokens in a row that the text holds already; leave {no_repeat_ngram_size} out to allow "
        "all.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
