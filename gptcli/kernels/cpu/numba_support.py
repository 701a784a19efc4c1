"""Whether numba can be loaded to compile the kernels."""

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
