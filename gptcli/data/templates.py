"""Templates that turn messages into one text: Jinja2 in a sandbox, by the rules of transformers.

A template marks answers by ``{% generation %}`` and ``{% endgeneration %}``. What it writes is encoded at once, so that
the tokens of a conversation are those that ``AutoTokenizer.apply_chat_template`` gives.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptcli.data import documents
from gptcli.data.forms import CHAT, COMPLETION, INSTRUCTION, Form, Messages
from gptcli.errors import GptcliError, SettingError, nearest
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.offsets import special_texts

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
DEFAULTS = {INSTRUCTION.name: "alpaca", CHAT.name: "chat", COMPLETION.name: "plain"}


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text, and the answers in it as (first character, one past the last)."""

    text: str
    answers: tuple[tuple[int, int], ...]


class _Answers(Extension):
    """The tags ``{% generation %}`` and ``{% endgeneration %}``, which note where an answer stands in the text."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.written: list[str] = []
        self.found: list[tuple[int, int]] = []
        environment.extend(answers=self)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        text = caller()
        begin = sum(map(len, self.written))
        self.found.append((begin, begin + len(text)))
        return text

    def collect(self, pieces: Iterable[str]) -> Rendered:
        self.written, self.found = [], []
        for piece in pieces:
            self.written.append(piece)
        return Rendered("".join(self.written), tuple(self.found))


class Template:
    """A template, compiled for a tokenizer.

    Args:
        name: for messages: of a built-in one, or its file.
        source: Jinja2.
        tokenizer: gives the template its ``eos_token`` and ``bos_token``, as AutoTokenizer does.

    Attributes:
        marks_answers: whether it has ``{% generation %}``.

    Raises:
        GptcliError: it is no template.
    """

    def __init__(self, name: str, source: str, tokenizer: Tokenizer) -> None:
        self.name, self.source = name, source
        end = end_text(tokenizer)
        self._tokens = {} if end is None else {"bos_token": end, "eos_token": end}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Answers, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
            self.marks_answers = any(environment.parse(source).find_all(nodes.CallBlock))
        except TemplateSyntaxError as error:
            raise GptcliError(
                f"The template {name} is no Jinja2: line {error.lineno}: {error.message}",
                "Correct the line; templates are those that transformers takes as chat_template.",
            ) from error
        self._answers: _Answers = environment.answers  # type: ignore[attr-defined]

    def render(self, messages: Messages, *, prompt: bool = False) -> Rendered:
        """The text of a conversation.

        Args:
            messages: each with ``role`` and ``content``.
            prompt: whether an answer is to follow: the text ends with what begins one (add_generation_prompt).

        Raises:
            GptcliError: the template fails, or refuses the messages.
        """
        try:
            return self._answers.collect(
                self._template.generate(
                    messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **self._tokens
                )
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            what = " ".join(str(error).split())[:200] or type(error).__name__
            raise GptcliError(f"The template {self.name} fails: {what}", "Choose another, or correct it.") from error

    def wrap(self, prompt: str) -> str:
        """``prompt`` as a user's message, up to where the answer begins."""
        return self.render([{"role": "user", "content": prompt}], prompt=True).text

    def end(self) -> str:
        """What it writes after an answer; empty if nothing."""
        answer = "An answer."
        rendered = self.render([{"role": "user", "content": "A."}, {"role": "assistant", "content": answer}])
        if not rendered.answers:
            return ""
        begin, end = rendered.answers[-1]
        return rendered.text[begin:end].partition(answer)[2]


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
            return Template("of the checkpoint", tokenizer.chat_template, tokenizer)
        name = DEFAULTS[form.name]
    if name in TEMPLATES:
        return Template(name, TEMPLATES[name], tokenizer)
    if not Path(name).is_file():
        raise SettingError(f"{{template}} is {name!r}, neither a file nor a template.", nearest(name, TEMPLATES))
    return Template(name, documents.read_text(name), tokenizer)


def stored(tokenizer: Tokenizer) -> Template | None:
    """The template that a checkpoint was taught with; None if there is none.

    Raises:
        GptcliError: what is stored is no Jinja2.
    """
    source = tokenizer.chat_template
    return None if source is None else Template("of the checkpoint", source, tokenizer)


def end_text(tokenizer: Tokenizer) -> str | None:
    """The text of the end-of-text token; None if there is none."""
    if tokenizer.eot_id is None:
        return None
    return tokenizer.decode([tokenizer.eot_id])


def special_in(texts: Sequence[str], tokenizer: Tokenizer) -> str | None:
    """The first special token whose text stands in one of ``texts``: encoding would take it for the token."""
    special = special_texts(tokenizer)
    return next((token for token in special if any(token in text for text in texts)), None)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)
