"""Files of rows and of running text as examples: encoded, cut to the context, and split."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ParamSpec, TypeVar

from gptcli.config.finetune import FinetuneConfig, LossOn
from gptcli.data import forms, labels, rows, templates
from gptcli.data.documents import Document
from gptcli.data.examples import Example
from gptcli.data.forms import CONVERSATIONS, LABEL, PREFERENCE, TEXT, Form
from gptcli.data.rows import BadRowError, Row
from gptcli.errors import GptcliError, SettingError
from gptcli.model.loss import IGNORED
from gptcli.tokenizers import Tokenizer, offsets
from gptcli.tokenizers.offsets import end_text, special_in
from gptcli.tokenizers.template import Messages, Rendered, Template

P = ParamSpec("P")
T = TypeVar("T")

SKIP = "{skip_bad} leaves such rows out."
LEAST_WINDOWS, LEAST_WINDOW = 10, 16  # a short text is cut in so many windows, of so many tokens
FEW = 50  # examples below which a line says that they are few


@dataclass
class Encoded:
    """The examples of a run.

    Attributes:
        train, validation: the examples; no validation where there is one only.
        characters: of all texts as they are encoded.
        template: the source of the template; None for running text.
        prompt: of an example, as a user would type it; empty for running text.
        labels, label_weights: of labelled texts, and how much each counts in the loss; else empty.
        said: lines on what was read; ``notes``: lines on what was cut or left out.
    """

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    characters: int = 0
    template: str | None = None
    prompt: str = ""
    labels: tuple[str, ...] = ()
    label_weights: tuple[float, ...] = ()
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def length(self) -> float:
        """The mean number of tokens of the examples to train on."""
        return sum(len(example.ids) for example in self.train) / len(self.train)


@dataclass
class _Counts:
    cut: int = 0
    shortened: int = 0  # whose answer was cut as well
    left_out: int = 0
    first: str = ""  # why the first one was left out

    def lines(self, context: int) -> Iterator[str]:
        if self.left_out:
            rows_are = "row is" if self.left_out == 1 else "rows are"
            yield f"{self.left_out:,} {rows_are} left out. The first: {self.first}"
        if self.cut:
            examples_have = "example has" if self.cut == 1 else "examples have"
            ends = f" In {self.shortened:,} of them the end of the answer is cut off too." if self.shortened else ""
            what = f"{self.cut:,} {examples_have} more than {context:,} tokens"
            yield f"{what}: the beginning of the prompt is cut off.{ends}"


def encode(texts: Sequence[str], settings: FinetuneConfig, tokenizer: Tokenizer, context: int) -> Encoded:
    """The examples in files, split by example.

    Args:
        texts: files and folders of rows or of running text, globs and ``-``.
        settings: how to read and split them.
        tokenizer: the checkpoint's.
        context: the most tokens that the model reads of an example.

    Raises:
        GptcliError: a file cannot be read, an example cannot be used, files differ in their form, none is left.
    """
    fields = forms.parse_fields(settings.fields) if settings.fields is not None else {}
    counts = _Counts()

    def on_bad(error: BadRowError) -> None:
        if not settings.skip_bad:
            raise error
        counts.left_out += 1
        counts.first = counts.first or error.message

    documents = rows.read_files(texts, encoding=settings.encoding, errors=settings.errors)
    read = [(document.name, *_read(document, fields, on_bad)) for document in documents]
    form = forms.check_one_form([(name, each) for name, each, _ in read])
    _check_form(form, read[0][0], settings)
    found = [row for _, _, each in read for row in each]
    has_answers = form in (*CONVERSATIONS, PREFERENCE)
    template = templates.choose(settings.template, form, tokenizer) if has_answers else None
    if template is not None and settings.loss_on == "answers" and not template.marks_answers:
        raise SettingError(
            f"The template {template.name} has no {{% generation %}}, so nothing says what the answers are.",
            "Put {% generation %} and {% endgeneration %} around them, choose another one ({template} chat), or learn "
            "all of the text ({loss_on} all).",
        )
    encoded = Encoded(template=None if template is None else template.source)
    if form is LABEL:
        _labelled(found, settings, tokenizer, context, encoded, on_bad)
        encoded.said.insert(0, _summary(read, form, None, [[each] for each in (*encoded.train, *encoded.validation)]))
        encoded.notes += counts.lines(context)
        return encoded
    groups = (
        _windows(found, tokenizer, context, encoded, on_bad)
        if template is None
        else _conversations(found, form, template, settings.loss_on, tokenizer, context, counts, encoded, on_bad)
    )
    if not groups:
        raise GptcliError(
            f"No example of {', '.join(texts)} can be used.", counts.first or "Give a file with an example a row."
        )
    encoded.said.insert(0, _summary(read, form, template, groups))
    encoded.notes += counts.lines(context)
    _split(groups, settings, encoded)
    return encoded


def _read(
    document: Document, fields: Mapping[str, str], on_bad: Callable[[BadRowError], None]
) -> tuple[Form, list[Row]]:
    """The form of a file and its rows, with our names for their fields; running text is one row."""
    if not rows.is_rows(document.name):
        return TEXT, [Row(document.name, 1, {"text": document.text})]
    form: Form | None = None
    found: list[Row] = []
    for row in rows.read(document, on_bad):
        form = form or forms.recognise(row, fields)
        try:
            found.append(forms.mapped(row, form, fields))
        except BadRowError as error:
            on_bad(error)
    if form is None:
        raise GptcliError(f"{document.name} has no row with an example in it.", "Give one example a row.")
    return form, found


def _check_form(form: Form, file: str, settings: FinetuneConfig) -> None:
    has = f"{file} has {form.name} ({', '.join(form.fields)})"
    if form is PREFERENCE and settings.method != "dpo":
        raise SettingError(
            f"{has}, which {{method}} {settings.method} does not learn from.",
            "Give {method} dpo; to learn the chosen answers alone: {fields} prompt=prompt,completion=chosen",
        )
    if form is not PREFERENCE and settings.method == "dpo":
        raise SettingError(
            f"{has}, but {{method}} dpo learns from preferences.",
            f"Give rows with {', '.join(PREFERENCE.fields)}, or leave {{method}} out.",
        )


def _summary(
    read: Sequence[tuple[str, Form, list[Row]]], form: Form, template: Template | None, groups: Sequence[list[Example]]
) -> str:
    where = read[0][0] if len(read) == 1 else f"{len(read)} files"
    if all(not rows.is_rows(name) for name, _, _ in read):
        return f"{where}: running text in {sum(map(len, groups)):,} windows."
    by = f", written by the template {template.name}" if template is not None else ""
    return f"{where}: {len(groups):,} {form.name} ({', '.join(form.fields)}){by}."


def _conversations(
    found: Sequence[Row], form: Form, template: Template, loss_on: LossOn, tokenizer: Tokenizer, context: int,
    counts: _Counts, encoded: Encoded, on_bad: Callable[[BadRowError], None],
) -> list[list[Example]]:  # fmt: skip
    groups = []
    for row in found:
        try:
            conversations = forms.answers_of(row) if form is PREFERENCE else [forms.messages_of(row, form)]
            read = [_tokens_of(row, messages, template, tokenizer) for messages in conversations]
        except BadRowError as error:
            on_bad(error)
            continue
        groups.append([cut(ids, learned, loss_on, context, counts) for ids, learned, _ in read])
        encoded.characters += sum(characters for *_, characters in read)
        prompt = conversations[0][-2]["content"]
        if not encoded.prompt or ("\n" in encoded.prompt and "\n" not in prompt):
            encoded.prompt = prompt
    return groups


def _tokens_of(
    row: Row, messages: Messages, template: Template, tokenizer: Tokenizer
) -> tuple[list[int], list[bool], int]:
    """The ids of a conversation, which of them belong to an answer, and the number of its characters."""
    _refuse_special([message["content"] for message in messages], row, tokenizer)
    rendered = _at(row, template.render, messages)
    ids, learned = _at(row, marked, tokenizer, rendered)
    if not any(learned[1:]) or len(ids) < 2:
        raise BadRowError(
            f"{row.place} has no token of an answer after a prompt.", "Expected: a prompt and an answer. " + SKIP
        )
    return ids, learned, len(rendered.text)


def _at(row: Row, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``work`` returns; its error names the row, which can then be left out."""
    try:
        return work(*args, **kwargs)
    except GptcliError as error:
        raise BadRowError(f"{row.place}: {error.message}", f"{error.hint} {SKIP}") from error


