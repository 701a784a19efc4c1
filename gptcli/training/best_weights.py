"""A copy of the weights of a run's best evaluation, which the snapshots write."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gptcli.checkpoints.checkpoint import to_file
from gptcli.device.placement import available_memory
from gptcli.model.gpt import GPTModel

SPARE = 2  # a GPU holds the copy where it has this many times its size free, else main memory does


class BestWeights:
    """The best weights so far, 4 bytes a trained parameter; in every process its own shards.

    Args:
        model: the one that is trained.
    """

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self._kept: dict[str, Tensor] = {}
        self._written = False

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the model's trained weights."""
        weights = self._trained()
        if not self._kept:
            place = self._place(sum(tensor.nbytes for tensor in weights.values()))
            self._kept = {name: torch.empty_like(tensor, device=place) for name, tensor in weights.items()}
        for name, tensor in weights.items():
            self._kept[name].copy_(tensor)
        self._written = False

    def take(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Replace the copy by the tensors of a file; None for nothing."""
        names = self._trained().keys()
        self._kept = {name: tensor.clone() for name, tensor in (tensors or {}).items() if name in names}
        self._written = False

    def unwritten(self) -> dict[str, Tensor]:
        """The copy in the file's form, if it has changed since the last call; every process must call it."""
        if self._written or not self._kept:
            return {}
        self._written = True
        return to_file(self.model, self.model.state_dict() | self._kept)

    def _trained(self) -> dict[str, Tensor]:
        names = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in names}

    def _place(self, size: int) -> torch.device:
        device = self.model.device
        shards = any(hasattr(tensor, "full_tensor") for tensor in self.model.state_dict().values())
        return device if shards or available_memory(device) > SPARE * size else torch.device("cpu")
