"""Commands built from settings: options from the fields of settings classes; values from flag, variable, file, default.

A command's function takes settings classes beside its own options. Each field becomes an option, and the function gets
the classes back, checked. What is set by a file (--config) or by a variable (GPTCLI_...) becomes a default of the
option, so that a flag on the command line goes first.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperOption

from gptcli.cli import render
from gptcli.cli.settings_command import (
    CONFIG,
    HELP_ALL,
    PRINT,
    PRINT_CONFIG,
    SettingsCommand,
    as_toml,
    flag,
    source,
)
from gptcli.config.fields import Field, fields_of
from gptcli.config.sources import Option
from gptcli.errors import GptcliError, SettingError, with_names

NEVER_STORED = {"force", "resume", "config", "print_config", "help", "help_all", "version"}
OF_THE_PROCESS = {"quiet", "verbose", "debug"}  # a printed file has them only where they are on
RARE = {"quiet", "verbose", "debug", "print_config"}  # hidden by --help where settings are hidden
RARELY_USED = {"rare": True}  # marks an option that is no setting, as `Setting.common` marks settings
# What is no Path, or may be a name.
PATHS = {"texts": "path", "checkpoint": "name", "init_from": "name", "tokenizer": "name", "adapter": "name"}
FEW = 10  # options a command has without --config and --help-all
WITH_CONFIG = {"train", "finetune", "generate", "evaluate", "prepare", "bench"}  # whatever their number


def build(function: Callable[..., Any], name: str, typer_settings: dict[str, Any]) -> SettingsCommand:
    """The command of a function, with an option for every field of the settings classes it takes."""
    parameters = list(_parameters(function))
    if name in WITH_CONFIG or len(parameters) > FEW:
        parameters += [_keyword(*each) for each in (CONFIG, PRINT_CONFIG)]
    rare = {parameter.name for parameter in parameters if _about(parameter).get("rare")}
    if rare:
        rare |= RARE & {parameter.name for parameter in parameters}
        parameters.append(_keyword(*HELP_ALL))
    options = tuple(_option(parameter) for parameter in parameters if parameter.annotation is not typer.Context)
    alone = typer.Typer(**typer_settings)
    alone.command(name, cls=SettingsCommand, help=_paragraphs(function))(_with_signature(function, parameters, options))
    command: SettingsCommand = typer.main.get_command(alone)  # type: ignore[assignment]
    command.options, command.rare = options, frozenset(rare)
    command.parsed = frozenset(each.name for each in parameters if _info(each) and _info(each).parser is not None)
    flags = [each for each in command.params if isinstance(each, TyperOption) and each.is_flag]
    stored = {option.name for option in options if option.stored}
    spare = [each for each in flags if each.name in stored and not each.secondary_opts]
    for each in spare:
        each.secondary_opts = [each.opts[0].replace("--", "--no-", 1)]
    command.spare = frozenset(each.name for each in spare)
    return command


def _paragraphs(function: Callable[..., Any]) -> str:
    """The function's docstring, each paragraph in one line: help breaks lines where the terminal ends."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The function's parameters, with one for each field in the place of a settings class; its own go first."""
    own = inspect.signature(function, eval_str=True).parameters
    seen = {name for name, each in own.items() if not _is_settings(each.annotation)}
    for each in own.values():
        if not _is_settings(each.annotation):
            yield each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for each in filter(lambda each: _is_settings(each.annotation), own.values()):
        defaults = each.annotation if each.default is inspect.Parameter.empty else each.default
        for field in fields_of(each.annotation).values():
            if field.name not in seen:
                seen.add(field.name)
                yield _from_field(field, getattr(defaults, field.name))


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "__dataclass_fields__") and bool(fields_of(annotation))


def option_of(config: Any, name: str) -> Any:
    """What typer is told about an option that is a field of a settings class, in a command that takes no such class."""
    field = fields_of(config)[name]
    return _info_of(field, field.default, panel=None)


def _from_field(field: Field, default: Any) -> inspect.Parameter:
    about = field.setting
    option = _info_of(field, default, about.panel)
    kind: Any = Any if about.parser else field.kind | None
    about_it = {"rare": not about.common, "path": about.path, "kind": field.kind, "in_file": about.in_file}
    return _keyword(field.name, Annotated[kind, option, about_it], default)


def _info_of(field: Field, default: Any, panel: str | None) -> Any:
    about = field.setting
    words = [flag(about.called or field.name), *([about.also] if about.also else [])]
    if field.kind is bool and default is not False:
        words[0] += f"/{flag('no_' + field.name)}"
    parser = None if about.parser is None else functools.partial(_parsed, field, about.parser)
    return typer.Option(
        *words,
        help=with_names(about.help, flag),
        rich_help_panel=panel,
        metavar=about.metavar,
        show_default=about.shown_default or True,
        parser=parser,
    )


def _parsed(field: Field, parser: Callable[[str], Any], text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return parser(text)
    except ValueError as error:
        raise SettingError(f"{{{field.name}}} is {text!r}, {error}.", field.way_out()) from None


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _info(parameter: inspect.Parameter) -> Any:
    """What typer is told about a parameter; None for the context."""
    infos = [each for each in get_args(parameter.annotation) if isinstance(each, typer.models.ParameterInfo)]
    return infos[0] if infos else None


def _about(parameter: inspect.Parameter) -> dict[str, Any]:
    """What we say about a parameter beside that: rare, path, kind, key; decides: the defaults that its values imply."""
    return next((each for each in get_args(parameter.annotation) if isinstance(each, dict)), {})


def _option(parameter: inspect.Parameter) -> Option:
    info, about = _info(parameter), _about(parameter)
    kind, several = _kind(get_args(parameter.annotation)[0])
    key, is_argument = parameter.name, isinstance(info, typer.models.ArgumentInfo)
    if not is_argument:
        words = " ".join(map(str, (info.default, *(info.param_decls or ())))).replace("/", " ").split()
        key = next(word for word in words if word.startswith("--"))[2:].replace("-", "_")
    path = about.get("path") or PATHS.get(parameter.name, "path" if kind is Path else "")
    kinds: tuple[type, ...] = (str,) if kind is Path else (kind,)
    if info.parser is not None:
        kinds = (int, float, str)
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    stored = key not in NEVER_STORED
    panel = info.rich_help_panel or ("Input" if is_argument else "Options")
    shown = not getattr(info, "hidden", False) and key not in OF_THE_PROCESS
    in_file = about.get("in_file", lambda value: value)
    has_variable = stored and not is_argument
    return Option(key, parameter.name, kinds, several, path, default, stored, has_variable, shown, panel, in_file)


def _kind(annotation: Any) -> tuple[type, bool]:
    """The type of one value, and whether there may be several: (Path, True) of list[Path] | None."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) is list:
        return parts[0], True
    return _kind(parts[0]) if parts else (annotation, False)


