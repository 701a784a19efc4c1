"""gptcli train-tokenizer: texts in, a vocabulary out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli import options, render
from gptcli.cli.settings import option_of
from gptcli.config.text import TextConfig
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.tokenizers import Tokenizer

MEASURED = 2**23  # characters that bytes a token are measured on


def train_tokenizer(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="Files (.gz and .zst too), folders (.txt and .md), globs, - for stdin."),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", help="Tokens: the 256 bytes, <|endoftext|>, and merges of frequent pairs.")
    ] = 4096,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The directory; checkpoints/<name of the text>.bpe-N by default.")
    ] = None,
    min_frequency: Annotated[
        int, typer.Option("--min-frequency", help="How often a pair must occur to be merged.")
    ] = 2,
    encoding: Annotated[str | None, option_of(TextConfig, "encoding")] = None,
    errors: Annotated[str, option_of(TextConfig, "errors")] = "strict",
    allow_special: options.AllowSpecial = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing tokenizer.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a vocabulary of your own on texts: byte-level BPE like GPT-2's, of any size.

    Prints the directory on stdout; gptcli train --tokenizer DIR uses it, and so does Hugging Face's AutoTokenizer. It
    needs the extra tokenizers: pip install 'gptcli\\[tokenizers]'.
    """
    if not texts:
        raise GptcliError(
            "There is no text to train a tokenizer on.",
            "Give files, folders, or - for stdin; see train-tokenizer --help.",
        )
    import time

    from gptcli.checkpoints import layout, overwrite
    from gptcli.cli.train import run_name
    from gptcli.data import documents, tokenizer_training
    from gptcli.tokenizers import bpe_training

    bpe_training.check_size(vocab_size, min_frequency)
    bpe_training.library()
    documents.check_decoding(encoding, errors)
    found, started = documents.find(texts), time.perf_counter()
    files = [path for source in found for path in source.files if path is not None]
    path = out or layout.ROOT / f"{run_name(texts)}.bpe-{vocab_size}"
    overwrite.check_output(path, tokenizer_training.FOLDER, force=force, inputs=files)
    sample: list[str] = []
    total = sum(file.stat().st_size for file in files)
    with render.progress(total or None, "B", "Counting", scale=True) as bar:
        pieces = documents.stream(
            found, encoding=encoding, errors=errors, report=lambda count: bar.update(count - bar.n)
        )
        tokenizer = tokenizer_training.train_bpe(
            tokenizer_training.sampled(((begins, text) for _, begins, text in pieces), sample, MEASURED),
            vocab_size, allow_special=allow_special, min_frequency=min_frequency,
        )  # fmt: skip
    tokenizer_training.create(path, tokenizer, force=force)
    seconds = time.perf_counter() - started
    render.note(f"{tokenizer.vocab_size:,} tokens from {', '.join(texts)} in {render.human_time(seconds)}.")
    render.note(_measured(tokenizer, sample))
    render.note("Train on it:")
    render.note(f"  gptcli train {render.quoted(texts[0])} --tokenizer {render.quoted(str(path))}")
    render.print_text(str(path))


def _measured(tokenizer: "Tokenizer", sample: list[str]) -> str:
    """Bytes a token of the sample, beside GPT-2's."""
    from gptcli.tokenizers import build
    from gptcli.tokenizers.text import to_utf8

    size = sum(len(to_utf8(text)) for text in sample)
    ours, gpt2 = (sum(len(each.encode(text)) for text in sample) for each in (tokenizer, build("gpt2")))
    where = "" if sum(map(len, sample)) < MEASURED else f" (of the first {render.human_bytes(size)})"
    return f"{size / ours:.2f} bytes a token{where}; gpt2's 50,257 tokens have {size / gpt2:.2f}."
