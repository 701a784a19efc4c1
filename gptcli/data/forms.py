"""The forms of examples: which fields a row must have, and the messages that it becomes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptcli.data.rows import BadRowError, Row
from gptcli.errors import GptcliError, SettingError, nearest
from gptcli.tokenizers.template import Messages

ROLES = ("system", "user", "assistant")
_SKIP = "{skip_bad} leaves such rows out."
_SHOWN = 10  # fields that a message lists


@dataclass(frozen=True)
class Form:
    """A form of examples: its name in the plural, the fields it must have, and those it may have."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields, in the order that a person would write them."""
        return (*self.required[:1], *self.optional, *self.required[1:])


CHAT = Form("chats", ("messages",))
PREFERENCE = Form("preferences", ("prompt", "chosen", "rejected"))
INSTRUCTION = Form("instructions", ("instruction", "output"), ("input",))
COMPLETION = Form("prompts with completions", ("prompt", "completion"))
LABEL = Form("labelled texts", ("text", "label"))
TEXT = Form("texts", ("text",))
FORMS = (CHAT, PREFERENCE, INSTRUCTION, COMPLETION, LABEL, TEXT)  # a row is of the first one whose fields it has
CONVERSATIONS = (CHAT, INSTRUCTION, COMPLETION)
NAMES = tuple(dict.fromkeys(name for form in FORMS for name in form.fields))


def parse_fields(text: str) -> dict[str, str]:
    """``prompt=question,completion=answer`` as our field -> the rows' field.

    Raises:
        SettingError: a part is no pair, a name on the left is unknown or given twice, or the names are no form.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        ours, sign, theirs = (each.strip() for each in part.partition("="))
        if not (ours and sign and theirs):
            raise SettingError(
                f"{{fields}} has {part.strip()!r}, which is no pair of names.",
                "Give our name and yours, as in {fields} prompt=question,completion=answer",
            )
        if ours not in NAMES:
            raise SettingError(f"{{fields}} has {ours!r} on the left, which no form has.", nearest(ours, NAMES))
        if ours in fields:
            raise SettingError(f"{{fields}} maps {ours!r} twice.", "Map each name once.")
        fields[ours] = theirs
    if _form(fields) is None:
        raise SettingError(f"{{fields}} maps {', '.join(fields)}, which is no whole form of example.", _forms())
    return fields


def recognise(row: Row, fields: Mapping[str, str]) -> Form:
    """The form of a row, by its fields, or by those that ``fields`` maps.

    Raises:
        SettingError: its fields are no form.
    """
    form = _form(fields or row.fields)
    if form is None:
        names = [*row.fields]
        pair = names if len(names) == 2 else ["question", "answer"]
        raise SettingError(
            f"{row.place} has {_listed(names)}, which is no form of example.",
            f"Map the names, as in {{fields}} prompt={pair[0]},completion={pair[1]}. {_forms()}",
        )
    return form


def mapped(row: Row, form: Form, fields: Mapping[str, str]) -> Row:
    """``row`` with our names for the fields of ``form``, and without other fields.

    Raises:
        BadRowError: a field of the form is missing.
    """
    found: dict[str, Any] = {}
    for name in form.fields:
        theirs = fields.get(name, name) if fields else name
        if theirs in row.fields:
            found[name] = row.fields[theirs]
        elif name in form.required or name in fields:
            raise BadRowError(
                f"{row.place} has no field {theirs!r}; it has {_listed([*row.fields])}.",
                f"Expected: {', '.join(fields.get(each, each) for each in form.required)}. {_SKIP}",
            )
    return replace(row, fields=found)


def text_of(row: Row, field: str = "text") -> str:
    """The text in a field of a mapped row.

    Raises:
        BadRowError: it is no text, or white space alone.
    """
    value = row.fields[field]
    if not isinstance(value, str):
        raise BadRowError(
            f"{row.place}: field {field!r} is {_shown(value)}, not a text.", f"Expected: a text in quotes. {_SKIP}"
        )
    if not value.strip():
        raise BadRowError(f"{row.place}: field {field!r} is empty.", f"Expected: a text. {_SKIP}")
    return value


def messages_of(row: Row, form: Form) -> Messages:
    """The messages of a mapped row of one of CONVERSATIONS: each with role and content, the last the assistant's.

    Raises:
        BadRowError: a field is no text or empty, or the messages are no conversation.
    """
    if form is CHAT:
        return _chat(row)
    prompt, answer = (text_of(row, name) for name in form.required)
    if form is INSTRUCTION and row.fields.get("input") not in (None, ""):
        prompt = with_input(prompt, text_of(row, "input"))
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def answers_of(row: Row) -> tuple[Messages, Messages]:
    """The conversations of a mapped row of preferences: the prompt with the chosen answer, and with the rejected one.

    Raises:
        BadRowError: a field is no text or empty, or the two answers are the same.
    """
    prompt, chosen, rejected = (text_of(row, name) for name in PREFERENCE.required)
    if chosen == rejected:
        raise BadRowError(
            f"{row.place}: the chosen answer is the rejected one.", f"Expected: two answers that differ. {_SKIP}"
        )
    user = {"role": "user", "content": prompt}
    return [user, {"role": "assistant", "content": chosen}], [user, {"role": "assistant", "content": rejected}]


def with_input(instruction: str, text: str) -> str:
    """An instruction and the text it is about as one message, in Alpaca's form."""
    return f"{instruction.strip()}\n\n### Input:\n{text.strip()}"


