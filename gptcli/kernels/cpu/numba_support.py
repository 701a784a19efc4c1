"""Whether numba can be loaded to compile the kernels, and what it compiles them for."""

import importlib
from functools import cache


@cache
def numba_reason() -> str | None:
    """Why numba cannot be used, or None. An installed numba fails to load with a NumPy that it does not support."""
    try:
        importlib.import_module("numba")
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return "numba is not installed"
        return f"numba cannot be loaded: {error}"
    except Exception as error:
        return f"numba cannot be loaded: {' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__}"
    return None


@cache
def target_features() -> frozenset[str]:
    """LLVM's names of the features of the processor that numba compiles for, such as avx512f.

    They are the host's, unless the environment says otherwise (NUMBA_CPU_NAME=generic, NUMBA_CPU_FEATURES,
    NUMBA_ENABLE_AVX=0): LLVM ends the process where code for a target uses an instruction that the target lacks.
    """
    import numba
    from numba.core.codegen import get_host_cpu_features

    features = numba.config.CPU_FEATURES
    text: str = get_host_cpu_features() if features is None else features
    return frozenset(name[1:] for name in text.split(",") if name.startswith("+"))
