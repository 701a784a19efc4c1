"""gptcli evaluate: a figure that says how it was measured."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import classification_view, evaluation_view, next_steps, options, render, task_view
from gptcli.cli.settings import option_of
from gptcli.cli.settings_command import flag
from gptcli.config.compute import ComputeConfig
from gptcli.config.evaluation import PerplexityConfig, RowsConfig, TaskConfig, check_source, check_together
from gptcli.errors import GptcliError, SettingError, with_names

if TYPE_CHECKING:
    from gptcli.checkpoints.checkpoint import Checkpoint
    from gptcli.data.documents import Document
    from gptcli.device.placement import Placement
    from gptcli.evaluation.task_files import Item
    from gptcli.evaluation.text_results import TextResult

window_option = partial(typer.Option, rich_help_panel="Perplexity of a text")
task_option = partial(typer.Option, rich_help_panel="Tasks")


def evaluate(
    perplexity: PerplexityConfig,
    scored: TaskConfig,
    compute: ComputeConfig,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Files, folders (.txt and .md), globs, - for stdin; a task's FILE.jsonl; rows with labels.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="A checkpoint directory, or its name under checkpoints/ (default: the newest there); given several "
            "times, each is compared with the first.",
        ),
    ] = None,
    adapter: options.Adapter = None,
    plot: Annotated[
        Path | None,
        window_option(
            "--plot",
            help="Draw loss by position (of a classifier: the confusion matrix), and how well probabilities are "
            "calibrated, in FILE.png, .svg, .pdf or .jpg.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        task_option(
            "--out", "-o", help="Write a line for every item, FILE.jsonl; an interrupted measurement continues there."
        ),
    ] = None,
    fields: Annotated[str | None, option_of(RowsConfig, "fields")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure a model on a text (perplexity) or on a task (accuracy), and print the protocol.

    For a classifier, it measures accuracy, precision, recall, F1, confusions and calibration on labelled rows.
    """
    path, its_adapter = _classifier(checkpoint, adapter)
    if path is not None:
        classification_view.check_settings(perplexity, scored, checkpoint or [])
        if plot is not None:
            _check_plot(plot)
        classification_view.evaluate(path, its_adapter, texts or [], fields, perplexity, compute, plot, out, as_json)
        if not (as_json or plot or fields) and perplexity == PerplexityConfig():
            next_steps.suggest_picture(
                texts or [], next_steps.model_words(checkpoint[0] if checkpoint else None, adapter, path)
            )
        return
    if fields is not None:
        raise SettingError("{fields} is for a classifier's rows.", "Leave {fields} out, or give a classifier.")
    check_together(scored, perplexity, plot=plot, out=out)
    given = texts or []
    check_source(given, perplexity.part)

    from gptcli.device import placement as devices

    placement = devices.place(compute)
    if scored.task is None:
        from gptcli.data import documents, text_record
        from gptcli.data.rows import refuse_rows
        from gptcli.evaluation.text_results import remarks

        if plot is not None:
            _check_plot(plot)
        if perplexity.part is not None:
            first = options.find_model(checkpoint[0] if checkpoint else None, adapter)
            found = text_record.open_part(first[1] or first[0], perplexity.part)
        else:
            refuse_rows(given, use="If it has a task's items, name the task: --task lambada, choices or cloze")
            found = documents.read_documents(given, encoding=perplexity.encoding, errors=perplexity.errors)
        results = [
            _measure(loaded, found, perplexity, placement, observe=plot is not None)
            for loaded in _load_all(checkpoint, adapter)
        ]
        evaluation_view.show_texts(results, found, as_json)
        for line in remarks(results):
            render.warn(with_names(line, flag))
        if plot is not None:
            _draw(results, plot)
        elif not as_json and perplexity == PerplexityConfig() and len(checkpoint or []) < 2:
            named = checkpoint[0] if checkpoint else None
            model = next_steps.model_words(named, adapter, Path(results[0].checkpoint))
            next_steps.suggest_picture(given, model)
    else:
        from gptcli.evaluation import scores

        items = scores.read_items(given, scored)
        setting = scores.task_setting(given[0], scored, perplexity.bos)
        rows = [
            (str(loaded.path), _run_task(loaded, items, setting, out, perplexity.batch_size, placement))
            for loaded in _load_all(checkpoint, adapter)
        ]
        task_view.show_task(rows, setting, as_json)


