"""Shared by all config dataclasses: a check of a field, and the fields as a dict."""

from dataclasses import fields
from typing import Any

from gptcli.errors import GptcliError


def require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise GptcliError(message, hint)


def as_dict(config: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as JSON values."""
    return {field.name: getattr(config, field.name) for field in fields(config)}
