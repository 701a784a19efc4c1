"""A copy of the weights of a run's best evaluation, which the snapshots write."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gptcli.checkpoints.checkpoint import in_file_form, to_file
from gptcli.device.placement import available_memory, placed_like
from gptcli.model.gpt import GPTModel
from gptcli.training.distributed import ALONE, World, is_sharded, own_rows

SPARE = 2  # a GPU holds the copy where it has this many times its size free, else main memory does


class BestWeights:
    """The best weights so far, 4 bytes a trained parameter; in every process its own shards.

    Args:
        model: the one that is trained.
        world: the processes that share it.
    """

    def __init__(self, model: GPTModel, world: World = ALONE) -> None:
        self.model, self.world, self._is_sharded = model, world, is_sharded(model)
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
        own, whole = self._trained(), tensors or {}
        self._kept = {}
        for name in (name for name in whole if name in own):
            tensor = whole[name]
            self._kept[name] = (placed_like(tensor, own[name]) if self._is_sharded else tensor).clone()
        self._written = False

    def unwritten(self) -> dict[str, Tensor]:
        """The copy in the file's form, if it has changed since the last call; of shards what this process writes."""
        if self._written or not self._kept:
            return {}
        self._written = True
        weights = self.model.state_dict() | self._kept
        if not self._is_sharded:
            return to_file(self.model, weights)
        return own_rows(in_file_form(self.model.config, weights), self.world)

    def _trained(self) -> dict[str, Tensor]:
        names = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in names}

    def _place(self, size: int) -> torch.device:
        device = self.model.device
        return device if self._is_sharded or available_memory(device) > SPARE * size else torch.device("cpu")