def _classifier(names: list[Path] | None, adapter: Path | None) -> tuple[Path | None, Path | None]:
    """The first of the named checkpoints, or the newest, and the adapter for it; None where it is no classifier."""
    from gptcli.checkpoints import adapters, layout

    try:
        path, found = options.find_model(names[0] if names else None, adapter)
        is_one = bool(layout.read_config(adapters.described_by(path, found))[0].labels)
    except GptcliError:  # told where the model is opened
        is_one = False
    return (path, found) if is_one else (None, None)


def _load_all(names: list[Path] | None, adapter: Path | None) -> "Iterator[Checkpoint]":
    """The checkpoints one after the other, so that only one is in memory."""
    from gptcli.checkpoints import checkpoint as checkpoints
    from gptcli.checkpoints import layout

    if adapter is not None and names and len(names) > 1:
        raise GptcliError(
            f"--adapter {adapter} is given with {len(names)} checkpoints.",
            "Give adapters with -c, each: they name their checkpoints themselves.",
        )
    named: list[Path | None] = list(names) if names else [None]
    found = [options.find_model(name, adapter) for name in named]
    for path, _ in found:
        layout.read_config(path)  # a mistyped second name is found before the first is measured
    return (checkpoints.load(*each) for each in found)


def _measure(
    loaded: "Checkpoint",
    documents: "list[Document]",
    settings: PerplexityConfig,
    placement: "Placement",
    *,
    observe: bool,
) -> "TextResult":
    from time import perf_counter

    from gptcli.evaluation.text_measurement import TextMeasurement

    measurement = TextMeasurement(loaded, documents, settings, placement)
    started = perf_counter()
    with render.progress(measurement.windows, "window", loaded.path.name) as bar:
        result = measurement.measure(bar.update, observe=observe)
    seconds = perf_counter() - started
    if settings.bos is None and not measurement.bos:
        render.note(
            f"The {result.tokenizer} tokenizer has no end-of-text token to put before a text, so that its first token "
            "is read and not scored."
        )
    speed, size = result.measured.tokens / seconds, measurement.batch_size
    render.detail(f"{loaded.path}: {seconds:.1f} s, {speed:,.0f} tokens/s, {size} windows at once.")
    return result


def _check_plot(plot: Path) -> None:
    from gptcli.checkpoints import overwrite
    from gptcli.evaluation import results_log
    from gptcli.inspection import pictures

    kind = pictures.kind_of(plot)
    if not results_log.is_writable(plot):
        raise GptcliError(f"--plot {plot} cannot be written.", "Give a file in a folder that is there.")
    overwrite.check_result(plot, kind)


def _draw(results: "list[TextResult]", plot: Path) -> None:
    from gptcli.evaluation import plots

    names = evaluation_view.short_names([result.checkpoint for result in results])
    measured = {name: result.measured for name, result in zip(names, results, strict=True)}
    titles = {f"{result.measured.tokens:,} tokens, {result.how()}" for result in results}
    plots.draw(measured, plot, titles.pop() if len(titles) == 1 else "")
    render.note(f"The plot is in {plot}.")


def _run_task(
    loaded: "Checkpoint",
    items: "list[Item]",
    setting: dict[str, Any],
    out: Path | None,
    batch_size: int | None,
    placement: "Placement",
) -> list[dict[str, Any]]:
    """The rows of every item, those of an earlier run of the same measurement taken from ``out``."""
    from gptcli.evaluation import task_run

    _warn_of_unknown(loaded, items)
    with task_run.opened(loaded, items, setting, out, batch_size, placement) as run:
        done = sum(item.line in run.done for item in items)
        if done:
            render.note(f"{done} of {len(items)} items of {loaded.path} are in {out} already.")
        with render.progress(len(items), "item", loaded.path.name) as bar:
            bar.update(done)
            for _ in run.run():
                bar.update()
        return run.rows()


def _warn_of_unknown(loaded: "Checkpoint", items: "list[Item]") -> None:
    """Say how many tokens of the items are that of a word tokenizer for every word that it does not know."""
    tokenizer = loaded.tokenizer
    if tokenizer.kind != "word":
        return
    texts = (each.before + each.scored + each.after for item in items for each in item.candidates)
    ids = [token_id for text in texts for token_id in tokenizer.encode(text)]
    unknown = ids.count(tokenizer.vocab_size - 1)
    if unknown:
        render.warn(
            f"{unknown:,} of the items' {len(ids):,} tokens stand for words that {loaded.path} does not know: its "
            "figures cannot be compared with those of another tokenizer."
        )
