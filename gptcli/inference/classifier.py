"""A classifier and its texts: read in batches of similar length, each text at its last token."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gptcli.checkpoints import adapters, checkpoint, layout
from gptcli.checkpoints.classifier import text_ids
from gptcli.config.compute import ComputeConfig
from gptcli.device import placement
from gptcli.errors import GptcliError
from gptcli.inference.calibration import probabilities
from gptcli.inference.sampling import not_finite
from gptcli.model.gpt import GPTModel

BATCH_TOKENS = 4_096  # that a forward pass reads
POOL = 2_048  # texts that are sorted by length together, and held


@dataclass(frozen=True)
class Classification:
    """What a classifier says of a text.

    Attributes:
        label: the likeliest one.
        probability: of ``label``.
        probabilities: of every label, in the classifier's order; they add up to 1.
        tokens: how many were read.
        cut: whether the text has more tokens than the classifier's context.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    tokens: int
    cut: bool


class Classifier:
    """An opened classifier.

    Args:
        path: a checkpoint that was fine-tuned on labels; of an adapter of gptcli's, its base is found.
        adapter: a low-rank adapter for ``path``, which then may be the language model that it was trained on.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:N" or "mps".
        dtype: of weights and activations.
        threads: CPU threads; None for the physical cores.

    Attributes:
        labels: in the order of the logits.
        temperature: what logits are divided by before softmax.
        is_calibrated: whether it was fitted, on the run's validation part; else it is 1.

    Raises:
        GptcliError: there is no such checkpoint, or it is damaged or a language model; or there is no such device.

    Example:
        >>> import gptcli
        >>> classifier = gptcli.Classifier("animals", device="cpu")
        >>> classifier.labels
        ('cat', 'dog')
        >>> found = classifier.classify(["the cat", "the dog sat"])
        >>> len(found), sorted(found[0].probabilities), found[1].tokens
        (2, ['cat', 'dog'], 11)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
        threads: int | None = None,
    ) -> None:
        found = layout.find(os.fspath(path))
        its_adapter = None if adapter is None else layout.find(os.fspath(adapter))
        require_classifier(adapters.described_by(found, its_adapter))
        placed = placement.place(ComputeConfig(device, dtype, threads))
        loaded = checkpoint.load(found, its_adapter)
        self.path = loaded.path
        self.config, self.tokenizer, self.labels = loaded.config, loaded.tokenizer, loaded.config.labels
        fitted = loaded.training.get("calibration")
        self.is_calibrated = fitted is not None
        self.temperature = float(fitted["temperature"]) if fitted is not None else 1.0
        self.model = loaded.runner(placed.device, placed.dtype)

    def classify(self, texts: Iterable[str]) -> list[Classification]:
        """The label of every text, and the probabilities of all labels.

        Args:
            texts: any; of a text with more tokens than the context its first ones are read.

        Raises:
            GptcliError: a text is empty, or has a character that the tokenizer does not know; with its number.
        """
        if isinstance(texts, str):
            raise GptcliError("texts is one text, not a sequence of texts.", "Give [text].")
        return list(self.stream(_numbered(texts)))

    def stream(
        self, texts: Iterable[tuple[str, str]], advance: Callable[[int], object] = lambda texts: None
    ) -> Iterator[Classification]:
        """As `classify`, at most `POOL` texts in memory.

        Args:
            texts: for each a place, which begins the message of an error, and the text.
            advance: called with the number of texts read since its last call.
        """
        remaining = iter(texts)
        while pool := list(islice(remaining, POOL)):
            read = [self.ids(place, text) for place, text in pool]
            logits = label_logits(self.model, [ids for ids, _ in read], advance)
            for (ids, cut), row in zip(read, probabilities(logits, self.temperature).tolist(), strict=True):
                best = max(range(len(row)), key=row.__getitem__)
                yield Classification(
                    self.labels[best], row[best], dict(zip(self.labels, row, strict=True)), len(ids), cut
                )

    def ids(self, place: str, text: str) -> tuple[list[int], bool]:
        """As `text_ids`; the message of an error begins with ``place``."""
        try:
            return text_ids(text, self.tokenizer, self.config.context_length)
        except GptcliError as error:
            raise GptcliError(f"{place}: {error.message}" if place else error.message, error.hint) from error


def require_classifier(path: Path) -> None:
    """Raise GptcliError if the checkpoint ``path`` is a language model, which has no labels."""
    if not layout.read_config(path)[0].labels:
        raise GptcliError(
            f"{path} is a language model: it has no labels.",
            f"Fine-tune it on labels: gptcli finetune ROWS --init-from {path} --out RUN",
        )


@torch.inference_mode()
def label_logits(
    model: GPTModel, texts: Sequence[Sequence[int]], advance: Callable[[int], object] = lambda texts: None
) -> Tensor:
    """Logits (n, labels) float32, on the CPU, of n texts.

    Texts of similar length are read together, in batches of at most `BATCH_TOKENS` tokens; they are padded on the
    right, which causal attention hides from the tokens before.

    Args:
        model: a classifier in eval mode.
        texts: the tokens of each, at least one and at most the context.
        advance: called with the number of texts after each batch.

    Raises:
        GptcliError: a logit is NaN or infinite.
    """
    found = torch.empty(len(texts), model.config.n_outputs)
    longest_first = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    while longest_first:
        length = len(texts[longest_first[0]])
        size = max(1, BATCH_TOKENS // length)
        batch, longest_first = longest_first[:size], longest_first[size:]
        inputs = torch.zeros(len(batch), length, dtype=torch.int64)
        for row, number in zip(inputs, batch, strict=True):
            row[: len(texts[number])] = torch.tensor(texts[number])
        last = torch.tensor([len(texts[number]) - 1 for number in batch])
        hidden = model.hidden(inputs.to(model.device))  # (B, T, C)
        found[batch] = model.logits(hidden[torch.arange(len(batch)), last]).float().cpu()
        advance(len(batch))
    if not bool(found.isfinite().all()):
        raise not_finite()
    return found


def _numbered(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(texts):
        yield f"Text {number}", text
