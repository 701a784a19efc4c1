"""The sample texts that a run generates while it trains, and a prompt for the command shown at its end."""

from collections.abc import Callable

from gptcli.config.sampling import SamplingConfig
from gptcli.data.dataset import Corpus
from gptcli.data.examples import ExampleSet
from gptcli.errors import GptcliError
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Scorer
from gptcli.inference.sampling import Drawable
from gptcli.inference.sequence import Request
from gptcli.inference.speculative import NgramDrafter
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model.gpt import GPTModel
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.template import stored
from gptcli.training.events import EpochEnded, Event

TOKENS = 50


def prompt_ids(
    prompt: str, tokenizer: Tokenizer, corpus: Corpus | ExampleSet, report: Callable[[str], None]
) -> list[int]:
    """The ids of ``prompt``; the text's first 8 tokens, and a line to ``report``, where it cannot be encoded.

    A model with a template reads the prompt through it, and an empty prompt stands for that of an example.
    """
    try:
        template = stored(tokenizer)
        if isinstance(corpus, ExampleSet) and not prompt:
            prompt = corpus.prompt
            if not prompt:
                return corpus.beginning(8)
        if template is not None:
            return tokenizer.encode(template.wrap(prompt), allow_special=True)
        return list(tokenizer.encode(prompt))
    except GptcliError as error:
        ids = corpus.beginning(8)
        report(f"{error.message} Samples continue {tokenizer.decode(ids)!r} instead.")
        return ids


def known_prompt(prompt: str, tokenizer: Tokenizer, corpus: Corpus | ExampleSet) -> str:
    """``prompt``, or that of an example; or a word of the text's first 64 tokens where they cannot be encoded."""
    if isinstance(corpus, ExampleSet) and corpus.prompt:
        return corpus.prompt
    try:
        if tokenizer.encode(prompt):
            return prompt
    except GptcliError:
        pass
    beginning = tokenizer.decode(corpus.beginning(64))
    return next((word for word in beginning.split() if not word.startswith("-")), beginning)


class Sampler:
    """The model's greedy continuation of a prompt at the end of every so many epochs.

    Args:
        model: in train mode between two events; a sample leaves it and the random numbers of training as they are.
        tokenizer: of ``ids``.
        ids: the prompt.
        every: epochs from one sample to the next.
        seed: of the decoder.
        show: called with each text, on one line.
    """

    name = "The samples"

    def __init__(
        self, model: GPTModel, tokenizer: Tokenizer, ids: list[int], every: int, seed: int, show: Callable[[str], None]
    ) -> None:
        self.model, self.tokenizer, self.ids, self.every, self.seed, self.show = (
            model,
            tokenizer,
            ids,
            every,
            seed,
            show,
        )

    def start(self) -> None:
        pass

    def on(self, event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch % self.every == 0:
            self.show(self.sample())

    def end(self) -> None:
        pass

    def sample(self) -> str:
        """The prompt and its continuation, on one line; or the reason why it cannot be decoded."""
        capacity = min(len(self.ids) + TOKENS, self.model.config.context_length)
        request = Request(self.ids, TOKENS, SamplingConfig(temperature=0.0), self.seed, eot_id=self.tokenizer.eot_id)
        self.model.eval()
        try:
            scorer = Scorer(TorchEngine(self.model, capacity, capture=False), Drawable.of(self.tokenizer))
            drafter = NgramDrafter() if scorer.engine.verifies else None  # early models repeat n-grams
            tokens = list(generate(Scheduler(scorer, drafter), request))
            return " ".join(self.tokenizer.decode([*self.ids, *(token.id for token in tokens)]).split())
        except GptcliError as error:  # no finite logits, or bytes that are no text: the next sample may be one
            return f"No sample: {error.message}"
        finally:
            self.model.train()
