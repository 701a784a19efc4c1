"""The model that a run begins with: drawn, from a checkpoint, or a checkpoint with adapters on it."""

import torch

from gptcli.checkpoints.checkpoint import Checkpoint
from gptcli.config.lora import LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import Init
from gptcli.model.gpt import GPTModel
from gptcli.model.lora import add_adapters
from gptcli.model.quantized import packed_base


def initial_model(
    config: GPTConfig,
    init: Init | None,
    seed: int,
    origin: Checkpoint | None,
    adapter: LoRAConfig | None,
    device: torch.device,
) -> GPTModel:
    """The model on ``device``, before the first step or before a snapshot's weights are copied into it.

    Args:
        config: its shape.
        init: how to draw the weights; None where a snapshot's will replace them.
        seed: decides what is drawn, adapters included.
        origin: the checkpoint with the weights; None to draw them.
        adapter: the adapters to put on ``origin``, whose weights are then frozen; None for none.
        device: on a CPU, frozen weights stay where they are, mapped from the file; packed ones stay packed.
    """
    torch.manual_seed(seed)
    if origin is None:
        return GPTModel(config, init).to(device)
    if adapter is None:
        model = GPTModel(config, init=None)
        model.load_state_dict(origin.tensors)
        return model.to(device)
    if origin.arrays is not None and origin.arrays.bits < 32:
        model = packed_base(config, origin.arrays, origin.arrays.bits, device)
    else:
        with torch.device("meta"):
            model = GPTModel(config, init=None)
        weights = {name: tensor.to(device, torch.float32) for name, tensor in origin.tensors.items()}
        model.load_state_dict(weights, assign=True)
    add_adapters(model, adapter, seed)
    return model