def _with_signature(
    function: Callable[..., Any], parameters: list[inspect.Parameter], options: tuple[Option, ...]
) -> Callable[..., Any]:
    """A function of these parameters that makes the settings classes of its values and calls ``function``."""
    own = inspect.signature(function, eval_str=True).parameters

    def call(settings_context: typer.Context, **values: Any) -> Any:
        command: SettingsCommand = settings_context.command  # type: ignore[assignment]
        arguments: dict[str, Any] = {}
        decided = _decided(settings_context, parameters)
        values |= decided
        settings_context.params |= decided
        try:
            for name, each in own.items():
                if each.annotation is typer.Context:
                    arguments[name] = settings_context
                elif _is_settings(each.annotation):
                    arguments[name] = _made(each.annotation, values, own)
                else:
                    arguments[name] = values[name]
            if settings_context.meta.get(PRINT):
                if values.get("resume") is not None:
                    raise GptcliError(
                        "--print-config cannot be combined with --resume.",
                        "config.toml in the run's directory holds the run's settings.",
                    )
                render.print_text(as_toml(settings_context), end="")
                return None
            return function(**arguments)
        except SettingError as error:
            raise command.named(settings_context, error) from error

    functools.update_wrapper(call, function, assigned=("__doc__", "__name__", "__module__"), updated=())
    del call.__wrapped__  # type: ignore[attr-defined]  # typer would read its annotations
    context = _keyword("settings_context", typer.Context, inspect.Parameter.empty)
    signature = [context, *(each for each in parameters if each.annotation is not typer.Context)]
    call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in signature}
    return call


def _decided(context: typer.Context, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The values of options that were not given, where the value of another option has one for them."""
    found = {}
    for parameter in parameters:
        for name, by_value in _about(parameter).get("decides", {}).items():
            value = context.params.get(parameter.name)
            if value in by_value and source(context, name) == "DEFAULT":
                found[name] = by_value[value]
    return found


def _made(config: Any, values: dict[str, Any], own: Any) -> Any:
    """A settings class of the values; where the function has an option of a field's name, the field's own default."""
    plain = {name for name, each in own.items() if not _is_settings(each.annotation)}
    given = {name: values[name] for name in fields_of(config) if name not in plain}
    return config(**{k: v for k, v in given.items() if v is not None or fields_of(config)[k].optional})
