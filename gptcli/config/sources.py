"""Settings from a file or from variables, and a file from settings; no command line and no torch here.

A file is TOML with one setting a line, named as the command's option is, with _ for -. A variable is named GPTCLI_ and
the option's name in capitals. The command line decides between flag, variable, file and default, in this order.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError

PREFIX = "GPTCLI_"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Option:
    """An option or an argument of a command, as files and variables know it.

    Attributes:
        key: its name in a file.
        name: the parameter of the command's function.
        kinds: the types of a value: bool, int, float or str.
        several: whether it takes a list of them.
        path: "" for no path; "path" for one relative to the file, "name" for one that may be a name known elsewhere.
        default: its value where none is given.
        stored: whether a file may give it.
        has_variable: whether a variable may give it.
        shown: whether a printed file has it where it is not set.
        panel: its heading in help and in files.
        in_file: makes of a value what a printed file has.
    """

    key: str
    name: str
    kinds: tuple[type, ...]
    several: bool = False
    path: str = ""
    default: Any = None
    stored: bool = True
    has_variable: bool = True
    shown: bool = True
    panel: str = "Options"
    in_file: Callable[[Any], Any] = lambda value: value

    @property
    def variable(self) -> str:
        return PREFIX + self.key.upper()

    @property
    def is_argument(self) -> bool:
        return self.stored and not self.has_variable

    @property
    def expected(self) -> str:
        each = " or ".join(KINDS[kind] for kind in self.kinds)
        return f"a list, each {each}" if self.several else each

    def takes(self, value: Any) -> bool:
        if self.several:
            return isinstance(value, list) and all(self._takes_one(each) for each in value)
        return self._takes_one(value)

    def _takes_one(self, value: Any) -> bool:
        if isinstance(value, bool):
            return bool in self.kinds
        return isinstance(value, self.kinds) or (float in self.kinds and isinstance(value, int))


def read_file(
    path: Path, options: Iterable[Option], command: str, commands_with: Callable[[str], list[str]]
) -> dict[str, Any]:
    """The values of a file by the names of the command's parameters, with paths made relative to the file.

    Args:
        path: the file.
        options: those of the command.
        command: its name, for messages.
        commands_with: the names of other commands that have an option of this key.

    Raises:
        GptcliError: there is no such file, it is no TOML, or it has a key or a value that the command does not take.
    """
    known = {option.key: option for option in options}
    values = {}
    for key, value in _tables(path).items():
        if isinstance(value, dict):
            raise GptcliError(
                f"{path} has the table [{key}], but a file of settings has one setting a line and no tables.",
                "Remove the line with the brackets, and give each setting once.",
            )
        if key not in known:
            raise GptcliError(f"{path} has {key}, {_unknown(key, command, commands_with(key))}.", _meant(key, known))
        option = known[key]
        if not option.stored:
            raise GptcliError(
                f"{path} has {key}, which is never read from a file.",
                f"Give --{key.replace('_', '-')} on the command line.",
            )
        if not option.takes(value):
            raise GptcliError(
                f"{key} in {path} is {value!r}, but it must be {option.expected}.",
                f'Write {key} = ["...", "..."]'
                if option.several
                else f"Write {key} = {_example(option)}, for example.",
            )
        values[option.name] = _located(option, value, path.parent)
    return values


def from_environment(environment: Mapping[str, str], options: Iterable[Option]) -> dict[str, Any]:
    """The values of variables by the names of the command's parameters; a list has one value a line.

    Raises:
        GptcliError: a variable's text is no value of its option.
    """
    values: dict[str, Any] = {}
    for option in options:
        text = environment.get(option.variable, "") if option.has_variable else ""
        if not text:
            continue
        parts = [_parsed(option, part) for part in (text.splitlines() if option.several else [text])]
        values[option.name] = parts if option.several else parts[0]
    return values


def to_toml(values: Iterable[tuple[str, str, Any]], heading: str) -> str:
    """A file that gives these settings.

    Args:
        values: heading, key and value of each; a value of None becomes a comment.
        heading: comment lines that begin the file.
    """
    lines, panels = [f"# {line}" for line in heading.splitlines()], dict[str, list[str]]()
    for panel, key, value in values:
        panels.setdefault(panel, []).append(f"# {key} =" if value is None else f"{key} = {toml_value(value)}")
    for panel, settings in panels.items():
        lines += ["", f"# {panel}", *settings]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """``value`` as TOML writes it: a bool, a number, a text (a path is one), or a list of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return '"' + re.sub(r'["\\\x00-\x1f\x7f]', _escaped, str(value)) + '"'


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}" if found[0] in '"\\' else f"\\u{ord(found[0]):04X}"


def _tables(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise GptcliError(f"There is no file {path}.", "Make one: gptcli COMMAND ... --print-config > FILE")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise GptcliError(f"{path} cannot be read: {error.strerror}.", "Give a file with settings in TOML.") from error
    except UnicodeDecodeError as error:
        raise GptcliError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02X} at offset {error.start:,}.",
            "Save it as UTF-8.",
        ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = str(error)
        line = re.search(r"line (\d+)", said)
        if "Cannot overwrite a value" in said and line is not None:
            key = text.splitlines()[int(line[1]) - 1].split("=")[0].strip()
            raise GptcliError(f"{path} gives {key} twice, in line {line[1]} again.", "Give it once.") from error
        raise GptcliError(f"{path} is not TOML: {said}.", 'A line is name = value, with texts in "quotes".') from error


def _unknown(key: str, command: str, elsewhere: list[str]) -> str:
    if elsewhere:
        return f"an option of gptcli {', '.join(elsewhere)} and not of {command}"
    return f"which is no option of gptcli {command}"


def _meant(key: str, known: Mapping[str, Option]) -> str:
    names = [option.key for option in known.values() if option.stored]
    close = get_close_matches(key, names, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else "Remove it, or see what there is: gptcli COMMAND --print-config"


def _example(option: Option) -> str:
    if option.default is not None and option.takes(option.default):
        return toml_value(option.default)
    return {bool: "true", int: "4", float: "0.5", str: '"..."'}[option.kinds[0]]


def _located(option: Option, value: Any, folder: Path) -> Any:
    if not option.path:
        return value
    return [_place(option, each, folder) for each in value] if option.several else _place(option, value, folder)


def _place(option: Option, value: str, folder: Path) -> str:
    if value == "-" or (option.path == "name" and not (folder / value).exists()):
        return value
    return str(folder / value)


def _parsed(option: Option, text: str) -> Any:
    for kind in option.kinds:
        try:
            return _WORDS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            continue
    raise GptcliError(
        f"{option.variable} is {text!r}, but it must be {option.expected.removesuffix(' in quotes')}.",
        f"Set the variable to another value, or take it away: unset {option.variable}",
    )
