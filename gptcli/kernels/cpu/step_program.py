"""The program of a decode step: the phases that decode_step.py executes in order."""

from typing import Any

from numpy.typing import NDArray

from gptcli.config.model import GPTConfig
from gptcli.kernels.cpu import memory_layout as c


def phases(config: GPTConfig, table: NDArray[Any]) -> list[tuple[int, ...]]:
    """One row per phase, in the order of fields that memory_layout.py defines (OPERATION, …); omitted fields are 0.

    Args:
        config: the model's shape.
        table: int64, with all sizes and offsets; its program may be empty.
    """
    x, normed, context, projected, hidden, logits = (int(table[cell]) for cell in range(c.X, c.SCRATCH))
    width, rows = int(table[c.QKV + c.INPUTS]), int(table[c.MAX_ROWS])
    wide, vocabulary = int(table[c.QKV + c.OUTPUTS]), int(table[c.HEAD + c.OUTPUTS])
    inner = int(table[c.CONTRACT + c.INPUTS])
    activation = {"gelu_new": c.GELU, "relu": c.RELU}[config.activation]
    final, beside = 2 * config.n_layers, logits + rows * vocabulary
    early_exit = normed + rows * width
    arranged = hidden + rows * inner
    program: list[tuple[int, ...]] = [(c.EMBED,)]
    for n in range(config.n_layers):
        program += [
            (c.NORM, 2 * n, n, x, normed),
            (c.MULTIPLY, c.QKV, n, normed, projected, wide, c.PLAIN),
            (c.ATTEND, 0, n),
            (c.ARRANGE, c.ATTENTION, n, context, normed),
            (c.MULTIPLY, c.ATTENTION, n, normed, x, width, c.ADD),
            (c.NORM, 2 * n + 1, n, x, normed),
            (c.MULTIPLY, c.EXPAND, n, normed, hidden, inner, activation),
            (c.ARRANGE, c.CONTRACT, n, hidden, arranged),
            (c.MULTIPLY, c.CONTRACT, n, arranged, x, width, c.ADD),
            (c.NORM, final, n, x, early_exit, 0, 0, c.WANTED_ROWS, n + 1),
        ]
    program += [
        (c.NORM, final, 0, x, normed, 0, 0, c.WANTED_ROWS),
        (c.MULTIPLY, c.HEAD, 0, normed, logits, vocabulary, c.PLAIN, c.WANTED_ROWS),
        (c.MULTIPLY, c.HEAD, 0, early_exit, beside, vocabulary, c.PLAIN, c.WANTED_ROWS, c.IF_EARLY_EXIT),
    ]
    return program
