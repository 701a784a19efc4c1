"""gptcli inspect-embeddings: what words look like as vectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import looking, next_steps, options, render
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.checkpoints.checkpoint import Checkpoint
    from gptcli.model.gpt import GPTModel
    from gptcli.tokenizers import Tokenizer

NEIGHBOURS = 5
VALUES = 4
POSITIONS = 4


@dataclass(frozen=True)
class Word:
    """A word as the model knows it: its tokens, and the mean (C) of their vectors."""

    text: str
    ids: list[int]
    name: str
    vector: "Tensor"


def inspect_embeddings(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORD...", help="Words to compare; - reads stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the words from this file.")] = None,
    checkpoint: options.Checkpoint = None,
    adapter: options.Adapter = None,
    analogy: Annotated[
        tuple[str, str, str] | None,
        typer.Option("--analogy", help="Words A B C: the nearest to A - B + C, as in king man woman."),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            "--within", help="A text that has one of the words twice: the similarity of the two after each layer."
        ),
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
    """Compare words as vectors: similarity, neighbours, analogies, one word in two places; --png draws them."""
    outputs = looking.Outputs(png, html, json, npz)
    named = words or []
    if named == ["-"] or file is not None or (words is None and analogy is None):
        named = options.read_text(" ".join(named) or None, file, what="word").split()
    named = [options.check_text(word, "The word") for word in named if word.strip()]
    for text in (*(analogy or ()), within or ""):
        options.check_text(text, "The text")
    if not named and analogy is None:
        raise GptcliError("There is no word to compare.", "Give words: gptcli inspect-embeddings king queen river")
    if within is not None and not named:
        raise GptcliError("--within needs a word to find in the text.", 'Like this: bank --within "bank … bank"')
    loaded, model = looking.open_model(checkpoint, adapter, device, threads)

    import torch

    from gptcli.inspection import embeddings, plots
    from gptcli.inspection import html as pages

    table = model.wte.weight.detach().float().cpu()
    tokenizer = loaded.tokenizer
    chosen = [_word(tokenizer, table, text) for text in dict.fromkeys([*named, *(analogy or ())])]
    vectors = torch.stack([word.vector for word in chosen])
    similar = embeddings.cosines(vectors, vectors)
    near = {word.text: embeddings.nearest(word.vector, table, NEIGHBOURS, word.ids) for word in chosen}
    answers: list[tuple[int, float]] = []
    if analogy is not None:
        king, man, woman = (next(word for word in chosen if word.text == text) for text in analogy)
        answers = embeddings.nearest(
            king.vector - man.vector + woman.vector, table, NEIGHBOURS, [*king.ids, *man.ids, *woman.ids]
        )
    twice, layers = ("", []) if within is None else _in_two_places(loaded, model, [w.text for w in chosen], within)

    def name(token_id: int) -> str:
        return looking.token_name(tokenizer, token_id)

    def listed(found: list[tuple[int, float]]) -> list[str]:
        return [f"{name(i)} {value:.2f}" for i, value in found] + [""] * (NEIGHBOURS - len(found))

    ordinals = ["nearest", "second", "third", "fourth", "fifth"]
    values = [str(n) for n in range(min(VALUES, table.size(1)))]
    tables: list[tuple[str, list[list[str]]]] = [
        (
            "Token vectors: length, and the first values",
            [
                ["word", "tokens", "length", *values],
                *([word.text, word.name, *_numbers(word.vector)] for word in chosen),
            ],
        ),
        (
            "Position vectors",
            [
                ["position", "length", *values],
                *(
                    [str(n), *_numbers(row)]
                    for n, row in enumerate(model.wpe.weight.detach().float().cpu()[:POSITIONS])
                ),
            ],
        ),
        (
            "Cosine similarity",
            [
                ["", *(word.text for word in chosen)],
                *([word.text, *(f"{v:.2f}" for v in row)] for word, row in zip(chosen, similar.tolist(), strict=True)),
            ],
        ),
        (
            "Nearest neighbours, by cosine",
            [["word", *ordinals], *([text, *listed(found)] for text, found in near.items())],
        ),
    ]
    if analogy is not None:
        tables.append((f"{analogy[0]} – {analogy[1]} + {analogy[2]}, the three left out", [ordinals, listed(answers)]))
    if layers:
        heading = f"Similarity of {twice} in its first two places (cosine)"
        tables.append((heading, [["where", "cosine"], *([where, f"{value:.3f}"] for where, value in layers)]))

    def picture() -> bytes:
        neighbours = list(dict.fromkeys(i for found in near.values() for i, _ in found))
        neighbours = [i for i in neighbours if all([i] != word.ids for word in chosen)]
        points, shares = embeddings.two_dimensions(torch.cat([vectors, table[neighbours]]))
        names = [word.text for word in chosen] + [name(i) for i in neighbours]
        given = [True] * len(chosen) + [False] * len(neighbours)
        return plots.scatter(points.numpy(), names, given, shares)

    def record() -> dict[str, Any]:
        found = {text: [{"id": i, "piece": name(i), "cosine": v} for i, v in pairs] for text, pairs in near.items()}
        result: dict[str, Any] = {
            "checkpoint": str(loaded.path),
            "words": [
                {
                    "text": word.text,
                    "ids": word.ids,
                    "length": float(word.vector.norm()),
                    "neighbours": found[word.text],
                }
                for word in chosen
            ],
            "cosines": similar.tolist(),
        }
        if analogy is not None:
            result["analogy"] = [{"id": i, "piece": name(i), "cosine": value} for i, value in answers]
        if layers:
            result["in_two_places"] = [{"where": where, "cosine": value} for where, value in layers]
        return result

    def arrays() -> dict[str, Any]:
        every = {"words": [word.text for word in chosen], "vectors": vectors.numpy(), "cosines": similar.numpy()}
        if layers:
            every["in_two_places"] = [value for _, value in layers]
        return every

    about = f"{loaded.path}: {table.size(0):,} tokens, {table.size(1)} numbers each"
    if outputs.write(picture, lambda: pages.report_page("Words as vectors", about, picture(), tables), record, arrays):
        return
    for title, (headings, *rows) in tables:
        left = ("word", "tokens", "where", *ordinals)
        render.print_table(title, [(h, "left" if h in left or h == "" else "right") for h in headings], rows)
    if not loaded.config.labels:
        named_model = next_steps.model_words(checkpoint, adapter, loaded.path)
        last = (*named, *(analogy or ()))[-1]
        next_steps.suggest_for_text("Follow a word through the model", "inspect-flow", last, named_model)


def _word(tokenizer: "Tokenizer", table: "Tensor", text: str) -> Word:
    """The word's tokens: with the space before it, as it stands in a text, where that makes it one token.

    Raises:
        GptcliError: the tokenizer does not know it.
    """
    ids = tokenizer.encode(text)
    if tokenizer.kind == "word" and tokenizer.vocab_size - 1 in ids:
        raise GptcliError(
            f"The word {text!r} is not in the vocabulary of {tokenizer.vocab_size:,} words.",
            "Choose words of the training text, or train with --tokenizer gpt2.",
        )
    spaced = _spaced(tokenizer, text)
    ids = spaced if len(spaced) == 1 else ids
    name = " ".join(looking.label(tokenizer.piece(i)) for i in ids)
    return Word(text, ids, name if len(ids) == 1 else f"{name} (mean of {len(ids)})", table[ids].mean(0))


def _spaced(tokenizer: "Tokenizer", text: str) -> list[int]:
    return tokenizer.encode(" " + text) if tokenizer.kind in ("gpt2", "bpe") else []


def _in_two_places(
    loaded: "Checkpoint", model: "GPTModel", words: list[str], text: str
) -> tuple[str, list[tuple[str, float]]]:
    """The first of ``words`` that is twice in ``text``, and how alike its first two places are, stage by stage.

    Raises:
        GptcliError: none is there twice.
    """
    import torch

    from gptcli.inspection import embeddings
    from gptcli.inspection.capture import capture

    tokenizer = loaded.tokenizer
    ids = looking.tokens_of(tokenizer, text)[: loaded.config.context_length]
    for word in words:
        spellings = [found for found in (tokenizer.encode(word), _spaced(tokenizer, word)) if found]
        places = embeddings.occurrences(ids, spellings)
        if len(places) >= 2:
            captured = capture(model, torch.tensor(ids), weights=False)
            return word, embeddings.similarity_by_layer(captured, *places[:2])
    raise GptcliError(
        f"--within: the text has {' and '.join(map(repr, words))} less than twice, but two places are compared.",
        f'Give a text with two of them, such as --within "{words[0]} is near the river {words[0]}".',
    )


def _numbers(vector: "Tensor") -> list[str]:
    return [f"{float(vector.norm()):.3f}", *(f"{value:+.3f}" for value in vector[:VALUES].tolist())]
