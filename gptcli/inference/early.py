"""A checkpoint's weights packed for the CPU engine in a thread, while the command loads numba and its tokenizer."""

import threading
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

from gptcli.checkpoints.adapters import open_weights
from gptcli.config.model import GPTConfig
from gptcli.inference.cpu_weights import Matrices


def pack_early(path: Path, adapter: Path | None, config: GPTConfig, threads: int) -> "Future[Matrices] | None":
    """Begin to pack float32 weights; None where there is no numba, which the engine needs.

    Args:
        path: a checkpoint directory of float32 matrices.
        adapter: the directory of an adapter for it.
        config: the model's shape.
        threads: number of packing threads.

    Returns:
        the packed matrices, or the GptcliError of a damaged file, when they are there.
    """
    if find_spec("numba") is None:
        return None
    packed: Future[Matrices] = Future()

    def pack() -> None:
        try:
            weights = open_weights(path, adapter)  # first: it checks the shapes by which memory is allocated
            matrices = Matrices(config, 32, threads)
            matrices.fill(weights)
        except BaseException as error:
            packed.set_exception(error)
        else:
            packed.set_result(matrices)

    threading.Thread(target=pack, daemon=True).start()
    return packed
