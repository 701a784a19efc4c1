"""What a step minimises: modules from inputs and targets to a mean loss, which DDP or FSDP wraps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gptcli.data.dataset import Corpus
from gptcli.data.examples import ExampleSet
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import chunked_cross_entropy, preference_loss, weighted_cross_entropy


class MeanLoss(nn.Module):
    """inputs and targets (B, T) -> the mean loss in nats a target; the module that DDP or FSDP wraps.

    ``seeds`` are dropout's, as `GPTModel.hidden` takes them; ``has_ignored``: whether some targets have no loss;
    ``label_weights``: of a classifier's labels, empty where all weigh the same.
    """

    def __init__(self, model: GPTModel, has_ignored: bool = False, label_weights: Sequence[float] = ()) -> None:
        super().__init__()
        self.model, self.has_ignored = model, has_ignored
        self.label_weights = torch.tensor(label_weights, device=model.device) if label_weights else None

    def forward(self, inputs: Tensor, targets: Tensor, seeds: Tensor | None = None) -> Tensor:
        hidden = self.model.hidden(inputs, seeds=seeds)
        if self.label_weights is not None:
            return weighted_cross_entropy(hidden, self.model.head, targets, self.label_weights)
        return chunked_cross_entropy(hidden, self.model.head, targets, has_ignored=self.has_ignored)


class PreferenceLoss(nn.Module):
    """Pairs as `Pairs.batch` gives them -> the mean loss of direct preference optimization.

    Args:
        model: what is trained.
        reference: (N) float32, of every pair what `preference_loss` takes.
        beta: see `preference_loss`.
    """

    def __init__(self, model: GPTModel, reference: Sequence[float], beta: float) -> None:
        super().__init__()
        self.model, self.beta = model, beta
        self.reference = torch.tensor(reference, device=model.device)

    def forward(self, inputs: Tensor, targets: Tensor, seeds: Tensor | None = None) -> Tensor:
        both = None if seeds is None else seeds.repeat_interleave(2, dim=2)  # a pair's answers lose the same channels
        hidden = self.model.hidden(inputs.flatten(0, 1), seeds=both)
        answers, reference = targets[:, :, :-1].flatten(0, 1), self.reference[targets[:, 0, -1]]
        return preference_loss(hidden, self.model.head, answers, reference, self.beta)


def loss_of(model: GPTModel, corpus: Corpus | ExampleSet) -> nn.Module | None:
    """The loss of training ``model`` on ``corpus``; None for windows."""
    if not isinstance(corpus, ExampleSet):
        return None
    if corpus.beta is not None:
        return PreferenceLoss(model, corpus.reference, corpus.beta)
    return MeanLoss(model, has_ignored=True, label_weights=corpus.label_weights)
