"""Which matrices an adapter changes, and by how much: a frozen dataclass, checked on construction, without torch."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from gptcli.errors import SettingError, nearest

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
DEFAULT_RANK = 8


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al., 2021): W (in, out) of each target becomes W + scale · Aᵀ Bᵀ.

    Attributes:
        rank: r, the rows of A (r, in) and the columns of B (out, r).
        alpha: scale = alpha / rank.
        targets: suffixes of the matrices' names, of `TARGETS`.
        base_bits: per weight of the frozen matrices in memory: 32, or 8 or 4 if they are packed.

    Raises:
        SettingError: the rank is below 1, alpha is not above 0, or there is no such target, or none at all.
    """

    rank: int = DEFAULT_RANK
    alpha: float = 2.0 * DEFAULT_RANK
    targets: tuple[str, ...] = TARGETS
    base_bits: int = 32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingError(
                f"An adapter of rank {self.rank} has no rows.", f"Give a rank of at least 1; {DEFAULT_RANK} is usual."
            )
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise SettingError(
                f"{{lora_alpha}} is {self.alpha}, but it must be a finite number above 0.",
                "Leave it out for twice the rank.",
            )
        object.__setattr__(self, "targets", full_targets(self.targets))

    @property
    def scale(self) -> float:
        """The factor of an adapter's product."""
        return self.alpha / self.rank


def full_targets(names: Collection[str]) -> tuple[str, ...]:
    """The members of `TARGETS` that ``names`` mean, each once, in the order of `TARGETS`.

    A name may be without its first part where only one target has the second: ``c_attn``, ``c_fc``.

    Raises:
        SettingError: there is no such target, a name means two, or ``names`` is empty.
    """
    found = set()
    for name in names:
        meant = [target for target in TARGETS if name == target or target.endswith(f".{name}")]
        if len(meant) > 1:
            raise SettingError(
                f"{{lora_targets}}: {name!r} may be {' or '.join(meant)}.", "Give the one that you mean, or both."
            )
        if not meant:
            raise SettingError(f"{{lora_targets}}: there is no matrix {name!r:.60}.", nearest(name, TARGETS))
        found.update(meant)
    if not found:
        raise SettingError("{lora_targets} names no matrix.", f"Leave it out for all: {', '.join(TARGETS)}.")
    return tuple(target for target in TARGETS if target in found)
