"""The built-in templates, one for each form of conversation, and the choice of a run's."""

from pathlib import Path

from gptcli.data import documents
from gptcli.data.forms import CHAT, COMPLETION, INSTRUCTION, PREFERENCE, Form
from gptcli.errors import SettingError, nearest
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.template import OF_CHECKPOINT, Template

_ALPACA = """\
{%- set end = eos_token or "\\n\\n### End" -%}
{%- if messages[0]["role"] == "system" -%}
{{- messages[0]["content"] | trim -}}
{%- else -%}
{{- "Below is an instruction that describes a task. Write a response that appropriately completes the request." -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message["role"] == "user" -%}
{{- "\\n\\n### Instruction:\\n" ~ message["content"] | trim -}}
{%- elif message["role"] == "assistant" -%}
{{- "\\n\\n### Response:\\n" -}}
{%- generation -%}{{- message["content"] | trim ~ end -}}{%- endgeneration -%}
{%- elif message["role"] != "system" -%}
{{- raise_exception("it knows the roles system, user and assistant, not " ~ message["role"]) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "\\n\\n### Response:\\n" -}}{%- endif -%}
"""
_CHAT = """\
{%- set end = eos_token or "\\n\\n\\n" -%}
{%- for message in messages -%}
{{- ("" if loop.first else "\\n\\n") ~ message["role"] | capitalize ~ ":\\n" -}}
{%- if message["role"] == "assistant" -%}
{%- generation -%}{{- message["content"] | trim ~ end -}}{%- endgeneration -%}
{%- else -%}
{{- message["content"] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "\\n\\nAssistant:\\n" -}}{%- endif -%}
"""
_PLAIN = """\
{%- set end = eos_token or "\\n\\n\\n" -%}
{%- for message in messages -%}
{%- if message["role"] == "assistant" -%}
{%- generation -%}{{- message["content"] ~ end -}}{%- endgeneration -%}
{%- else -%}
{{- message["content"] -}}
{%- endif -%}
{%- endfor -%}
"""
TEMPLATES = {"alpaca": _ALPACA, "chat": _CHAT, "plain": _PLAIN}
DEFAULTS = {INSTRUCTION.name: "alpaca", CHAT.name: "chat", COMPLETION.name: "plain", PREFERENCE.name: "plain"}


def choose(name: str | None, form: Form, tokenizer: Tokenizer) -> Template:
    """The template of a run.

    Args:
        name: of a built-in one, or a file; None for the tokenizer's own, else the one for ``form``.
        form: of the examples.
        tokenizer: the one that will encode what the template writes.

    Raises:
        GptcliError: there is no such template or file, or it is no Jinja2.
    """
    if name is None:
        if tokenizer.chat_template is not None:
            return Template(OF_CHECKPOINT, tokenizer.chat_template, tokenizer)
        name = DEFAULTS[form.name]
    if name in TEMPLATES:
        return Template(name, TEMPLATES[name], tokenizer)
    if not Path(name).is_file():
        raise SettingError(f"{{template}} is {name!r}, neither a file nor a template.", nearest(name, TEMPLATES))
    return Template(name, documents.read_text(name), tokenizer)
