"""The settings of a continuation as keyword arguments, and its result."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from random import SystemRandom
from typing import Any, TypedDict, cast

from gptcli.config.generation import GenerationConfig
from gptcli.config.sampling import Overflow, SamplingConfig
from gptcli.errors import GptcliError, SettingError, nearest
from gptcli.inference import streaming
from gptcli.inference.streaming import FinishReason

Prompt = str | Sequence[int]


class Settings(TypedDict, total=False):
    """How to continue a prompt; the defaults are those of ``gptcli generate``.

    Attributes:
        max_new_tokens: the most tokens to generate, at least 1; 100.
        min_new_tokens: no end of text before so many tokens; 0.
        temperature: divides the logits; 0 is greedy, 1 the model as it is; 0.8.
        top_k: draw among the k likeliest tokens; None, off.
        top_p: draw among the likeliest tokens that make up this probability, in (0, 1]; None, off.
        min_p: draw among the tokens at least this share as likely as the likeliest, in [0, 1]; None, off.
        repetition_penalty: above 1 makes tokens of the text rarer; 1.0, off.
        frequency_penalty: subtract this from a token's logit for every time that it was drawn; 0.0, off.
        presence_penalty: subtract this from the logit of every token that was drawn; 0.0, off.
        no_repeat_ngram_size: never repeat so many tokens in a row; None, off.
        contrast_layer: subtract the scores of this layer's early exit, from 1; None, off.
        draft: what proposes the next tokens, for speed; it never changes the text: "auto", "none", "ngram", "int8",
            "int4" or a checkpoint with the same tokenizer; "auto".
        seed: of the random numbers: same seed, same text; None, a random one.
        stop: end before this text, or before the first of several; ().
        ignore_eot: continue past the end-of-text token; False.
        raw: continue a text itself, where a fine-tuned checkpoint else answers it, through the template that it was
            taught with; token ids are always continued; False.
        allow_special: read <|endoftext|> in the prompt as the token; False.
        overflow: with a full context, "slide" drops the older half, "crop" one token a step, "error" raises; "slide".
        candidates: how many of the likeliest tokens to report with each token; 0.
    """

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    no_repeat_ngram_size: int | None
    contrast_layer: int | None
    draft: str
    seed: int | None
    stop: str | Sequence[str]
    ignore_eot: bool
    raw: bool
    allow_special: bool
    overflow: Overflow
    candidates: int


_GENERATION = [field for field in fields(GenerationConfig) if field.name != "num_samples"]
_DEFAULTS: dict[str, Any] = {
    **{field.name: field.default for field in (*fields(SamplingConfig), *_GENERATION)},
    **{"temperature": 0.8, "stop": (), "allow_special": False, "candidates": 0},
}


@dataclass(frozen=True)
class Completion:
    """The continuation of a prompt.

    Attributes:
        text: the new text, without the prompt and without a stop text.
        ids: the new token ids, those of a stop text included; the end-of-text id is not among them.
        probabilities: of each token in ``ids``, its probability in the distribution that it was drawn from; 1.0 for
            each with temperature 0.
        finish_reason: "length" (max_new_tokens), "end of text" or "stop".
        seed: the seed that generates this text again.
        candidates: for each token in ``ids``, the (id, probability) of the likeliest, likeliest first; as many as the
            setting ``candidates`` asked for.
    """

    text: str
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    finish_reason: FinishReason
    seed: int
    candidates: tuple[tuple[tuple[int, float], ...], ...] = ()

    def __str__(self) -> str:
        return self.text


def with_defaults(settings: Settings) -> Settings:
    """``settings`` with all that is missing, a seed included.

    Raises:
        GptcliError: there is no such setting, or its value is out of range; the sampling's are checked elsewhere.
    """
    for name in settings:
        if name not in _DEFAULTS:
            raise GptcliError(f"There is no setting {name!r}.", nearest(name, _DEFAULTS))
    values = cast(Settings, {**_DEFAULTS, **settings})
    given: dict[str, Any] = {**values}
    GenerationConfig(**{field.name: given[field.name] for field in _GENERATION})
    if values["candidates"] < 0:
        raise SettingError(f"{{candidates}} is {values['candidates']}, but it cannot be negative.", "Leave it out.")
    if values["seed"] is None:
        values["seed"] = SystemRandom().randrange(2**31)
    return values


def stop_texts(values: Settings) -> tuple[str, ...]:
    """The texts to end before, without empty ones."""
    stop = values["stop"]
    return tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text)


def completion_of(text: streaming.TextStream) -> Completion:
    """The result of a text that has ended."""
    tokens = text.tokens
    return Completion(
        text.text,
        tuple(token.id for token in tokens),
        tuple(token.probability for token in tokens),
        text.finish_reason,
        text.request.seed,
        tuple(token.candidates for token in tokens),
    )
