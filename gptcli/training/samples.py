"""What a run says while it trains, and what to ask it when it has ended."""

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
    """The prompt's ids; the text's own beginning, and ``report`` is told, where its vocabulary has no such letters."""
    try:
        return list(tokenizer.encode(prompt))
    except GptcliError as error:
        ids = corpus.beginning(8)
        report(f"{error.message} Samples continue {tokenizer.decode(ids)!r} instead.")
        return ids


def known_prompt(prompt: str, tokenizer: Tokenizer, corpus: Corpus) -> str:
    """The prompt, or a word of the text's own beginning where its vocabulary has no such letters."""
    try:
        if tokenizer.encode(prompt):
            return prompt
    except GptcliError:
        pass
    beginning = tokenizer.decode(corpus.beginning(64))
    return next((word for word in beginning.split() if not word.startswith("-")), beginning)


def sample(model: GPTModel, ids: list[int], tokenizer: Tokenizer, seed: int) -> str:
    """The greedy continuation of ``ids``, and they before it, on one line; or why there is none."""
    tokens = generate(
        model, ids, max_new_tokens=TOKENS, sampling=SamplingConfig(temperature=0.0), seed=seed,
        eot_id=tokenizer.eot_id, drafter=NgramDrafter(),  # young models repeat themselves
        drawable=Drawable.of(tokenizer),
    )  # fmt: skip
    try:
        return " ".join(tokenizer.decode([*ids, *(token.id for token in tokens)]).split())
    except GptcliError as error:  # whether the run goes on is not for a sample to decide
        return f"No sample: {error.message}"
