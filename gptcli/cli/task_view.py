"""What ``gptcli evaluate --task`` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptcli.checkpoints.layout import named
from gptcli.cli import figures, render
from gptcli.cli.evaluation_view import short_names

RIGHT = "right"


def show_task(runs: Sequence[tuple[str, list[dict[str, Any]]]], setting: dict[str, Any], as_json: bool) -> None:
    """Print the figures of one or several checkpoints on the same items."""
    from gptcli.evaluation import tasks

    items = len(runs[0][1])
    found = [tasks.summarise(rows) for _, rows in runs]
    changes = [tasks.differences(rows, runs[0][1]) for _, rows in runs[1:]]
    if as_json:
        results = []
        for number, ((name, _), one) in enumerate(zip(runs, found, strict=True)):
            result: dict[str, Any] = {"checkpoint": name, **_figures_as_json(one, "perplexity")}
            if number:
                result["difference"] = _figures_as_json(changes[number - 1], "nats_per_word")
            results.append(result)
        render.print_json({**setting, "items": items, "results": results})
        return
    table = []
    names = short_names([name for name, _ in runs])
    for number, (name, one) in enumerate(zip(names, found, strict=True)):
        for metric, figure in one.items():
            row = [name, tasks.METRICS[metric], _figure(metric, figure)]
            if len(runs) > 1:
                row.append(_task_change(metric, changes[number - 1][metric]) if number else "")
            table.append(row)
    columns = [("checkpoint", "left"), ("figure", "left"), ("value", RIGHT)]
    if len(runs) > 1:
        columns.append(("less the first", RIGHT))
    render.print_table(f"{setting['task']} on {setting['file']}", columns, table, _task_caption(setting, items))
    for (name, _), one in zip(runs, found, strict=True):
        words = ", ".join(f"{tasks.METRICS[metric]} {_figure(metric, figure)}" for metric, figure in one.items())
        render.print_line(f"{named(Path(name)).name}: {words} on {items:,} items of {Path(setting['file']).name}")


def _task_caption(setting: dict[str, Any], items: int) -> str:
    before = "the end-of-text id" if setting["bos"] else "nothing"
    kind = f", {setting['convention']} convention" if setting["convention"] else ""
    return f"{items:,} items{kind}; {before} before an item's own text; ± is one standard error."


def _figure(metric: str, figure: Any) -> str:
    if metric == "log_likelihood":
        return figures.with_error(figure.value, figure.standard_error)
    return f"{figure.value:.2%} ± {figure.standard_error:.2%}"


def _task_change(metric: str, figure: Any) -> str:
    if metric == "log_likelihood":
        return f"{figure.value:+.4f} ± {figure.standard_error:.4f} nats a word"
    return f"{figure.value:+.2%} ± {figure.standard_error:.2%}"


def _figures_as_json(values: dict[str, Any], word_name: str) -> dict[str, Any]:
    """A log-likelihood's mean is a perplexity by now; its differences are given in nats, where less is better."""
    return {
        word_name if metric == "log_likelihood" else metric: {
            "value": figures.finite(figure.value),
            "standard_error": figures.finite(figure.standard_error),
        }
        for metric, figure in values.items()
    }
