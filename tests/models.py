"""Small models and checkpoints that tests share."""

from pathlib import Path
from typing import Any

import torch

from gptcli.config.model import GPTConfig
from gptcli.model.gpt import GPTModel


def tiny_config(**changes: Any) -> GPTConfig:
    """Odd sizes on purpose: nothing divides anything that it need not."""
    sizes = {"vocab_size": 61, "context_length": 20, "emb_dim": 42, "n_heads": 3, "n_layers": 2, "drop_rate": 0.0}
    return GPTConfig(**(sizes | changes))


def tiny_model(seed: int = 0, spread: float = 0.15, **changes: Any) -> GPTModel:
    """A random model whose biases and norms are not at their neutral values, and whose logits differ clearly."""
    torch.manual_seed(seed)
    model = GPTModel(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def tiny_checkpoint(path: Path, kind: str = "byte", text: str = "", seed: int = 0, **changes: Any) -> Path:
    """A checkpoint directory of a random tiny model."""
    from gptcli import tokenizers
    from gptcli.checkpoints import checkpoint

    tokenizer = tokenizers.build(kind, text)
    model = tiny_model(seed, vocab_size=tokenizer.vocab_size, **changes)
    checkpoint.create(path, model, tokenizer, {})
    return path


def tiny_adapter(path: Path, base: Path, rank: int = 3, labels: tuple[str, ...] = (), **settings: Any) -> GPTModel:
    """An adapter directory on the checkpoint ``base``, none of whose factors is 0; the unmerged model."""
    from gptcli.checkpoints import checkpoint
    from gptcli.checkpoints.adapters import Base, NewAdapter
    from gptcli.config.lora import LoRAConfig
    from gptcli.model.lora import add_adapters

    loaded, config = checkpoint.load(base), LoRAConfig(rank, **settings)
    loaded = loaded.as_classifier(labels, seed=1) if labels else loaded
    model = loaded.model()
    add_adapters(model, config, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    tensors, adapter = checkpoint.to_file(model), NewAdapter(config, Base.of(base))
    checkpoint.create_from(path, loaded.config, tensors, loaded.tokenizer, {}, adapter=adapter)
    return model
