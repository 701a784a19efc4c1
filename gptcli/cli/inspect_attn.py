"""gptcli inspect-attn: where each head looks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import heatmap, looking, next_steps, options, render
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.inspection.attention import HeadScores
    from gptcli.inspection.capture import Capture

TABLE_ROWS = 12
LINKS = 3
NARROW = 90


def inspect_attn(
    text: options.Text = None,
    file: options.TextFile = None,
    checkpoint: options.Checkpoint = None,
    adapter: options.Adapter = None,
    layer: Annotated[
        int | None, typer.Option("--layer", "-l", help="Show this layer, from 0; without --head the mean of its heads.")
    ] = None,
    head: Annotated[int | None, typer.Option("--head", help="Show this head of --layer, from 0.")] = None,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Show attention through all layers up to --layer (default: the last).")
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
    """Show what attention heads attend to: all heads with their patterns, or the map of one."""
    if head is not None and (layer is None or rollout):
        raise GptcliError(
            f"--head {head} needs a --layer{' and no --rollout' if rollout else ''}.",
            f"For one head: --layer 0 --head {head}",
        )
    outputs = looking.Outputs(png, html, json, npz)
    text = options.read_text(text, file, what="text")
    subject = looking.read(text, checkpoint, adapter, device, threads)
    config = subject.checkpoint.config
    looking.check_range("--layer", layer, config.n_layers)
    looking.check_range("--head", head, config.n_heads)

    from gptcli.inspection import attention, plots
    from gptcli.inspection import html as pages
    from gptcli.inspection.capture import capture

    if html is not None:
        pages.check_length(len(subject.pieces))
    captured = capture(subject.model, subject.ids)
    scores = attention.head_scores(captured.weights, subject.ids)
    chosen, title = _chosen(captured, layer, head, rollout)

    def picture() -> bytes:
        if chosen is None:
            small = attention.pooled(captured.weights, 64)
            return plots.head_grid(small.numpy(), f"Attention of every head, {len(subject.pieces)} tokens")
        return plots.attention_map(chosen.numpy(), subject.labels, title)

    def arrays() -> dict[str, Any]:
        extra = {"rollout": attention.rollout(captured.weights).numpy()} if rollout else {}
        return {"ids": subject.ids.numpy(), "pieces": subject.pieces, "weights": captured.weights.numpy(), **extra}

    taken = outputs.write(
        picture,
        lambda: pages.attention_page(
            subject.labels, captured.weights, scores, str(subject.checkpoint.path), layer, head
        ),
        lambda: _record(subject, scores, chosen, title),
        arrays,
    )
    if taken:
        return
    model = next_steps.model_words(checkpoint, adapter, subject.checkpoint.path)
    if chosen is None:
        _print_grid(captured, scores)
        ((layer, head),) = attention.most_telling(scores, 1)
        about = "See the map of the head with the clearest pattern"
        next_steps.suggest_for_text(about, "inspect-attn", text, model, "--layer", layer, "--head", head)
        return
    _print_map(chosen, subject.labels, title)
    page = Path("attention.html")
    if not page.exists():
        next_steps.suggest_for_text("Compare all heads in a browser", "inspect-attn", text, model, "--html", page)


def _chosen(captured: "Capture", layer: int | None, head: int | None, rollout: bool) -> tuple["Tensor | None", str]:
    """The one map (T, T) that was asked for, and its name."""
    from gptcli.inspection import attention

    last = captured.weights.size(0) - 1
    if rollout:
        upto = last if layer is None else layer
        return attention.rollout(captured.weights[: upto + 1])[-1], f"Attention rollout, layers 0 to {upto}"
    if layer is None:
        return None, ""
    if head is None:
        return captured.weights[layer].mean(0), f"Layer {layer}, mean of its heads"
    return captured.weights[layer, head], f"Layer {layer}, head {head}"


def _record(subject: looking.Subject, scores: "HeadScores", chosen: "Tensor | None", title: str) -> dict[str, Any]:
    layers, heads = scores.entropy.shape
    record = subject.record(heads=[_scores_of(scores, n, h) for n in range(layers) for h in range(heads)])
    if chosen is not None:
        record["map"] = {"title": title, "weights": [row[: n + 1] for n, row in enumerate(chosen.tolist())]}
    return record


def _scores_of(scores: "HeadScores", layer: int, head: int) -> dict[str, Any]:
    from gptcli.inspection import attention

    def number(values: "Tensor") -> float | None:
        value = values[layer, head].item()
        return None if value != value else value

    return {
        "layer": layer,
        "head": head,
        "role": attention.role(scores, layer, head),
        "entropy_bits": number(scores.entropy),
        "mean_distance": number(scores.distance),
        **{f"share_{name.replace(' ', '_')}": number(values) for name, values in scores.shares.items()},
    }


def _print_grid(captured: "Capture", scores: "HeadScores") -> None:
    from gptcli.inspection import attention

    console = render.stdout_console()
    layers, heads, length, _ = captured.weights.shape
    width = console.width if console.is_terminal else 100
    coloured = heatmap.has_colour(console)
    size = heatmap.size_of_small_maps(width, heads, length)
    for line in heatmap.grid(attention.pooled(captured.weights, size).tolist(), width, coloured):
        console.print(line, overflow="crop", no_wrap=True)
    for line in heatmap.legend(width, coloured):
        console.print(line, overflow="crop", no_wrap=True)
    places = attention.most_telling(scores, TABLE_ROWS)
    title = (
        "The heads with the clearest patterns"
        if len(places) < layers * heads
        else "The heads, those with the clearest pattern first"
    )
    if width < NARROW:
        columns, caption = [("head", "right"), ("what it does", "left"), ("clearest share", "left")], ""
        rows = [[f"{n}.{h}", attention.role(scores, n, h) or "–", _clearest(scores, n, h)] for n, h in places]
    else:
        headings = ["entropy (bits)", "distance", "first", "previous", "induction", "itself"]
        columns = [("head", "right"), ("what it does", "left"), *((heading, "right") for heading in headings)]
        caption = (
            "head: layer.head, from 0. distance: to what it attends to, the mean in tokens. Shares of attention: on "
            "the first token, the previous one, what followed an earlier occurrence of the present one (induction), "
            "itself."
        )
        order = [attention.FIRST, attention.PREVIOUS, attention.INDUCTION, attention.ITSELF]
        rows = [
            [
                f"{n}.{h}",
                attention.role(scores, n, h) or "–",
                f"{scores.entropy[n, h].item():.2f}",
                f"{scores.distance[n, h].item():.1f}",
                *(_percent(scores.shares[name][n, h].item()) for name in order),
            ]
            for n, h in places
        ]
    render.print_table(title, columns, rows, caption)


def _clearest(scores: "HeadScores", layer: int, head: int) -> str:
    from gptcli.inspection import attention

    _, name = attention.best_lift(scores, layer, head)
    return f"{name} {scores.shares[name][layer, head].item():.0%}" if name else "–"


def _percent(share: float) -> str:
    return "–" if share != share else f"{share:.0%}"


def _print_map(chosen: "Tensor", labels: list[str], title: str) -> None:
    from rich.cells import cell_len

    from gptcli.cli import tables
    from gptcli.inspection import attention

    console = render.stdout_console()
    width = console.width if console.is_terminal else tables.ENDLESS
    coloured = heatmap.has_colour(console)
    for line in tables.folded(f"{title}: a row is a token, its cells are the tokens that it attends to", width):
        render.print_text(line)
    lines = heatmap.triangle(chosen.tolist(), labels, console.width, coloured)
    if lines is None:
        render.note(f"{len(labels)} tokens do not fit side by side into {console.width} columns; --png draws them.")
    else:
        for line in [*lines, *heatmap.legend(console.width, coloured)]:
            console.print(line, overflow="crop", no_wrap=True)
    digits = len(str(len(labels) - 1))
    room = max(len(name) for name in labels[:1000])
    for number, row in enumerate(chosen):
        links = attention.strongest(row[: number + 1], LINKS)
        words = ", ".join(f"{labels[place]} ({place}) {weight:.0%}" for place, weight in links)
        margin = f"{number:>{digits}} {labels[number]:<{min(room, 14)}} → "
        for part in tables.folded(words, width - cell_len(margin)):
            render.print_text(margin + part)
            margin = " " * cell_len(margin)
