"""Templates: what they write, where answers stand in it, and that AutoTokenizer gives the same tokens."""

import random
from pathlib import Path
from typing import Any

import pytest
from vocabularies import directory, trained

from gptcli import tokenizers
from gptcli.config.model import GPTConfig
from gptcli.data import forms, templates
from gptcli.data.templates import TEMPLATES
from gptcli.errors import GptcliError, SettingError
from gptcli.tokenizers import Tokenizer, offsets
from gptcli.tokenizers.choice import read
from gptcli.tokenizers.offsets import special_in
from gptcli.tokenizers.template import Messages, Template, stored

GPT2, CHAR = tokenizers.build("gpt2"), tokenizers.build("char", "abc\n:#UserAistnt.")
TALK: Messages = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi "},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "How?"},
    {"role": "assistant", "content": "Well."},
]


def made(name: str, tokenizer: Tokenizer = GPT2) -> Template:
    return Template(name, TEMPLATES[name], tokenizer)


def answers(template: Template, messages: Messages) -> list[str]:
    rendered = template.render(messages)
    return [rendered.text[begin:end] for begin, end in rendered.answers]


def test_alpaca_is_the_courses() -> None:
    head = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n"
    )
    prompt = forms.with_input("Correct it.", "freind")
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "friend"}]
    body = "Correct it.\n\n### Input:\nfreind\n\n### Response:\n"
    assert made("alpaca").render(messages).text == f"{head}{body}friend<|endoftext|>"
    assert made("alpaca").wrap(prompt) == head + body
    assert answers(made("alpaca"), messages) == ["friend<|endoftext|>"]


def test_the_chat_template_names_roles() -> None:
    assert made("chat").render(TALK).text == (
        "System:\nBe kind.\n\nUser:\nHi\n\nAssistant:\nHello<|endoftext|>"
        "\n\nUser:\nHow?\n\nAssistant:\nWell.<|endoftext|>"
    )
    assert answers(made("chat"), TALK) == ["Hello<|endoftext|>", "Well.<|endoftext|>"]
    assert made("chat").render(TALK[:2], prompt=True).text == "System:\nBe kind.\n\nUser:\nHi\n\nAssistant:\n"


def test_the_plain_template_adds_the_end_alone() -> None:
    pair = [{"role": "user", "content": " 2 + 2 ="}, {"role": "assistant", "content": " 4\n"}]
    assert made("plain").render(pair).text == " 2 + 2 = 4\n<|endoftext|>"
    assert answers(made("plain"), pair) == [" 4\n<|endoftext|>"]
    assert made("plain").wrap(" 2 + 2 =") == " 2 + 2 ="


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_what_its_conversation_begins_with(name: str) -> None:
    template = made(name)
    whole, prompt = template.render(TALK), template.render(TALK[:-1], prompt=True)
    assert whole.text[: whole.answers[-1][0]] == prompt.text
    assert template.marks_answers


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_end_with_end_of_text_or_with_the_templates_own_end(name: str) -> None:
    assert made(name).end() == "<|endoftext|>"
    own = made(name, CHAR).end()
    assert own.startswith("\n\n")
    assert answers(made(name, CHAR), TALK)[0] == f"Hello{own}"


def test_templates_are_rendered_as_transformers_does(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for message in messages %}\n"
        "    {% if loop.index == 3 %}{% break %}{% endif %}\n"
        "{{ message.content | tojson }}\n"
        "{% endfor %}\n",
        encoding="utf-8",
    )
    template = templates.choose(str(file), forms.CHAT, GPT2)
    assert template.render(TALK).text == '"Be kind."\n"Hi "\n'
    assert not template.marks_answers
    assert template.end() == ""


