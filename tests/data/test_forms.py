"""Which form a row is of, how other names are mapped to ours, and what is said of a row that lacks something."""

from typing import Any

import pytest

from gptcli.data import forms
from gptcli.data.rows import BadRowError, Row
from gptcli.errors import GptcliError, SettingError
from gptcli.tokenizers.template import Messages


def row(**fields: Any) -> Row:
    return Row("rows.jsonl", 3, fields)


def messages(**fields: Any) -> Messages:
    found = row(**fields)
    form = forms.recognise(found, {})
    return forms.messages_of(forms.mapped(found, form, {}), form)


USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (("text",), forms.TEXT),
        (("text", "label"), forms.LABEL),
        (("prompt", "completion", "id"), forms.COMPLETION),
        (("instruction", "output"), forms.INSTRUCTION),
        (("instruction", "input", "output", "text"), forms.INSTRUCTION),
        (("messages",), forms.CHAT),
        (("prompt", "chosen", "rejected"), forms.PREFERENCE),
    ],
)
def test_a_row_is_of_the_form_whose_fields_it_has(names: tuple[str, ...], form: forms.Form) -> None:
    assert forms.recognise(row(**dict.fromkeys(names, "x")), {}) is form


def test_rows_become_messages() -> None:
    pair = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " A"}]
    assert messages(prompt="Q", completion=" A") == messages(instruction="Q", output=" A") == pair
    assert messages(instruction="Q", input=None, output=" A") == messages(instruction="Q", input="", output=" A")
    assert messages(instruction="Q ", input="X\n", output="A")[0]["content"] == "Q\n\n### Input:\nX"
    system = {"role": "system", "content": "Be kind."}
    assert messages(messages=[system, USER | {"id": 7}, ASSISTANT]) == [system, USER, ASSISTANT]


def test_other_names_are_mapped() -> None:
    fields = forms.parse_fields("prompt=question, completion=answer")
    assert fields == {"prompt": "question", "completion": "answer"}
    found = row(question="Q", answer="A", text="ignored", label="x")
    form = forms.recognise(found, fields)
    assert form is forms.COMPLETION
    assert forms.mapped(found, form, fields).fields == {"prompt": "Q", "completion": "A"}


def test_only_mapped_fields_count() -> None:
    found, fields = row(text="T", label="L"), forms.parse_fields("text=text")
    form = forms.recognise(found, fields)
    assert form is forms.TEXT
    assert forms.mapped(found, form, fields).fields == {"text": "T"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("prompt", "'prompt', which is no pair of names"),
        ("prompt=", "'prompt=', which is no pair"),
        ("prompt=a,,completion=b", "'', which is no pair"),
        ("promt=a,completion=b", "'promt' on the left, which no form has"),
        ("prompt=a,prompt=b", "maps 'prompt' twice"),
        ("prompt=question", "maps prompt, which is no whole form"),
    ],
)
def test_fields_that_cannot_be_mapped(fields: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        forms.parse_fields(fields)
    assert said in caught.value.message
    assert caught.value.hint


def test_fields_of_no_form_are_named() -> None:
    with pytest.raises(GptcliError) as caught:
        forms.recognise(row(question="Q", answer="A"), {})
    assert (
        caught.value.message == "rows.jsonl, line 3 has the fields 'question', 'answer', which is no form of example."
    )
    assert "prompt=question,completion=answer" in caught.value.hint


BAD = [
    ({"prompt": "Q", "completion": ""}, "field 'completion' is empty"),
    ({"prompt": " \n", "completion": "A"}, "field 'prompt' is empty"),
    ({"prompt": "Q", "completion": 7}, "field 'completion' is 7, not a text"),
    ({"instruction": "Q", "output": None}, "field 'output' is null, not a text"),
    ({"instruction": "Q", "input": ["x"], "output": "A"}, "field 'input' is [\"x\"], not a text"),
    ({"messages": "Hi"}, "field 'messages' is \"Hi\", not a list"),
    ({"messages": []}, "field 'messages' is [], not a list"),
    ({"messages": ["Hi"]}, "message 1 is \"Hi\", not an object"),
    ({"messages": [{"from": "user"}]}, "message 1 is {\"from\": \"user\"}, not an object"),
    ({"messages": [USER | {"role": "human"}]}, "message 1 has the role \"human\""),
    ({"messages": [USER, ASSISTANT | {"content": ""}]}, "message 2: its content is empty"),
    ({"messages": [USER | {"content": [1]}]}, "message 1: its content is [1], not a text"),
    ({"messages": [USER, ASSISTANT, USER]}, "message 3, the last one, is the user's"),
    ({"messages": [ASSISTANT]}, "message 1 is the assistant's"),
    ({"messages": [USER, USER | {"role": "system"}, ASSISTANT]}, "message 2 is the system's"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), BAD, ids=[each[1] for each in BAD])
def test_a_row_that_cannot_be_used(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRowError) as caught:
        messages(**fields)
    assert caught.value.message.startswith("rows.jsonl, line 3")
    assert said in caught.value.message
    assert "Expected: " in caught.value.hint


def test_a_row_without_a_field() -> None:
    with pytest.raises(BadRowError) as caught:
        forms.mapped(row(prompt="Q", answer="A"), forms.COMPLETION, {})
    assert caught.value.message == "rows.jsonl, line 3 has no field 'completion'; it has the fields 'prompt', 'answer'."


def test_files_of_two_forms_are_refused() -> None:
    assert forms.check_one_form([("a", forms.CHAT), ("b", forms.CHAT)]) is forms.CHAT
    with pytest.raises(GptcliError, match=r"a has chats \(messages\), but b has texts \(text\)"):
        forms.check_one_form([("a", forms.CHAT), ("b", forms.TEXT)])
