"""The processor that numba compiles the kernels for, and what they choose by its features.

numba is imported only where its settings may name another processor than the host's: it takes a fifth of a second.
"""

import os
import platform
from functools import cache
from pathlib import Path

_NO_TARGET = {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"}  # settings of numba that decide no code


@cache
def target() -> tuple[str, frozenset[str]]:
    """LLVM's names of the processor that numba compiles for and of its features, such as avx512f.

    They are the host's, unless the environment says otherwise (NUMBA_CPU_NAME=generic, NUMBA_CPU_FEATURES,
    NUMBA_ENABLE_AVX=0): LLVM ends the process where code for a target uses an instruction that the target lacks.
    """
    from llvmlite import binding

    if has_settings():
        import numba
        from numba.core.codegen import get_host_cpu_features

        name, features = numba.config.CPU_NAME, numba.config.CPU_FEATURES
        text: str = get_host_cpu_features() if features is None else features
        return name or binding.get_host_cpu_name(), _names(text)
    return binding.get_host_cpu_name(), _names(binding.get_host_cpu_features().flatten())


def has_settings() -> bool:
    """Whether variables or a file in the current folder may tell numba what to compile for."""
    variables = {name for name in os.environ if name.startswith("NUMBA_")}
    return bool(variables - _NO_TARGET) or Path(".numba_config.yaml").exists()


def _names(features: str) -> frozenset[str]:
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


WIDE_REGISTERS = platform.machine() in ("x86_64", "AMD64") and "avx512f" in target()[1]
INTEGER_PRODUCTS = WIDE_REGISTERS and target()[1] >= {"avx512bw", "avx512vnni"}  # of pairs of int16, by VNNI
TILE = 12 if WIDE_REGISTERS else 6  # rows per weight loaded; the sums of more do not fit in registers
