"""Which weights of a model are trained; the others are frozen: they get no gradient and no optimizer state."""

from gptcli.config.model import GPTConfig
from gptcli.errors import SettingError
from gptcli.model.gpt import GPTModel

HEADS = ("lm_head.", "score.")


def check(config: GPTConfig, trained: str) -> None:
    """Check that a model of this shape has the weights that ``trained`` names; see `freeze`.

    Raises:
        SettingError: it has fewer blocks, or no head of its own to train alone.
    """
    if trained == "head" and config.embedding_is_head:
        raise SettingError(
            "{train} is head, but the model's head is its token embedding as well.",
            "Give last:1: the last block and the last norm.",
        )
    if trained.startswith("last:") and int(trained.removeprefix("last:")) > config.n_layers:
        raise SettingError(
            f"{{train}} is {trained}, but the model has {config.n_layers} blocks.",
            f"Give last:{config.n_layers}, or all.",
        )


def freeze(model: GPTModel, trained: str) -> None:
    """Freeze all weights but those that ``trained`` names.

    Args:
        model: any.
        trained: "all"; "head"; or "last:N", the last N blocks, the last norm and the head. A head that is the token
            embedding as well stays frozen.
    """
    if trained == "all":
        return
    names = [*HEADS]
    if trained.startswith("last:"):
        first = len(model.h) - int(trained.removeprefix("last:"))
        names += ["ln_f.", *(f"h.{layer}." for layer in range(first, len(model.h)))]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(names)))
