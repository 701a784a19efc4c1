"""Whether numba's kernels can be compiled here: found out in this one place."""

import importlib
from functools import cache


@cache
def numba_reason() -> str | None:
    """Why numba cannot serve, or None. One that is installed may fail to load, beside a NumPy that it is not for."""
    try:
        importlib.import_module("numba")
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return "numba is not installed"
        return f"numba cannot be loaded: {error}"
    except Exception as error:
        return f"numba cannot be loaded: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return None