def marked(tokenizer: Tokenizer, rendered: Rendered) -> tuple[list[int], list[bool]]:
    """The ids of a text, and for each whether it belongs to an answer: whether any of its characters does.

    So does transformers decide it (``return_assistant_tokens_mask``).
    """
    ids, spans = offsets.encode(tokenizer, rendered.text)
    learned = [False] * len(ids)
    for begin, end in rendered.answers:
        for place, (first, last) in enumerate(spans):
            learned[place] |= first < end and last > begin
    return ids, learned


def cut(ids: list[int], learned: list[bool], loss_on: LossOn, context: int, counts: "_Counts") -> Example:
    """An example of at most ``context`` inputs: without the front of the prompt, and if its last answer alone is too
    long, without the end of that."""
    excess = len(ids) - context - 1
    if excess > 0:
        last = len(ids) - 1
        while not learned[last]:
            last -= 1
        while last > 0 and learned[last - 1]:
            last -= 1
        front = min(excess, max(0, last - 1))
        counts.cut += 1
        counts.shortened += front < excess
        ids, learned = ids[front:][: context + 1], learned[front:][: context + 1]
    counted = learned if loss_on == "answers" else [True] * len(ids)
    targets = [token_id if counts_here else IGNORED for token_id, counts_here in zip(ids, counted, strict=True)]
    return Example(ids[:-1], targets[1:])


