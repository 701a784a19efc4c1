"""The phases of a decode step: what kernels.py does one after the other, from where to where."""

from typing import Any

from numpy.typing import NDArray

from gptcli.config import GPTConfig
from gptcli.kernels.cpu import memory_layout


def phases(config: GPTConfig, table: NDArray[Any]) -> list[tuple[int, ...]]:
    """One row a phase, its cells in the order that kernels.py names them; those that are left out are 0.

    Args:
        config: the model's shape.
        table: int64, with the sizes and places of everything but the program.
    """
    x, normed, context, projected, hidden, logits = (
        int(table[cell]) for cell in range(memory_layout.X, memory_layout.SCRATCH)
    )
    width, rows = int(table[memory_layout.QKV + memory_layout.INPUTS]), int(table[memory_layout.MAX_ROWS])
    wide, vocabulary = (
        int(table[memory_layout.QKV + memory_layout.OUTPUTS]),
        int(table[memory_layout.HEAD + memory_layout.OUTPUTS]),
    )
    inner = int(table[memory_layout.CONTRACT + memory_layout.INPUTS])
    activation = {"gelu_new": memory_layout.GELU, "relu": memory_layout.RELU}[config.activation]
    final, beside = 2 * config.n_layers, logits + rows * vocabulary
    tapped = normed + rows * width
    arranged = hidden + rows * inner
    program: list[tuple[int, ...]] = [(memory_layout.EMBED,)]
    for n in range(config.n_layers):
        program += [
            (memory_layout.NORM, 2 * n, n, x, normed),
            (memory_layout.MULTIPLY, memory_layout.QKV, n, normed, projected, wide, memory_layout.PLAIN),
            (memory_layout.ATTEND, 0, n),
            (memory_layout.ARRANGE, memory_layout.ATTENTION, n, context, normed),
            (memory_layout.MULTIPLY, memory_layout.ATTENTION, n, normed, x, width, memory_layout.ADD),
            (memory_layout.NORM, 2 * n + 1, n, x, normed),
            (memory_layout.MULTIPLY, memory_layout.EXPAND, n, normed, hidden, inner, activation),
            (memory_layout.ARRANGE, memory_layout.CONTRACT, n, hidden, arranged),
            (memory_layout.MULTIPLY, memory_layout.CONTRACT, n, arranged, x, width, memory_layout.ADD),
            (memory_layout.NORM, final, n, x, tapped, 0, 0, memory_layout.WANTED_ROWS, n + 1),
        ]
    program += [
        (memory_layout.NORM, final, 0, x, normed, 0, 0, memory_layout.WANTED_ROWS),
        (
            memory_layout.MULTIPLY,
            memory_layout.HEAD,
            0,
            normed,
            logits,
            vocabulary,
            memory_layout.PLAIN,
            memory_layout.WANTED_ROWS,
        ),
        (
            memory_layout.MULTIPLY,
            memory_layout.HEAD,
            0,
            tapped,
            beside,
            vocabulary,
            memory_layout.PLAIN,
            memory_layout.WANTED_ROWS,
            memory_layout.IF_TAPPED,
        ),
    ]
    return program
