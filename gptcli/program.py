"""The phases of a decode step: what kernels.py does one after the other, from where to where."""

from typing import Any

from numpy.typing import NDArray

from gptcli import kernels as k
from gptcli.config import GPTConfig


def phases(config: GPTConfig, table: NDArray[Any]) -> list[tuple[int, ...]]:
    """One row a phase, its cells in the order that kernels.py names them; those that are left out are 0.

    Args:
        config: the model's shape.
        table: int64, with the sizes and places of everything but the program.
    """
    x, normed, context, projected, hidden, logits = (int(table[cell]) for cell in range(k.X, k.SCRATCH))
    width, rows = int(table[k.QKV + k.INPUTS]), int(table[k.MAX_ROWS])
    wide, vocabulary = int(table[k.QKV + k.OUTPUTS]), int(table[k.HEAD + k.OUTPUTS])
    inner = int(table[k.CONTRACT + k.INPUTS])
    activation = {"gelu_new": k.GELU, "relu": k.RELU}[config.activation]
    final, beside = 2 * config.n_layers, logits + rows * vocabulary
    tapped = normed + rows * width
    arranged = hidden + rows * inner
    program: list[tuple[int, ...]] = [(k.EMBED,)]
    for n in range(config.n_layers):
        program += [
            (k.NORM, 2 * n, n, x, normed),
            (k.MULTIPLY, k.QKV, n, normed, projected, wide, k.PLAIN),
            (k.ATTEND, 0, n),
            (k.ARRANGE, k.ATTENTION, n, context, normed),
            (k.MULTIPLY, k.ATTENTION, n, normed, x, width, k.ADD),
            (k.NORM, 2 * n + 1, n, x, normed),
            (k.MULTIPLY, k.EXPAND, n, normed, hidden, inner, activation),
            (k.ARRANGE, k.CONTRACT, n, hidden, arranged),
            (k.MULTIPLY, k.CONTRACT, n, arranged, x, width, k.ADD),
            (k.NORM, final, n, x, tapped, 0, 0, k.WANTED_ROWS, n + 1),
        ]
    program += [
        (k.NORM, final, 0, x, normed, 0, 0, k.WANTED_ROWS),
        (k.MULTIPLY, k.HEAD, 0, normed, logits, vocabulary, k.PLAIN, k.WANTED_ROWS),
        (k.MULTIPLY, k.HEAD, 0, tapped, beside, vocabulary, k.PLAIN, k.WANTED_ROWS, k.IF_TAPPED),
    ]
    return program