def _chat(row: Row) -> Messages:
    messages = row.fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadRowError(
            f"{row.place}: field 'messages' is {_shown(messages)}, not a list of messages.",
            f'Expected: [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]. {_SKIP}',
        )
    return [_message(row, number, each, len(messages)) for number, each in enumerate(messages, 1)]


def _message(row: Row, number: int, message: Any, count: int) -> dict[str, str]:
    place = f"{row.place}, message {number}"
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise BadRowError(
            f"{place} is {_shown(message)}, not an object with role and content.",
            f'Expected: {{"role": "user", "content": "..."}}. {_SKIP}',
        )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise BadRowError(f"{place} has the role {_shown(role)}.", f"Expected: one of {', '.join(ROLES)}. {_SKIP}")
    if not isinstance(content, str) or not content.strip():
        what = "empty" if isinstance(content, str) else f"{_shown(content)}, not a text"
        raise BadRowError(f"{place}: its content is {what}.", f"Expected: a text. {_SKIP}")
    if role == "system" and number > 1:
        raise BadRowError(f"{place} is the system's.", f"Expected: the system's message first. {_SKIP}")
    if number == count and role != "assistant":
        raise BadRowError(f"{place}, the last one, is the {role}'s.", f"Expected: an answer of the assistant. {_SKIP}")
    if number == 1 and role == "assistant":
        raise BadRowError(f"{place} is the assistant's.", f"Expected: a message that it answers. {_SKIP}")
    return {"role": role, "content": content}


def check_one_form(found: Sequence[tuple[str, Form]]) -> Form:
    """The form of all files.

    Args:
        found: the files with their forms.

    Raises:
        GptcliError: two files differ in it.
    """
    (first, form), *others = found
    for name, other in others:
        if other is not form:
            raise GptcliError(
                f"{first} has {form.name} ({', '.join(form.fields)}), but {name} has {other.name} "
                f"({', '.join(other.fields)}).",
                "Fine-tune on one form in each run: the second run begins with the weights of the first.",
            )
    return form


def _form(names: Collection[str]) -> Form | None:
    return next((form for form in FORMS if set(form.required) <= set(names)), None)


def _forms() -> str:
    return f"The forms are: {'; '.join(', '.join(form.fields) for form in reversed(FORMS))}."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = ", ".join(repr(name[:40]) for name in names[:_SHOWN])
    return f"the field{'s' if len(names) > 1 else ''} {shown}{more}"


def _shown(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)[:40]
