"""Sampling settings: a frozen dataclass, checked on construction, without torch."""

import math
from dataclasses import dataclass
from typing import Literal

from gptcli.config.fields import require

Overflow = Literal["slide", "crop", "error"]


@dataclass(frozen=True)
class SamplingConfig:
    """How logits become a distribution over tokens. Temperature 0 is greedy; a filter that is None is off.

    Raises:
        GptcliError: a value is outside its range (NaN is outside every range).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"--temperature is {self.temperature}, but it must be 0 or more.",
            "0 always takes the likeliest token, 0.7 is calm, 1 is the model as it is, above 1 is wilder.",
        )
        require(
            self.top_k is None or self.top_k >= 1,
            f"--top-k is {self.top_k}, but at least 1 token must remain to choose from.",
            "Give a whole number of at least 1, or leave --top-k out to keep every token.",
        )
        require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"--top-p is {self.top_p}, outside (0, 1].",
            "0.9 keeps the likeliest tokens that make up 90% of the probability; 1 keeps all.",
        )
        require(
            self.min_p is None or 0 <= self.min_p <= 1,
            f"--min-p is {self.min_p}, outside [0, 1].",
            "0.05 keeps the tokens that are at least a twentieth as likely as the likeliest.",
        )
        require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            f"--repetition-penalty is {self.repetition_penalty}, but it must be greater than 0.",
            "1 is off, 1.1 to 1.3 makes repeats rarer.",
        )
