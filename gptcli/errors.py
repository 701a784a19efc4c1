"""What a user did wrong, and what to do now."""

from collections.abc import Iterable
from difflib import get_close_matches


class GptcliError(Exception):
    """A user's mistake or a machine's refusal, told in two lines.

    Args:
        message: one line that says what is wrong: the file, the byte, the field, both values.
        hint: one line that says what to do now.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice a mistyped ``word`` most likely meant, as the second line of an error."""
    known = list(choices)
    close = get_close_matches(word, known, n=1, cutoff=0.3)
    listed = ", ".join(known)
    return f"Did you mean {close[0]}? There are: {listed}." if close else f"Choose one of: {listed}."
