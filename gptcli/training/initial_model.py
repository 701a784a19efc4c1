"""The model that a run begins with: drawn, from a checkpoint, or a checkpoint with adapters on it."""

from dataclasses import replace
from itertools import chain

import torch

from gptcli.checkpoints.checkpoint import Checkpoint, file_name, in_file_form
from gptcli.checkpoints.safetensors_file import Streamed
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.lora import LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import Init
from gptcli.errors import SettingError
from gptcli.model.gpt import GPTModel
from gptcli.model.initial_values import initial_values
from gptcli.model.lora import add_adapters
from gptcli.model.quantized import packed_base
from gptcli.training import distributed
from gptcli.training.distributed import World
from gptcli.training.trainable import freeze


def initial_model(
    config: GPTConfig,
    init: Init | None,
    seed: int,
    origin: Checkpoint | None,
    finetune: FinetuneConfig | None,
    device: torch.device,
    shared_by: World | None = None,
) -> GPTModel:
    """The model on ``device``, before the first step or before a snapshot's weights are copied into it.

    Args:
        config: its shape.
        init: how to draw the weights; None where a snapshot's will replace them.
        seed: decides what is drawn, adapters included.
        origin: the checkpoint with the weights; None to draw them.
        finetune: says which weights are trained: those of adapters put on ``origin``, or some of its own; the others
            are frozen. None for all.
        device: on a CPU, frozen weights stay where they are, mapped from the file; packed ones stay packed.
        shared_by: the processes of which each holds its rows, which get their values from a snapshot; None: the whole.

    Raises:
        SettingError: a model with frozen weights is not shared.
    """
    trained = finetune.train if finetune is not None else "all"
    if shared_by is not None and trained != "all":
        raise SettingError(
            f"{{shard}} shares out a model of which all weights are trained, but {{train}} is {trained}.",
            "Leave {shard} out: frozen weights take little memory.",
        )
    if shared_by is not None:
        return distributed.shard(_without_values(config), shared_by, device)
    torch.manual_seed(seed)
    adapter = finetune.adapter if finetune is not None else None
    if origin is None or adapter is None:
        model = GPTModel(config, init if origin is None else None)
        if origin is not None:
            model.load_state_dict(origin.tensors)
        freeze(model, trained)
        return model.to(device)
    if origin.arrays is not None and origin.arrays.bits < 32:
        model = packed_base(config, origin.arrays, origin.arrays.bits, device)
    else:
        model = _without_values(config)
        weights = {name: tensor.to(device, torch.float32) for name, tensor in origin.tensors.items()}
        model.load_state_dict(weights, assign=True)
    add_adapters(model, adapter, seed)
    return model


def new_adapter(finetune: FinetuneConfig | None, origin: Checkpoint | None) -> LoRAConfig | None:
    """The adapters that a run trains on ``origin``; None where it trains the model's own weights."""
    if finetune is None or finetune.adapter is None:
        return None
    return replace(finetune.adapter, base_bits=origin.arrays.bits if origin is not None and origin.arrays else 32)


def streamed_weights(config: GPTConfig, init: Init, seed: int, origin: Checkpoint | None) -> Streamed:
    """The weights of `initial_model` in the file's form, each made when it is written."""
    model = _without_values(config)
    own = model.state_dict()
    shapes = {name: tensor.to("meta") for name, tensor in in_file_form(config, own).items()}
    zeros = ((name, torch.zeros(shapes[name].shape)) for name in shapes.keys() - {file_name(config, n) for n in own})
    torch.manual_seed(seed)
    values = iter(origin.tensors.items()) if origin is not None else initial_values(model, config.n_layers, init)
    return Streamed(shapes, chain(((file_name(config, name), value) for name, value in values), zeros))


def _without_values(config: GPTConfig) -> GPTModel:
    with torch.device("meta"):
        return GPTModel(config, init=None)
