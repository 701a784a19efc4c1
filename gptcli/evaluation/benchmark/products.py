"""The libraries that can multiply two matrices on a device, for the limit of `bench`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptcli.device.resources import usable_cpus


def libraries(square: Tensor) -> dict[str, Callable[[], Any]]:
    """A product of ``square`` (n, n) with itself by each library that has its dtype, by the library's name.

    On a GPU torch's own product is the only one. On a CPU torch brings two libraries and numpy a third one, whose
    number of threads cannot be set here: it is left out where torch uses fewer threads than there are processors.
    """
    if square.device.type != "cpu":
        return {"torch": lambda: square @ square}
    found: dict[str, Callable[[], Any]] = {"torch's default": lambda: square @ square}
    linear = _onednn(square)
    if linear is not None:
        found["oneDNN"] = linear
    if square.dtype == torch.float32 and torch.get_num_threads() >= usable_cpus():
        array = square.numpy()
        found["numpy"] = lambda: array @ array
    return found


def _onednn(square: Tensor) -> Callable[[], Any] | None:
    """The product by oneDNN, through an operation of torch that is not public; None where torch has none."""
    try:
        linear = torch.ops.mkldnn._linear_pointwise

        def product() -> Any:
            return linear(square, square, None, "none", [], "")

        product()
    except (AttributeError, RuntimeError):
        return None
    return product