def _windows(
    found: Sequence[Row], tokenizer: Tokenizer, context: int, encoded: Encoded, on_bad: Callable[[BadRowError], None]
) -> list[list[Example]]:
    """The windows of every text, which are adjacent; the tokens of a text end with the end of text."""
    texts = []
    end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    for row in found:
        try:
            text = forms.text_of(row)
            _refuse_special([text], row, tokenizer)
            ids = [*_at(row, tokenizer.encode, text), *end]
            if len(ids) > 1:
                texts.append(ids)
            encoded.characters += len(text)
        except BadRowError as error:
            on_bad(error)
    total = sum(map(len, texts))
    window = context
    if sum(-(-len(ids) // context) for ids in texts) < LEAST_WINDOWS and len(texts) < LEAST_WINDOWS:
        window = min(context, max(LEAST_WINDOW, total // LEAST_WINDOWS))
    if window < context:
        encoded.said.append(
            f"The text is short, {total:,} tokens: it is cut in windows of {window}, so that some can be held out."
        )
    groups = []
    for ids in texts:
        starts = [*range(0, len(ids) - 1, window), len(ids) - 1]
        groups.append([Example(ids[begin:end], ids[begin + 1 : end + 1]) for begin, end in pairwise(starts)])
    # A row stays on one side of the split; of running text, whose windows share no token, each window is on its own.
    return groups if len(groups) >= LEAST_WINDOWS else [[example] for group in groups for example in group]


def _labelled(
    found: Sequence[Row], settings: FinetuneConfig, tokenizer: Tokenizer, context: int, encoded: Encoded,
    on_bad: Callable[[BadRowError], None],
) -> None:  # fmt: skip
    for name, default in (("loss_on", "answers"), ("template", None)):
        if getattr(settings, name) != default:
            raise SettingError(
                f"{{{name}}} is for texts that a model writes, and {found[0].file} has labels.",
                f"Leave {{{name}}} out; to learn the texts alone: {{fields}} text=text",
            )
    read = labels.read(found, tokenizer, context, on_bad)
    if not read:
        raise GptcliError(f"No row of {found[0].file} can be used.", "Give rows with the fields text and label.")
    names = encoded.labels = labels.labels_of(read)
    train, validation = labels.split(read, settings.train_share, settings.seed)
    encoded.train, encoded.validation = ([labels.example(each, names) for each in part] for part in (train, validation))
    encoded.label_weights = labels.weights(train, names)
    encoded.characters, encoded.prompt = sum(len(each.text) for each in read), read[0].text
    encoded.said = labels.lines(read, names, encoded.label_weights)
    cut = sum(each.cut for each in read)
    if cut:
        encoded.notes.append(f"{cut:,} texts have more than {context:,} tokens: only their first {context:,} are read.")
    _note_few(len(read), len(validation), encoded)


def _refuse_special(texts: Sequence[str], row: Row, tokenizer: Tokenizer) -> None:
    special = special_in(texts, tokenizer)
    if special is not None:
        what = "the end of text" if special == end_text(tokenizer) else "a special token"
        raise BadRowError(
            f"{row.place} has {special!r} in it, which is {what}.",
            "Remove it: gptcli puts it after each answer. " + SKIP,
        )


def _split(groups: list[list[Example]], settings: FinetuneConfig, encoded: Encoded) -> None:
    """Put a random share of the groups, at least one of each where there are two, into either part."""
    numbers = list(range(len(groups)))
    random.Random(settings.seed).shuffle(numbers)
    held_out = len(groups) - int(settings.train_share * len(groups))
    if settings.train_share < 1:
        held_out = min(max(1, held_out), len(groups) - 1)
    chosen = set(numbers[:held_out])
    for number, group in enumerate(groups):
        (encoded.validation if number in chosen else encoded.train).extend(group)
    _note_few(len(groups), held_out, encoded)


def _note_few(count: int, held_out: int, encoded: Encoded) -> None:
    if count < FEW:
        few = f"{count} example{'s are' if count > 1 else ' is'} few"
        judge = f"{held_out} held out say which weights are best" if held_out else "none is held out to validate on"
        encoded.notes.append(f"{few}: the model may memorise them, and {judge}.")
