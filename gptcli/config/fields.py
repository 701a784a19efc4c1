"""The settings of a dataclass: what a field's metadata says about it, and the checks made from that."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from types import MappingProxyType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gptcli.errors import SettingError, nearest

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Setting:
    """What a field says about itself besides its name, type and default.

    Attributes:
        help: one line for the command's help and the documentation; markers as in `SettingError`.
        panel: its heading there.
        at_least, at_most, above, below: the range of a number; None for no limit.
        choices: the values of a text, where its type is no Literal.
        hint: the way out where a value is out of range; "" for a general one. Markers as in `SettingError`.
        on_resume: whether it may change when a run is resumed.
        common: whether a command's short help shows it.
        called: the name of the option in files and, with hyphens, on the command line; "" for the field's.
        also: another name of the option on the command line, beside the field's name with hyphens.
        metavar: what the option's value is called in help.
        shown_default: what help shows as the default, where None stands for something else.
        path: whether a text is a path; as of `sources.Option`.
        parser: makes a value of the text on the command line or in a file; raises ValueError.
        text: makes the text of a value that files have, where they are not to have the value itself.
    """

    help: str = ""
    panel: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    hint: str = ""
    on_resume: bool = False
    common: bool = False
    called: str = ""
    also: str = ""
    metavar: str | None = None
    shown_default: str = ""
    path: str = ""
    parser: Callable[[str], Any] | None = None
    text: Callable[[Any], str] | None = None

    def in_file(self, value: Any) -> Any:
        """A value as files have it."""
        return value if self.text is None or value is None else self.text(value)


def setting(default: Any, help: str = "", **about: Any) -> Any:  # noqa: A002
    """A dataclass field with a default and a `Setting` in its metadata."""
    return field(default=default, metadata={"setting": Setting(help, **about)})


def like(config: Any, name: str, default: Any = None, **about: Any) -> Any:
    """A field like ``name`` of another settings class; a default of None may leave that field as it is."""
    return field(default=default, metadata={"setting": replace(fields_of(config)[name].setting, **about)})


def in_panel(panel: str, **about: Any) -> Callable[..., Any]:
    """`setting` for fields that share a panel, or more of a `Setting`."""
    return partial(setting, panel=panel, **about)


@dataclass(frozen=True)
class Field:
    """A field of a settings class, as commands and files need it.

    Attributes:
        name: the field's.
        kind: bool, int, float or str.
        optional: whether None is a value.
        default: the value where none is given.
        choices: the values of a text; empty for all.
        setting: the rest.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    choices: tuple[str, ...]
    setting: Setting

    def check(self, value: Any) -> None:
        """Raise SettingError for a value of another type, that is not finite, out of range, or no choice."""
        if value is None and self.optional:
            return
        if not self.takes(value):
            raise SettingError(f"{{{self.name}}} is {value!r}, but it must be {KINDS[self.kind]}.", self.way_out())
        if self.choices and value not in self.choices:
            raise SettingError(
                f"{{{self.name}}} is {value!r}, which is not one of its values.", nearest(value, self.choices)
            )
        wrong = self._out_of_range(value) if self.kind in (int, float) else ""
        if wrong:
            raise SettingError(f"{{{self.name}}} is {value}{wrong}.", self.way_out())

    def takes(self, value: Any) -> bool:
        """Whether ``value`` has the field's type; a whole number is a number as well."""
        allowed = (int, float) if self.kind is float else (self.kind,)
        return isinstance(value, allowed) and (self.kind is bool or not isinstance(value, bool))

    def way_out(self) -> str:
        """The second line of an error about this field."""
        if self.setting.hint:
            return self.setting.hint
        return f"Leave it out for the default{'' if self.default is None else f', {self.default}'}."

    def _out_of_range(self, value: float) -> str:
        about = self.setting
        low = about.at_least if about.above is None else about.above
        high = about.at_most if about.below is None else about.below
        inside = (about.at_least is None or value >= about.at_least) and (about.above is None or value > about.above)
        inside = inside and (about.at_most is None or value <= about.at_most)
        inside = inside and (about.below is None or value < about.below)
        if inside and math.isfinite(value):
            return ""
        if low is not None and high is not None:
            opening, closing = "[" if about.above is None else "(", "]" if about.below is None else ")"
            return f", outside {opening}{low:g}, {high:g}{closing}"
        if not math.isfinite(value):
            return ", but it must be a finite number"
        if about.above is not None:
            return f", but it must be greater than {about.above:g}"
        if about.at_least == 0:
            return ", but it cannot be negative"
        return f", but it must be at {'most' if low is None else 'least'} {high if low is None else low:g}"


def fields_of(config: Any) -> Mapping[str, Field]:
    """The fields of a settings class that are settings, by name, in their order."""
    return _fields_of(config)


@cache
def _fields_of(config: type) -> Mapping[str, Field]:
    hints = get_type_hints(config)
    found = {}
    for each in fields(config):
        about = each.metadata.get("setting")
        if about is not None:
            parts = [part for part in (get_args(hints[each.name]) or (hints[each.name],)) if part is not NoneType]
            optional = NoneType in get_args(hints[each.name])
            literal = hints[each.name] if get_origin(hints[each.name]) is Literal else parts[0]
            choices = get_args(literal) if get_origin(literal) is Literal else about.choices
            kind = str if choices else parts[0]
            found[each.name] = Field(each.name, kind, optional, each.default, choices, about)
    return MappingProxyType(found)


def check(config: Any) -> None:
    """Check every setting of a dataclass by itself: type, finite, range, choices.

    Raises:
        SettingError: the first that is wrong.
    """
    for each in fields_of(type(config)).values():
        each.check(getattr(config, each.name))


def require(condition: bool, message: str, hint: str) -> None:
    """Raise SettingError with these templates unless ``condition``: for a check of several fields together."""
    if not condition:
        raise SettingError(message, hint)


def as_dict(config: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as JSON values."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def duration(text: str) -> float:
    """Seconds of 90s, 10m, 2h or a plain number of seconds; ValueError for another text."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise ValueError("which is no duration") from None


def seconds_text(seconds: float) -> str:
    """The duration as `duration_with_unit` reads it."""
    return f"{seconds:g}s"


def duration_with_unit(text: str) -> float:
    """Seconds of 90s, 10m or 2h; ValueError for another text, a number without a unit included."""
    if text[-1:] not in ("s", "m", "h"):
        raise ValueError("which has no unit" if text.replace(".", "", 1).isdecimal() else "which is no duration")
    return duration(text)
