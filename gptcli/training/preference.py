"""What preferences are measured against: the model that their training begins with."""

from dataclasses import replace
from typing import Any

import torch

from gptcli.data.dataset import Corpus
from gptcli.data.examples import ExampleSet, Pairs
from gptcli.device.placement import sent
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import log_probabilities


def with_reference(model: GPTModel, corpus: Corpus | ExampleSet, source: dict[str, Any]) -> Corpus | ExampleSet:
    """``corpus``, with the reference of its pairs, if it has pairs; else as it is.

    Args:
        model: of a new run, with the weights that training begins with.
        corpus: what the run trains on.
        source: the facts that snapshots store; the reference is added, and taken from there when a run is resumed.
    """
    if not isinstance(corpus, ExampleSet) or corpus.beta is None:
        return corpus
    if "reference" not in source:
        parts = [part for part in (corpus.train, corpus.validation) if isinstance(part, Pairs)]
        source["reference"] = [ratio for part in parts for ratio in _ratios(model, part)]
    return replace(corpus, reference=tuple(source["reference"]))


@torch.no_grad()
def _ratios(model: GPTModel, pairs: Pairs) -> list[float]:
    """Of each pair log p(chosen) - log p(rejected), in nats, without dropout."""
    was_training = model.training
    model.eval()
    found = [0.0] * len(pairs)
    order = pairs.by_length()
    for start in range(0, len(order), pairs.batch_size):
        numbers = order[start : start + pairs.batch_size]
        inputs, targets = (sent(part, model.device) for part in pairs.batch(numbers))
        hidden = model.hidden(inputs.flatten(0, 1))
        chosen, rejected = log_probabilities(hidden, model.head, targets[:, :, :-1].flatten(0, 1)).view(-1, 2).unbind(1)
        for number, ratio in zip(numbers, (chosen - rejected).tolist(), strict=True):
            found[number] = ratio
    model.train(was_training)
    return found
