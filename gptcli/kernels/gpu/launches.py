"""A kernel launch with its arguments; a step is a list of launches that can be run, counted and captured."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A kernel launch.

    Attributes:
        name: of the operation in a step.
        kernel: a `triton.jit` function, or a Python function, whose grid is ().
        grid: programs in each dimension.
        arguments: positional arguments.
        options: keyword arguments: compile-time constants and launch options such as num_warps.
        weight_bytes: bytes of the weights that the kernel reads.
        flops: of the product with the weights.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    flops: int = 0

    def run(self) -> None:
        """Queue the kernel on the current stream."""
        (self.kernel[self.grid] if self.grid else self.kernel)(*self.arguments, **self.options)


def run_all(launches: Iterable[Launch]) -> None:
    """Queue launches in order."""
    for launch in launches:
        launch.run()
