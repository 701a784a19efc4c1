"""A command whose file is imported when it is called: help and the other commands do not pay for it."""

from importlib import import_module
from typing import Any

from typer.core import TyperCommand

from gptcli.cli import settings


class LazyCommand(TyperCommand):
    """A command as ``gptcli --help`` shows it.

    Args:
        name: on the command line; with ``_`` for ``-`` it is the file in ``gptcli.cli``, and the function in that file.
        panel: of ``gptcli --help``.
        help: the first paragraph of the function's docstring (a test compares them).
        settings: what typer is told about every command.
    """

    def __init__(self, name: str, panel: str, help: str, settings: dict[str, Any]) -> None:  # noqa: A002
        super().__init__(name, help=help, rich_help_panel=panel)
        self.settings = settings

    def load(self) -> Any:
        """Import the function, and build the command with its parameters."""
        function = (self.name or "").replace("-", "_")
        return settings.build(
            getattr(import_module(f"gptcli.cli.{function}"), function), self.name or "", self.settings
        )

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of the command itself; typer asks for it when it runs, explains or completes a command."""
        return self.load().make_context(*args, **kwargs)
