"""The sample texts that a run generates while it trains, and a prompt for the command shown at its end."""

from collections.abc import Callable

from gptcli.config.sampling import SamplingConfig
from gptcli.data.dataset import Corpus
from gptcli.errors import GptcliError
from gptcli.inference.generation import generate
from gptcli.inference.sampling import Drawable
from gptcli.inference.speculative import NgramDrafter
from gptcli.model.gpt import GPTModel
from gptcli.tokenizers import Tokenizer

TOKENS = 50


def prompt_ids(prompt: str, tokenizer: Tokenizer, corpus: Corpus, report: Callable[[str], None]) -> list[int]:
    """The ids of ``prompt``; the text's first 8 tokens, and a line to ``report``, where it cannot be encoded."""
    try:
        return list(tokenizer.encode(prompt))
    except GptcliError as error:
        ids = corpus.beginning(8)
        report(f"{error.message} Samples continue {tokenizer.decode(ids)!r} instead.")
        return ids


def known_prompt(prompt: str, tokenizer: Tokenizer, corpus: Corpus) -> str:
    """``prompt``, or a word of the text's first 64 tokens where the tokenizer cannot encode ``prompt``."""
    try:
        if tokenizer.encode(prompt):
            return prompt
    except GptcliError:
        pass
    beginning = tokenizer.decode(corpus.beginning(64))
    return next((word for word in beginning.split() if not word.startswith("-")), beginning)


def sample(model: GPTModel, ids: list[int], tokenizer: Tokenizer, seed: int) -> str:
    """``ids`` and their greedy continuation as text, on one line; or the reason why it cannot be decoded."""
    tokens = generate(
        model, ids, max_new_tokens=TOKENS, sampling=SamplingConfig(temperature=0.0), seed=seed,
        eot_id=tokenizer.eot_id, drafter=NgramDrafter(),  # early models repeat n-grams
        drawable=Drawable.of(tokenizer),
    )  # fmt: skip
    try:
        return " ".join(tokenizer.decode([*ids, *(token.id for token in tokens)]).split())
    except GptcliError as error:  # a sample that cannot be decoded must not end the run
        return f"No sample: {error.message}"
