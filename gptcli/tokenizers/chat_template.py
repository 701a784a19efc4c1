"""The template of a model's conversations, where AutoTokenizer finds it: a file of its own, or a field of another."""

import json
from pathlib import Path
from typing import Any

from gptcli.tokenizers import tokenizer_json
from gptcli.tokenizers.gpt2 import CONFIG_FILE
from gptcli.tokenizers.vocabulary import read_bytes

FIELD, FILE = "chat_template", "chat_template.jinja"


def read(directory: Path) -> str | None:
    """The template in a tokenizer's directory; None if there is none. Of several, it is the one named "default".

    Raises:
        GptcliError: the file with it is damaged.
    """
    if (directory / FILE).is_file():
        return read_bytes(directory / FILE).decode("utf-8", "replace")
    file = directory / CONFIG_FILE
    if not file.is_file():
        return None
    template = tokenizer_json.parse(read_bytes(file), file).get(FIELD)
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def write(directory: Path, template: str | None) -> None:
    """Add the template to tokenizer_config.json, which the tokenizer has written. Raises OSError."""
    file = directory / CONFIG_FILE
    if template is None or not file.is_file():  # a vocabulary that AutoTokenizer cannot have
        return
    config: dict[str, Any] = json.loads(file.read_bytes())
    file.write_text(json.dumps(config | {FIELD: template}, indent=2) + "\n", encoding="utf-8", newline="\n")
