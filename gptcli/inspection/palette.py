"""One perceptually even scale of colours for every picture: in the terminal, in PNG and in HTML."""

# Nine points of matplotlib's "magma", a scale whose steps look equally large; between them a straight line is exact
# to the eye. From 0 to 1; on white paper it is read the other way round, so that nothing is nearly white.
MAGMA = (
    (0, 0, 4),
    (28, 16, 68),
    (79, 18, 123),
    (129, 37, 129),
    (181, 54, 122),
    (229, 80, 100),
    (251, 135, 97),
    (254, 194, 135),
    (252, 253, 191),
)
SHADES = " .:-=+*#%@"


def colour(value: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a value in [0, 1]."""
    place = min(max(value, 0.0), 1.0) * (len(MAGMA) - 1)
    low = min(int(place), len(MAGMA) - 2)
    share = place - low
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(MAGMA[low], MAGMA[low + 1], strict=True))
    return red, green, blue


def brightness(weight: float) -> float:
    """Where an attention weight in [0, 1] lies on the scale: its root, or one 64th would look like nothing."""
    return float(max(weight, 0.0) ** 0.5)


def shade(weight: float) -> str:
    """A character as dark as an attention weight is large, for where there is no colour."""
    return SHADES[min(int(brightness(weight) * len(SHADES)), len(SHADES) - 1)]
