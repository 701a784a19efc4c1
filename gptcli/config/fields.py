"""What all settings share: checks of their fields, and their fields by name."""

from dataclasses import fields
from typing import Any

from gptcli.errors import GptcliError


def require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise GptcliError(message, hint)


def as_dict(config: Any) -> dict[str, Any]:
    """The fields by name, ready for JSON."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
