"""gptcli inspect-gradients: how far the gradient reaches."""

import math
from typing import Annotated, Any

import typer

from gptcli.cli import looking, next_steps, options, render
from gptcli.errors import GptcliError

BAR = 30
LEAST = 1e-12


def inspect_gradients(
    text: options.Text = None,
    file: options.TextFile = None,
    checkpoint: options.Checkpoint = None,
    adapter: options.Adapter = None,
    without_shortcuts: Annotated[
        bool, typer.Option("--without-shortcuts", help="Also the same model without its residual connections.")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="The course's five layers instead of a model and a text.")
    ] = False,
    png: options.Png = None,
    html: options.Html = None,
    json: options.JsonFile = None,
    npz: options.Npz = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show the gradient's norm by layer and component after one backward pass over a text."""
    outputs = looking.Outputs(png, html, json, npz)
    if demo:
        if text is not None or file is not None or checkpoint or adapter:
            raise GptcliError(
                "--demo takes no text and no checkpoint.", "The example has its own model and data: leave them out."
            )
        columns = _demo()
        start: dict[str, Any] = {"demo": "mean absolute weight gradient of each layer"}
        title, unit, about = "The course's five layers", "mean |gradient| of a layer's weights", _DEMO_ABOUT
    else:
        text = options.read_text(text, file, what="text")
        subject = looking.read_to_predict(text, checkpoint, adapter, device, threads)
        if len(subject.pieces) < 2:
            raise GptcliError(
                "The text is a single token: there is no next token to learn from.", "Give at least two tokens."
            )
        columns, losses = _model(subject, without_shortcuts)
        start = subject.record(loss=losses)
        title, unit = "Gradients after one backward pass", "L2 norm of the gradient"
        about = "; ".join(f"{name}: loss {loss:.3f} nats" for name, loss in losses.items())

    from gptcli.inspection import html as pages
    from gptcli.inspection import plots

    table = _table(columns)

    def picture() -> bytes:
        layers, series = _series(columns)
        return plots.lines(layers, series, unit, title)

    def arrays() -> dict[str, Any]:
        import numpy

        values = numpy.array([list(column.values()) for column in columns.values()])
        return {"columns": list(columns), "rows": list(next(iter(columns.values()))), "values": values}

    taken = outputs.write(
        picture,
        lambda: pages.report_page(title, f"{unit}. {about}", picture(), [("By layer and component", table)]),
        lambda: start | {"unit": unit, "gradients": columns},
        arrays,
    )
    if taken:
        return
    headings, *rows = _table(columns, bars=_bar_width(len(columns)))
    render.print_table(
        f"{title}: {unit}",
        [(heading, "left" if number == 0 or heading == "" else "right") for number, heading in enumerate(headings)],
        rows,
        caption="Bars are logarithmic: equal steps are equal factors, and the shortest is the smallest value.",
    )
    render.print_text(about)
    if text is not None and not without_shortcuts:
        model = next_steps.model_words(checkpoint, adapter, subject.checkpoint.path)
        about = "Compare with the model without its residual connections"
        next_steps.suggest_for_text(about, "inspect-gradients", text, model, "--without-shortcuts")


_DEMO_ABOUT = (
    "Layers 3-3-3-3-3-1, GELU, squared error, seed 123. Without shortcuts the gradients of the first layers are near 0."
)


def _demo() -> dict[str, dict[str, float]]:
    from gptcli.inspection import gradients

    return {
        name: {f"layer {n}": value for n, value in enumerate(gradients.demo(shortcuts))}
        for name, shortcuts in (("with shortcuts", True), ("without shortcuts", False))
    }


def _model(subject: looking.Subject, without: bool) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Norms by column (with, without shortcuts) and row ("layer 0 attention", …), and the losses."""
    from gptcli.inspection import gradients

    columns, losses = {}, {}
    for name, shortcuts in (("with shortcuts", True), ("without shortcuts", False))[: 2 if without else 1]:
        found = gradients.gradient_norms(subject.model, subject.ids, shortcuts)
        losses[name] = found.pop("loss")
        layers = found.pop("layers")
        rows = {key: found.pop(key) for key in ("token vectors", "position vectors")}
        for n in range(subject.checkpoint.config.n_layers):
            rows |= {f"layer {n} {component}": layers[component][n] for component in gradients.COMPONENTS}
        columns[name] = rows | found
    return columns, losses


def _table(columns: dict[str, dict[str, float]], bars: int = 0) -> list[list[str]]:
    everything = [value for column in columns.values() for value in column.values()]
    most, least = max(everything), max(min((v for v in everything if v > 0), default=1.0), LEAST)
    heading = [""]
    for name in columns:
        heading += [name, ""] if bars else [name]
    rows = [heading]
    for row in next(iter(columns.values())):
        cells = [row]
        for column in columns.values():
            cells.append(f"{column[row]:.3g}")
            if bars:
                cells.append(_bar(column[row], least, most, bars))
        rows.append(cells)
    return rows


def _bar(value: float, least: float, most: float, width: int) -> str:
    """A logarithmic bar: the smallest value of all has one cell, the largest ``width``."""
    if value <= 0:
        return ""
    share = 1.0 if most <= least else math.log(max(value, least) / least) / math.log(most / least)
    return "█" * (1 + round(share * (width - 1)))


def _bar_width(columns: int) -> int:
    """0 where a terminal has no room for bars."""
    width = min(render.stdout_console().width, 110)
    return max(0, min(BAR, (width - 26 - 12 * columns) // columns - 4)) if width >= 60 else 0


def _series(columns: dict[str, dict[str, float]]) -> tuple[list[str], dict[str, list[float]]]:
    """What the picture shows: one line a column and component, over layers."""
    rows = next(iter(columns.values()))
    if "token vectors" not in rows:
        return [name.removeprefix("layer ") for name in rows], {name: list(c.values()) for name, c in columns.items()}
    components = ("attention", "feed-forward")
    count = sum(row.endswith(" attention") for row in rows)
    series = {
        f"{component}, {name}": [column[f"layer {n} {component}"] for n in range(count)]
        for name, column in columns.items()
        for component in components
    }
    return [str(n) for n in range(count)], series
