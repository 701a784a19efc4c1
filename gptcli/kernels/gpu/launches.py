"""One launch of a kernel with its arguments: a step is a list of them that can be run, counted and captured."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A kernel, ready to run.

    Attributes:
        name: its part of a step.
        kernel: a function of `triton.jit`, or a plain one, whose grid is ().
        grid: programs in each dimension.
        arguments: by position.
        options: by name: compile-time constants and launch options such as num_warps.
        weight_bytes: of the weights that it reads.
        flops: of its product with the weights.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    flops: int = 0

    def run(self) -> None:
        """Queue it on the current stream."""
        (self.kernel[self.grid] if self.grid else self.kernel)(*self.arguments, **self.options)


def run_all(launches: Iterable[Launch]) -> None:
    """Queue launches in order."""
    for launch in launches:
        launch.run()
