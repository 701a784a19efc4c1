"""Where a model is computed once it is trained, and by which engine: frozen dataclasses, without torch."""

from dataclasses import dataclass
from typing import Literal

from gptcli.config.fields import check, in_panel
from gptcli.config.recipe import Dtype

Engine = Literal["auto", "cpu", "torch"]
Quantization = Literal["int8", "int4"]

speed = in_panel("Device and speed")


@dataclass(frozen=True)
class ComputeConfig:
    """Where to compute. `threads` None: the physical cores. Names of devices are checked where torch is.

    Raises:
        SettingError: a value is outside its range.
    """

    device: str = speed("auto", "auto, cpu, cuda, cuda:N or mps.", common=True)
    dtype: Dtype = speed(
        "auto",
        "float32, bfloat16, float16 or auto: float32 on a CPU; on a GPU bfloat16 (float16 where it has none) to bench "
        "and to generate without a draft, for speed, and float32 to evaluate and classify, since models may differ by "
        "less than bfloat16 rounds.",
    )
    threads: int | None = speed(
        None, "CPU threads (default: the physical cores).", at_least=1, hint="Leave it out for all cores."
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class EngineConfig:
    """What computes the steps of a text, and on which weights.

    Raises:
        SettingError: a value is none of its choices.
    """

    engine: Engine = speed("auto", "auto, cpu (compiled kernels) or torch.")
    quantize: Quantization | None = speed(
        None, "Pack the weights in memory first: int8 or int4 (faster and smaller).", common=True
    )
    compile: bool = speed(False, "Compile the torch engine's steps with torch.compile (takes a minute in each run).")

    def __post_init__(self) -> None:
        check(self)