def test_the_template_of_a_checkpoint_goes_before_that_of_the_form() -> None:
    tokenizer = tokenizers.build("byte")
    assert templates.choose(None, forms.CHAT, tokenizer).name == "chat"
    assert stored(tokenizer) is None
    tokenizer.chat_template = "{{ messages[0].content }}!"
    assert templates.choose(None, forms.CHAT, tokenizer).wrap("Hi") == "Hi!"
    assert templates.choose("alpaca", forms.CHAT, tokenizer).name == "alpaca"
    own = stored(tokenizer)
    assert own is not None
    assert own.wrap("Hi") == "Hi!"


BAD = [
    ("{% for %}", "is no Jinja2: line 1"),
    ("a\n{% generation %}", "is no Jinja2: line 2"),
    ("{{ raise_exception('not so') }}", "fails: not so"),
    ("{{ messages[9].content }}", "fails: list object has no element 9"),
    ("{{ messages.append(1) }}", "fails: "),
    ("{{ ''.__class__.__mro__ }}{{ ().__class__.__bases__[0].__subclasses__() }}", "fails: access to attribute"),
    ("{{ 1 / 0 }}", "fails: division by zero"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "said"), BAD)
def test_templates_that_fail(source: str, said: str) -> None:
    with pytest.raises(GptcliError) as caught:
        Template("mine", source, GPT2).render(TALK)
    assert said in caught.value.message
    assert caught.value.hint


def test_a_template_that_is_not_there() -> None:
    with pytest.raises(SettingError) as caught:
        templates.choose("alpacca", forms.CHAT, GPT2)
    assert "neither a file nor a template" in caught.value.message
    assert "Did you mean alpaca?" in caught.value.hint


def test_special_tokens_are_found_in_texts() -> None:
    assert special_in(["plain", "a <|endoftext|>"], GPT2) == "<|endoftext|>"
    assert special_in(["a <|endoftext|>"], CHAR) is None
    assert special_in(["<|unk|>"], tokenizers.build("word", "a b")) == "<|unk|>"


PIECES = (
    *"aäß 1\n\t'",
    "Hello",
    "  ",
    " world",
    "\n\n",
    "日本",
    "🙂",
    "👍🏽",
    "don't",
    "### ",
    "{{ x }}",
    "{% if %}",
    ".",
)


def conversations(count: int, pieces: tuple[str, ...] = PIECES) -> list[Messages]:
    source = random.Random(7)

    def text() -> str:
        return "".join(source.choices(pieces, k=source.randint(1, 12))) or "a"

    found = []
    for _ in range(count):
        turns = [
            {"role": role, "content": text()} for _ in range(source.randint(1, 3)) for role in ("user", "assistant")
        ]
        found.append(([{"role": "system", "content": text()}] if source.random() < 0.3 else []) + turns)
    return found


def saved(kind: str, folder: Path) -> Tokenizer:
    if kind == "bpe":
        return read(directory(folder / "theirs", trained()))
    letters = "".join(PIECES) + "SystemUserAssistant:\nBelow is an instruction that describes a task. Write a response "
    return tokenizers.build(kind, letters + "that appropriately completes the request.#End Instruction Response Input")


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["gpt2", "byte", "bpe", "char", "word"])
def test_autotokenizer_gives_the_same_ids_and_answers(kind: str, name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from gptcli.checkpoints import checkpoint
    from gptcli.model.gpt import GPTModel

    tokenizer = saved(kind, tmp_path)
    tokenizer.chat_template = TEMPLATES[name]
    shape = GPTConfig(vocab_size=tokenizer.vocab_size, context_length=8, emb_dim=8, n_heads=1, n_layers=1)
    checkpoint.create(tmp_path / "run", GPTModel(shape), tokenizer, {})
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    ours = checkpoint.load(tmp_path / "run").tokenizer
    template = stored(ours)
    assert template is not None
    for messages in conversations(500):
        rendered = template.render(messages)
        ids, spans = offsets.encode(ours, rendered.text)
        mask = [int(any(a < end and b > begin for begin, end in rendered.answers)) for a, b in spans]
        expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert ids == expected["input_ids"]
        assert mask == expected["assistant_masks"]
        prompt = template.render(messages[:-1], prompt=True).text
        assert theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True) == prompt
