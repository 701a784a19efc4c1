"""Where and how a training run is computed and kept: settings that move no more than rounding, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gptcli.config.compute import ComputeConfig
from gptcli.config.fields import check, fields_of, in_panel, like, require
from gptcli.config.recipe import RecipeConfig

Log = Literal["none", "tensorboard"]

SPEED = "Memory, speed, processes"
speed = in_panel(SPEED, on_resume=True)
saving = in_panel("Saving and resuming", on_resume=True)
watching = in_panel("Watching", on_resume=True)


@dataclass(frozen=True)
class RuntimeConfig:
    """What a resumed run may change: how a step is computed, and what is written beside the weights.

    A step processes its windows in `accumulate` parts, which only saves memory; None: in the fewest parts that fit.
    `compile` None: the run decides by device and length. `save_every` None: the interval is chosen from the cost of
    saving. `threads` None: the physical cores.

    Raises:
        SettingError: a value is outside its range.
    """

    device: str = like(ComputeConfig, "device", "auto", panel=SPEED, on_resume=True)
    threads: int | None = like(ComputeConfig, "threads", panel=SPEED, on_resume=True)
    accumulate: int | None = speed(1, "Compute a step in N parts: less memory, the same result.", at_least=1)
    recompute: bool = speed(False, "Compute activations again instead of keeping them: less memory.")
    compile: bool | None = speed(
        None,
        "Fuse each block with torch.compile; by default on one GPU, if the run is long enough to gain from it.",
    )
    shard: bool = speed(False, "Under torchrun: every process holds a part of the model (FSDP2).")
    save_every: int | None = saving(
        None, "Steps between snapshots; by default as often as it takes 2% of the time.", at_least=1
    )
    keep: int = saving(2, "Newest snapshots to keep, each with the best weights so far.", at_least=1)
    sample_every: int = watching(1, "Epochs between sample texts; 0 for none.", at_least=0, hint="0 turns it off.")
    sample_prompt: str = watching("Every effort moves you", "What the samples continue.")
    log: Log = watching("none", "none, or tensorboard: event files in the run's directory as well.")

    def __post_init__(self) -> None:
        check(self)

    def check_with(self, recipe: RecipeConfig) -> None:
        """Raise SettingError where a step of ``recipe`` cannot be computed in so many parts, or not on shards."""
        require(
            self.accumulate is None or self.accumulate <= recipe.batch_size,
            f"{{accumulate}} is {self.accumulate}, but a step has only {recipe.batch_size} windows to share out.",
            "It is the number of parts that a step's {batch_size} is computed in.",
        )
        require(
            not (self.shard and recipe.average_share),
            "{average_share} cannot be combined with {shard}: shards of the weights are not averaged.",
            "Leave {shard} out, or begin a run without {average_share}.",
        )


DEFAULT_RUNTIME = RuntimeConfig()


def split(settings: Mapping[str, Any]) -> tuple[RecipeConfig, RuntimeConfig]:
    """The recipe and the runtime of settings that are written in one table, as older snapshots have them."""
    recipe = {name: value for name, value in settings.items() if name in fields_of(RecipeConfig)}
    return RecipeConfig(**recipe), RuntimeConfig(**{k: v for k, v in settings.items() if k not in recipe})
