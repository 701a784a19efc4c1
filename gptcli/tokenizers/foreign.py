"""Reads the tokenizer.json of others; its ids are compared with the tokenizers library's before it is used."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.tokenizers import bpe_training, tokenizer_json
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.gpt2 import CONFIG_FILE, GPT2Tokenizer, is_gpt2s
from gptcli.tokenizers.text import END_OF_TEXT
from gptcli.tokenizers.vocabulary import read_bytes

STRINGS = 1_000  # compared with the library


def read(directory: Path) -> GPT2Tokenizer | BPETokenizer:
    """GPT-2's tokenizer if tokenizer.json in ``directory`` describes it, else one with its vocabulary, compared.

    Raises:
        GptcliError: the file is damaged, or not byte-level BPE with GPT-2's pre-split; its ids differ from those of the
            tokenizers library; or the library is not installed.
    """
    file, settings = directory / tokenizer_json.FILE, directory / CONFIG_FILE
    content = read_bytes(file)
    config = tokenizer_json.parse(read_bytes(settings), settings) if settings.is_file() else {}
    said = tokenizer_json.describe(content, file, config)
    own_end = said.added in ({}, {END_OF_TEXT: GPT2Tokenizer.eot_id}) and said.end in (None, END_OF_TEXT)
    if own_end and is_gpt2s(said.vocab, [" ".join(pair) for pair in said.merges]):
        return GPT2Tokenizer()
    tokenizer = BPETokenizer(said, content)
    tokenizer.check_merges(file)
    compare(tokenizer, content, file)
    return tokenizer


def compare(tokenizer: BPETokenizer, content: bytes, file: Path) -> None:
    """Compare the ids of STRINGS texts with the library's.

    Args:
        tokenizer: ours.
        content: the bytes of the tokenizer.json, for the library.
        file: its path, for messages.

    Raises:
        GptcliError: an id differs, the library refuses the file, or it is not installed.
    """
    try:
        library = bpe_training.library()
    except GptcliError as error:
        raise GptcliError(
            f"{file} was not made by gptcli, and without the tokenizers package its ids cannot be checked.", error.hint
        ) from error
    try:
        theirs = library.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises no narrower class
        reason = " ".join(str(error).split())
        raise GptcliError(f"{file}: the tokenizers library refuses it: {reason:.120}.", "Download it again.") from error
    theirs.no_truncation()
    theirs.no_padding()
    for text in _texts(tokenizer):
        ids, expected = tokenizer.encode(text), theirs.encode(text, add_special_tokens=False).ids
        if ids != expected:
            place = next((n for n, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), 0)
            raise GptcliError(
                f"{file}: gptcli's ids of {text[:40]!r} differ from the tokenizers library's: {ids[place : place + 4]} "
                f"instead of {expected[place : place + 4]} from token {place} on.",
                "Train another tokenizer: gptcli train-tokenizer TEXT",
            )


def _texts(tokenizer: BPETokenizer) -> Iterator[str]:
    """Tokens, white space and any characters, in runs, without special tokens; the same for the same vocabulary."""
    source = random.Random(0)
    known = tokenizer.description.vocab.values()
    pieces = [text for token_id in known if "\ufffd" not in (text := tokenizer.decode([token_id]))]
    special = [token for token in tokenizer.description.added if token not in tokenizer.description.kept]
    odd = [*" \t\n\r\x0b\x1c\x85\xa0\u2028\u3000'", "'s", "'ll ", "'LL", "12", "²", *tokenizer.description.kept]
    pools: list[Callable[[], str]] = [
        lambda: source.choice(pieces),
        lambda: source.choice(pieces),
        lambda: source.choice(odd),
        lambda: chr(source.randrange(0x20, 0x3000)),
        lambda: chr(source.randrange(0xE000, 0x110000)),
    ]  # fmt: skip
    for _ in range(STRINGS):
        text = "".join(source.choice(pools)() * source.choice((1, 1, 1, 2, 5)) for _ in range(20))
        if not any(token in text for token in special):
            yield text
