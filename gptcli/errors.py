"""What a user did wrong, and what to do now."""

import os
import re
from collections.abc import Callable, Iterable
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


class SettingError(GptcliError):
    """An error whose lines name settings: by their fields, and on the command line by the command's options.

    Below cli every line that names a setting or an argument is one of these; only a whole command (gptcli train TEXT
    --init-from RUN) has options in it. Lines that are reported without an error name no option.

    Args:
        message, hint: as of a GptcliError; ``{batch_size}`` stands for what the field batch_size is called.
    """

    def __init__(self, message: str, hint: str) -> None:
        self.templates = message, hint
        super().__init__(*(with_names(line, str) for line in self.templates))

    def named(self, name_of: Callable[[str], str], in_hint: Callable[[str], str]) -> GptcliError:
        """The same error where a field is called ``name_of(field)`` in the message, and ``in_hint(field)`` after it."""
        message, hint = self.templates
        return GptcliError(with_names(message, name_of), with_names(hint, in_hint))


def with_names(line: str, name_of: Callable[[str], str]) -> str:
    """``line`` with ``name_of(field)`` for every ``{field}``."""
    return re.sub(r"\{([a-z][a-z_0-9]*)\}", lambda found: name_of(found[1]), line)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice a mistyped ``word`` most likely meant, as the second line of an error."""
    known = list(choices)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    listed = ", ".join(known)
    return f"Did you mean {close[0]}? There are: {listed}." if close else f"Choose one of: {listed}."


def quoted(word: str) -> str:
    """One word of a command line, as a shell takes it."""
    import shlex  # light commands need neither
    import subprocess

    if shlex.quote(word) == word:
        return word
    if not set(word) & set('"$`\\!%'):
        return f'"{word}"'
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)
