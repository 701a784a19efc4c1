"""How figures are written: digits that mean something, and numbers that JSON has."""

import math


def finite(value: float) -> float | None:
    """``value``, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def number(value: float) -> str:
    """Four significant digits or so, as a reader wants them."""
    if not math.isfinite(value) or value >= 1e7:
        return f"{value:.3e}"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:,.1f}" if value >= 1_000 else f"{value:.4g}"


def with_error(value: float, error: float) -> str:
    """A value to the second digit of its standard error: 12.67 ± 0.15."""
    if not 0 < error < math.inf or value >= 1e7:
        return f"{number(value)} ± {number(error)}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"
