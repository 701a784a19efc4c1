"""gptcli inspect-flow: the walk of one token through the model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import looking, next_steps, options, render

if TYPE_CHECKING:
    from gptcli.inspection.predictions import Walk

CANDIDATES = 5
NARROW = 80


def inspect_flow(
    text: options.Text = None,
    file: options.TextFile = None,
    checkpoint: options.Checkpoint = None,
    adapter: options.Adapter = None,
    position: Annotated[
        int | None, typer.Option("--position", "-p", help="Follow this token, from 0 (default: the last).")
    ] = None,
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
    """Follow one token from its id to the choice of the next token: what each step adds, and every shape."""
    outputs = looking.Outputs(png, html, json, npz)
    text = options.read_text(text, file, what="text")
    subject = looking.read_to_predict(text, checkpoint, adapter, device, threads)
    looking.check_range("--position", position, len(subject.pieces))

    from gptcli.inspection import html as pages
    from gptcli.inspection import plots, predictions
    from gptcli.inspection.capture import capture

    captured = capture(subject.model, subject.ids, weights=False)
    walk = predictions.walk(subject.model, captured, len(subject.pieces) - 1 if position is None else position)
    shares = walk.logits.softmax(-1)
    chosen = _name(subject, walk.chosen)
    title = f"From {subject.labels[walk.position]} (token {walk.position}) to {chosen}"
    stages, candidates = _stages(subject, walk), _candidates(subject, walk)

    def picture() -> bytes:
        return plots.contributions(walk.stages, walk.votes.tolist(), f"What each step adds to the logit of {chosen}")

    def record() -> dict[str, Any]:
        steps = [
            {"stage": name, "norm": norm, "stream_norm": stream, "vote": vote}
            for name, norm, stream, vote in zip(
                walk.stages, walk.norms.tolist(), walk.stream_norms.tolist(), walk.votes.tolist(), strict=True
            )
        ]
        choice = {
            "id": walk.chosen,
            "piece": chosen,
            "logit": float(walk.logits[walk.chosen]),
            "probability": float(shares[walk.chosen]),
        }
        return subject.record(position=walk.position, stages=steps, final_norm_bias_vote=walk.bias_vote, choice=choice)

    def arrays() -> dict[str, Any]:
        at = walk.position
        return {
            "ids": subject.ids.numpy(),
            "token_vector": captured.tokens[at].numpy(),
            "position_vector": captured.positions[at].numpy(),
            "attention": captured.attention[:, at].numpy(),
            "feed_forward": captured.feed_forward[:, at].numpy(),
            "stream": captured.stream[:, at].numpy(),
            "final": captured.final[at].numpy(),
            "logits": walk.logits.numpy(),
        }

    tables = [("The way", stages), ("Candidates for the next token", candidates)]
    if outputs.write(picture, lambda: pages.report_page(title, _about(subject), picture(), tables), record, arrays):
        return
    render.print_text(_about(subject))
    if render.stdout_console().width < NARROW:  # the shapes need most of the room
        stages = [[row[0], *row[2:]] for row in stages]
    headings, *rows = stages
    render.print_table(
        title,
        [(heading, "left" if heading in ("step", "shape") else "right") for heading in headings],
        rows,
        caption="Shapes: (tokens, numbers a token). length: of the vector that the step makes; stream: of the sum so "
        f"far. vote: what the step adds to the logit of {chosen}; the votes add up to it.",
    )
    headings, *rows = candidates
    render.print_table(
        "Candidates for the next token",
        [(heading, "left" if heading == "token" else "right") for heading in headings],
        rows,
    )
    render.print_text(f"The likeliest, {chosen}, is what greedy decoding chooses.")
    model = next_steps.model_words(checkpoint, adapter, subject.checkpoint.path)
    next_steps.suggest_for_text("See what the heads attend to", "inspect-attn", text, model)


def _about(subject: looking.Subject) -> str:
    config, length = subject.checkpoint.config, len(subject.pieces)
    shown = subject.labels[:24] + ["…"] * (length > 24)
    return (
        f"{length} tokens: {' | '.join(shown)} – {config.n_layers} layers, "
        f"{config.n_heads} heads of {config.head_dim}, emb_dim {config.emb_dim}"
    )


def _stages(subject: looking.Subject, walk: "Walk") -> list[list[str]]:
    config, length = subject.checkpoint.config, len(subject.pieces)
    stream_shape = f"({length}, {config.emb_dim})"
    rows = [["step", "shape", "length", "stream", "vote"]]
    rows.append([f"token id {int(subject.ids[walk.position])}", f"({length})", "", "", ""])
    for number, name in enumerate(walk.stages):
        kind = name.rsplit(" ", 1)[-1]
        shape = {
            "attention": f"{stream_shape} → {config.n_heads} × ({length}, {config.head_dim}) → {stream_shape}",
            "feed-forward": f"{stream_shape} → ({length}, {config.hidden_dim}) → {stream_shape}",
        }.get(kind, stream_shape)
        numbers = [f"{float(values[number]):.2f}" for values in (walk.norms, walk.stream_norms)]
        rows.append([("" if number == 0 else "+ ") + name, shape, *numbers, f"{float(walk.votes[number]):+.2f}"])
    rows.append(["final norm", stream_shape, "", "", f"{walk.bias_vote:+.2f}"])
    logit = float(walk.logits[walk.chosen])
    rows.append(["logits", f"({length}, {config.vocab_size:,})", "", "", f"= {logit:.2f}"])
    return rows


def _candidates(subject: looking.Subject, walk: "Walk") -> list[list[str]]:
    shares = walk.logits.softmax(-1)
    values, ids = walk.logits.topk(min(CANDIDATES, walk.logits.size(0)))
    rows = [["token", "id", "logit", "probability"]]
    for value, i in zip(values.tolist(), ids.tolist(), strict=True):
        rows.append([_name(subject, i), str(i), f"{value:.2f}", looking.percent(float(shares[i]))])
    return rows


def _name(subject: looking.Subject, token_id: int) -> str:
    return looking.token_name(subject.checkpoint.tokenizer, token_id)
