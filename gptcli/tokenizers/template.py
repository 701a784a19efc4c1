"""Templates that turn messages into one text: Jinja2 in a sandbox, by the rules of transformers.

A template marks answers by ``{% generation %}`` and ``{% endgeneration %}``. What it writes is encoded at once, so that
the tokens of a conversation are those that ``AutoTokenizer.apply_chat_template`` gives.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptcli.errors import GptcliError
from gptcli.tokenizers.offsets import end_text
from gptcli.tokenizers.protocol import Tokenizer

Messages = Sequence[Mapping[str, str]]
OF_CHECKPOINT = "of the checkpoint"


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


def stored(tokenizer: Tokenizer) -> Template | None:
    """The template that a checkpoint was taught with; None if there is none.

    Raises:
        GptcliError: what is stored is no Jinja2.
    """
    source = tokenizer.chat_template
    return None if source is None else Template(OF_CHECKPOINT, source, tokenizer)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)
