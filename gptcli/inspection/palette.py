"""The perceptually uniform colour scale of all plots: in the terminal, in PNG and in HTML."""

# Nine points of matplotlib's perceptually uniform "magma", from 0 to 1; linear interpolation between them shows no
# visible difference. On a white background the scale is reversed, so that 0 is nearly white.
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
    """Red, green and blue, each 0 to 255, of a value; values outside [0, 1] are clamped."""
    place = min(max(value, 0.0), 1.0) * (len(MAGMA) - 1)
    low = min(int(place), len(MAGMA) - 2)
    share = place - low
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(MAGMA[low], MAGMA[low + 1], strict=True))
    return red, green, blue


def brightness(weight: float) -> float:
    """The place on the scale of an attention weight in [0, 1]: its square root, so that 1/64 is at 1/8 and visible."""
    return float(max(weight, 0.0) ** 0.5)


def shade(weight: float) -> str:
    """A character whose darkness grows with an attention weight, for terminals without colour."""
    return SHADES[min(int(brightness(weight) * len(SHADES)), len(SHADES) - 1)]
