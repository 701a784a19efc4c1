"""gptcli classify: the label of a text, and its probability."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import next_steps, options, render
from gptcli.config.compute import ComputeConfig
from gptcli.config.evaluation import RowsConfig
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.data.documents import Document
    from gptcli.inference.classifier import Classification, Classifier


def classify(
    compute: ComputeConfig,
    reading: RowsConfig,
    text: Annotated[
        str | None,
        typer.Argument(help="A text, a file (.jsonl, .json, .csv, .tsv: each row's text), or - for stdin."),
    ] = None,
    checkpoint: options.Checkpoint = None,
    adapter: options.Adapter = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Print the label of a text and its probability, or those of every row of a file.

    Prints label and probability, separated by a tab, on a line for each text; with --json one JSON object a line.
    """
    if text is None:
        raise GptcliError("There is no text to classify.", "Give it in quotes, a file of rows, or - for stdin.")
    from time import perf_counter

    from gptcli.inference.classifier import Classifier

    path, its_adapter = options.find_model(checkpoint, adapter)
    document = _document(text, reading)
    classifier = Classifier(
        path, adapter=its_adapter, device=compute.device, dtype=compute.dtype, threads=compute.threads
    )
    if checkpoint is None and adapter is None:
        render.note(f"Using {path}, the newest checkpoint.")
    if isinstance(document, str):
        (found,) = classifier.stream([("", document)])
        _say_what_was_cut(int(found.cut), 1, classifier)
        _print({}, found, as_json)
        if not as_json:
            model = next_steps.model_words(checkpoint, adapter, path)
            next_steps.suggest_for_text("See what the heads attend to", "inspect-attn", document, model)
        return
    started, count, cut, tokens = perf_counter(), 0, 0, 0
    records: list[dict[str, Any]] = []  # of the rows that have been read and not yet printed
    with render.progress(None, "row", path.name) as bar:
        for found in classifier.stream(_texts(document, reading.fields, records), bar.update):
            _print(records.pop(0), found, as_json)
            count, cut, tokens = count + 1, cut + found.cut, tokens + found.tokens
    if not count:
        raise GptcliError(f"{document.name} holds no row.", 'Expected: one object a line: {"text": "..."}.')
    _say_what_was_cut(cut, count, classifier)
    seconds = perf_counter() - started
    render.detail(f"{count:,} rows, {tokens:,} tokens: {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s.")
    if not as_json and text != "-":
        shown = next_steps.model_words(checkpoint, adapter, path)
        names = () if reading.fields is None else ("--fields", reading.fields)
        next_steps.suggest_for_text("Print the probability of every label", "classify", text, shown, "--json", *names)


def _document(text: str, reading: RowsConfig) -> "str | Document":
    """One text, or a document with rows: a file of rows, or stdin whose first character begins JSON."""
    from gptcli.data import documents, rows
    from gptcli.data.documents import Document

    if text != "-" and not _is_file(text):
        return options.check_text(text, "The text")
    (document,) = documents.read_documents([text], encoding=reading.encoding, errors=reading.errors)
    if text == "-" and document.text.lstrip().startswith(("{", "[")):
        return Document("stdin.jsonl", document.text)
    return document if rows.is_rows(document.name) else document.text


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a name can be
        return False


def _texts(document: "Document", fields: str | None, records: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Place and text of every row; what is printed of it goes into ``records``."""
    from gptcli.data import forms, rows

    name = forms.parse_fields(fields).get("text", "text") if fields is not None else "text"

    for row in rows.read(document, rows.refuse):
        if name not in row.fields:
            raise GptcliError(
                f"{row.place} has no field {name!r}; it has {', '.join(row.fields)}.",
                "Name the field of the text: --fields text=NAME",
            )
        value = row.fields[name]
        if not isinstance(value, str):
            raise GptcliError(f"{row.place}: field {name!r} is {value!r:.40}, not a text.", "Expected: a text.")
        records.append({"line": row.line, "text": value})
        yield row.place, value


def _print(record: dict[str, Any], found: "Classification", as_json: bool) -> None:
    if as_json:
        said = {"label": found.label, "probability": found.probability, "probabilities": found.probabilities}
        render.print_text(json.dumps({**record, **said}, ensure_ascii=False))
    else:
        render.print_text(f"{found.label}\t{found.probability:.4f}")


def _say_what_was_cut(cut: int, count: int, classifier: "Classifier") -> None:
    if cut:
        context = classifier.config.context_length
        texts = f"{cut:,} of {count:,} texts have" if count > 1 else "The text has"
        render.warn(f"{texts} more than {context:,} tokens: only the first {context:,} are read.")
