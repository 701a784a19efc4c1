"""gptcli inspect-logits: what the model expects, token by token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import looking, next_steps, options, render

if TYPE_CHECKING:
    from gptcli.inspection.predictions import Predictions

CANDIDATES = 5


def inspect_logits(
    text: options.Text = None,
    file: options.TextFile = None,
    checkpoint: options.Checkpoint = None,
    adapter: options.Adapter = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Also the prediction of each layer, computed by the output head (logit lens)."),
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
    """Show what the model predicts after each token, and the surprisal of the token that follows."""
    outputs = looking.Outputs(png, html, json, npz)
    text = options.read_text(text, file, what="text")
    subject = looking.read_to_predict(text, checkpoint, adapter, device, threads)

    from gptcli.inspection import html as pages
    from gptcli.inspection import plots, predictions
    from gptcli.inspection.capture import capture

    captured = capture(subject.model, subject.ids, weights=False)
    found = predictions.predictions(subject.model, captured.final, subject.ids, CANDIDATES)
    lens = predictions.lens(subject.model, captured) if layers else []
    summary = _summary(found)
    table = _table(subject, found)
    lens_table = _lens_table(subject, lens)

    def picture() -> bytes:
        if not lens:
            return plots.surprise(subject.labels, found.bits.tolist(), summary)
        import numpy

        words = [[_label(subject, i) for i in one.top_ids[:, 0].tolist()] for one in lens]
        shares = numpy.stack([one.top_probabilities[:, 0].numpy() for one in lens])
        return plots.lens(subject.labels, _layer_names(len(lens)), words, shares)

    def page() -> str:
        tables = [("Token by token", table)] + ([("Layer by layer", lens_table)] if lens else [])
        return pages.report_page("What the model predicts", summary, picture(), tables)

    def arrays() -> dict[str, Any]:
        every: dict[str, Any] = {
            "ids": subject.ids.numpy(),
            "bits": found.bits.numpy(),
            "ranks": found.ranks.numpy(),
            "top_ids": found.top_ids.numpy(),
            "top_probabilities": found.top_probabilities.numpy(),
        }
        if lens:
            import torch

            every["layer_top_ids"] = torch.stack([one.top_ids[:, 0] for one in lens]).numpy()
            every["layer_top_probabilities"] = torch.stack([one.top_probabilities[:, 0] for one in lens]).numpy()
            every["layer_bits"] = torch.stack([one.bits for one in lens]).numpy()
        return every

    if outputs.write(picture, page, lambda: _record(subject, found, lens), arrays):
        return
    if lens:
        _print_lens(lens_table)
    shown = 5 + max(1, min(CANDIDATES, (render.stdout_console().width - 36) // 15))
    headings, *rows = (row[:shown] for row in table)
    numeric = {"", "surprise", "probability", "rank"}
    render.print_table(
        "Candidates for each token, and the token that followed",
        [(heading, "right" if heading in numeric else "left") for heading in headings],
        rows,
        caption="Surprise (surprisal in bits), probability and rank: of the token, given the tokens before it; "
        "then what the model predicts after it.",
    )
    render.print_text(summary)
    model = next_steps.model_words(checkpoint, adapter, subject.checkpoint.path)
    if layers:
        next_steps.suggest_for_text("Follow the last token through the layers", "inspect-flow", text, model)
    else:
        next_steps.suggest_for_text("See the prediction of each layer", "inspect-logits", text, model, "--layers")


def _summary(found: "Predictions") -> str:
    count = found.bits.size(0) - 1
    if count == 0:
        return "The text has one token, and no token before it predicts it: there is no surprisal."
    return (
        f"{found.total_bits:.1f} bits for {count} tokens after the first, {found.total_bits / count:.2f} a token, "
        f"perplexity {found.perplexity:.2f}"
    )


def _table(subject: looking.Subject, found: "Predictions") -> list[list[str]]:
    k = found.top_ids.size(1)
    ordinals = ["likeliest next", "second", "third", "fourth", "fifth"][:k]
    rows = [["", "token", "surprise", "probability", "rank", *ordinals]]
    bits, ranks = found.bits.tolist(), found.ranks.tolist()
    for n, name in enumerate(subject.labels):
        best = zip(found.top_ids[n].tolist(), found.top_probabilities[n].tolist(), strict=True)
        came = ["–"] * 3 if n == 0 else [f"{bits[n]:.2f} bits", looking.percent(2.0 ** -bits[n]), f"{ranks[n]:,}"]
        rows.append([str(n), name, *came, *(f"{_label(subject, i)} {looking.percent(p)}" for i, p in best)])
    return rows


def _lens_table(subject: looking.Subject, lens: "Sequence[Predictions]") -> list[list[str]]:
    """A row a token, a column a layer: what the layer would say next; the last row is its bits a token."""
    if not lens:
        return []
    rows = [["after", *_layer_names(len(lens))]]
    said = [list(zip(one.top_ids[:, 0].tolist(), one.top_probabilities[:, 0].tolist(), strict=True)) for one in lens]
    for n, name in enumerate(subject.labels):
        rows.append([name, *(f"{_label(subject, layer[n][0])} {looking.percent(layer[n][1])}" for layer in said)])
    count = len(subject.pieces) - 1
    if count:
        rows.append(["bits a token", *(f"{one.total_bits / count:.2f}" for one in lens)])
    return rows


def _print_lens(table: list[list[str]]) -> None:
    """As many layers side by side as there is room for; the others follow below."""
    room = max(1, (render.stdout_console().width - 18) // 18)
    for first in range(1, len(table[0]), room):
        headings, *rows = [[row[0], *row[first : first + room]] for row in table]
        title = "The prediction of each layer" if first == 1 else ""
        render.print_table(title, [(heading, "left") for heading in headings], rows)


def _layer_names(count: int) -> list[str]:
    return ["embedding", *(f"layer {n}" for n in range(count - 1))]


def _label(subject: looking.Subject, token_id: int) -> str:
    return looking.token_name(subject.checkpoint.tokenizer, token_id)


def _record(subject: looking.Subject, found: "Predictions", lens: "Sequence[Predictions]") -> dict[str, Any]:
    def at(n: int) -> dict[str, Any]:
        bits = float(found.bits[n])
        best = zip(found.top_ids[n].tolist(), found.top_probabilities[n].tolist(), strict=True)
        return {
            "surprise_bits": bits if n else None,
            "probability": 2.0**-bits if n else None,
            "rank": int(found.ranks[n]) if n else None,
            "next": [{"id": i, "piece": _label(subject, i), "probability": p} for i, p in best],
        }

    record = subject.record(
        positions=[at(n) for n in range(len(subject.pieces))],
        total_bits=found.total_bits,
        perplexity=found.perplexity if len(subject.pieces) > 1 else None,
    )
    if lens:
        record["layers"] = [
            {
                "name": name,
                "total_bits": one.total_bits,
                "next": [
                    {"id": i, "piece": _label(subject, i), "probability": p}
                    for i, p in zip(one.top_ids[:, 0].tolist(), one.top_probabilities[:, 0].tolist(), strict=True)
                ],
            }
            for name, one in zip(_layer_names(len(lens)), lens, strict=True)
        ]
    return record
