"""A command whose options come from flags, variables, a file and defaults, and whose help shows the common ones."""

import functools
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from gptcli import __version__
from gptcli.config import sources
from gptcli.config.sources import Option
from gptcli.errors import GptcliError, SettingError

SOURCES, ALL, PRINT = "gptcli.sources", "gptcli.all", "gptcli.print"  # in the context's meta


def show_no_type(option: Any) -> Any:
    """``option``, whose help shows no type if it takes no value."""
    if getattr(option, "is_flag", False):
        option.metavar = ""
    return option


def flag(name: str) -> str:
    """What a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


class SettingsCommand(TyperCommand):
    """A command whose options may come from variables and a file, and whose help may hide some of them.

    Attributes:
        options: its options and arguments, as files and variables know them.
        parsed: the parameters whose text a parser reads.
        rare: the parameters that --help hides and --help-all shows.
        spare: flags whose negative form serves to take back what a file or a variable says; help does not show it.
    """

    options: tuple[Option, ...] = ()
    parsed: frozenset[str] = frozenset()
    rare: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            found = sources.from_environment(os.environ, self.options)
            self.offer(ctx, found, {option.name: option.variable for option in self.options})
        try:
            return super().parse_args(ctx, args)
        except SettingError as error:
            raise self.named(ctx, error) from error

    def offer(self, ctx: Any, values: dict[str, Any], called: dict[str, str]) -> None:
        """Make ``values`` defaults, below those that are offered already; ``called`` names them in messages."""
        texts = {name: str(value) if name in self.parsed else value for name, value in values.items()}
        ctx.default_map = texts | (ctx.default_map or {})
        ctx.meta[SOURCES] = {name: called[name] for name in values} | ctx.meta.get(SOURCES, {})

    def named(self, ctx: Any, error: SettingError) -> GptcliError:
        """``error`` with the names of this command: in its first line those of where the values came from."""

        def where_given(name: str) -> str:
            option = self.option(name)
            given = option is not None and source(ctx, option.name) == "DEFAULT_MAP"
            return ctx.meta[SOURCES][option.name] if option is not None and given else self.flag(name)

        return error.named(where_given, self.flag)

    def flag(self, name: str) -> str:
        """What a setting is called on this command's line."""
        option = self.option(name)
        if option is None:
            return flag(name)
        return option.key.upper() if option.is_argument else flag(option.key)

    def option(self, name: str) -> Option | None:
        """The option of a setting, by the name of its parameter or its key."""
        return next((option for option in self.options if name in (option.name, option.key)), None)

    def get_params(self, ctx: Any) -> list[Any]:
        return [show_no_type(each) for each in super().get_params(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        hidden = () if ctx.meta.get(ALL) else [param for param in self.params if param.name in self.rare]
        most = shutil.get_terminal_size().columns // 2  # of the names of a flag; help would cut longer ones
        too_long = {each.name for each in self.params if len("".join((*each.opts, *each.secondary_opts))) > most}
        spare = [(each, each.secondary_opts) for each in self.params if each.name in self.spare | too_long]
        for param in hidden:
            param.hidden = True  # type: ignore[attr-defined]
        for param, _ in spare:
            param.secondary_opts = []
        self.epilog = f"{ctx.command_path} --help-all shows {len(hidden)} more options." if hidden else None
        try:
            super().format_help(ctx, formatter)
        finally:
            for param in hidden:
                param.hidden = False  # type: ignore[attr-defined]
            for param, words in spare:
                param.secondary_opts = words


def source(context: Any, name: str) -> str:
    """COMMANDLINE, DEFAULT_MAP (a variable or a file) or DEFAULT: where the value of a parameter came from."""
    return getattr(context.get_parameter_source(name), "name", "DEFAULT")


def by_flag(context: typer.Context) -> dict[str, Any]:
    """The values that were given on the command line, by parameter."""
    return {name: value for name, value in context.params.items() if source(context, name) == "COMMANDLINE"}


def by_file_or_variable(context: typer.Context) -> dict[str, Any]:
    """The values that a file or variables gave, by parameter."""
    return {name: value for name, value in context.params.items() if source(context, name) == "DEFAULT_MAP"}


def changed(context: typer.Context) -> set[str]:
    """The parameters that were given on the command line, or another value than the default by a file or variable."""
    defaults = {param.name: param.default for param in context.command.params}
    offered = {name for name, value in by_file_or_variable(context).items() if value != defaults[name]}
    return set(by_flag(context)) | offered


def as_toml(context: Any) -> str:
    """A file that does what the command line does, with absolute paths."""
    command: SettingsCommand = context.command
    values = [
        (option, option.in_file(_absolute(option, context.params.get(option.name))))
        for option in command.options if option.stored
    ]  # fmt: skip
    values = [(option, value) for option, value in values if option.shown or value]
    heading = f"Settings of gptcli {command.name}, for its option --config (gptcli {__version__})."
    return sources.to_toml(((option.panel, option.key, value) for option, value in values), heading)


def _absolute(option: Option, value: Any) -> Any:
    if value is None or value == () or value == []:
        return None
    if not option.path:
        return value
    return [_place(option, each) for each in value] if option.several else _place(option, value)


def _place(option: Option, value: str | Path) -> str:
    from gptcli.checkpoints.layout import ROOT

    if str(value) == "-":
        return "-"
    if option.path == "name" and not Path(value).exists():
        return str((ROOT / value).absolute()) if (ROOT / value).exists() else str(value)
    return str(Path(value).absolute())


def read_config(context: typer.Context, path: Path | None) -> None:
    command: SettingsCommand = context.command  # type: ignore[assignment]
    if path is None or context.resilient_parsing:
        return
    values = sources.read_file(path, command.options, command.name or "", functools.partial(_commands_with, command))
    called = {option.name: f"{option.key} in {path}" for option in command.options}
    command.offer(context, values, called)


def _commands_with(command: SettingsCommand, key: str) -> list[str]:
    from gptcli import cli

    others = {name: each.load() for name, each in cli.group.commands.items() if name != command.name}
    return [name for name, each in others.items() if any(option.key == key for option in each.options)]


def print_config(context: typer.Context, value: bool) -> None:
    context.meta[PRINT] = value


def help_all(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta[ALL] = True
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit


CONFIG = (
    "config",
    Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", is_eager=True, callback=read_config, expose_value=False,
                     help="Settings from a TOML file; options on the command line replace them."),
    ],
    None,
)  # fmt: skip
PRINT_CONFIG = (
    "print_config",
    Annotated[
        bool,
        typer.Option("--print-config", is_eager=True, callback=print_config, expose_value=False,
                     help="Print these settings as a file for --config, and run nothing."),
    ],
    False,
)  # fmt: skip
HELP_ALL = (
    "help_all",
    Annotated[
        bool,
        typer.Option("--help-all", is_eager=True, callback=help_all, expose_value=False,
                     help="Show every option."),
    ],
    False,
)  # fmt: skip
