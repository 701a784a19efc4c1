"""One launch of a kernel with everything it takes, so that a step is a list that can be run, counted and captured."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Launch:
    """A kernel, ready to run.

    Attributes:
        name: of what it does in a step.
        kernel: what `triton.jit` made, or a plain function, whose grid is ().
        grid: programs in each dimension.
        arguments: by position.
        options: by name: the constants it is compiled for, and num_warps.
        weight_bytes: of the weights that it reads.
        flops: of its product with those.
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
    """Queue launches one behind the other."""
    for launch in launches:
        launch.run()
