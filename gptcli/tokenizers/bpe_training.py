"""Trains byte-level BPE with the tokenizers library, an optional extra; encoding with the result does not need it."""

import json
import os
from collections.abc import Iterable
from typing import Any

from gptcli.errors import GptcliError, SettingError
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.text import without_surrogates

SMALLEST = 257  # the 256 bytes and <|endoftext|>
LARGEST = 1_000_000
MIN_FREQUENCY = 2


def check_size(vocab_size: int, min_frequency: int = MIN_FREQUENCY) -> None:
    """Raise GptcliError for a size or a frequency out of range."""
    if not SMALLEST <= vocab_size <= LARGEST:
        raise GptcliError(
            f"A BPE vocabulary of {vocab_size:,} is outside {SMALLEST} to {LARGEST:,}: the 256 bytes and <|endoftext|> "
            "are always in it.",
            "4096 suits a text of some megabytes; GPT-2 has 50,257.",
        )
    if min_frequency < 1:
        raise SettingError(f"{{min_frequency}} is {min_frequency}; it is at least 1.", "Leave it out for 2.")


def library() -> Any:
    """The tokenizers library.

    Raises:
        GptcliError: it is not installed.
    """
    # Set, so that the library does not warn, or stop using threads, where this process forks later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        import tokenizers
    except ImportError as error:
        raise GptcliError(
            "This needs Hugging Face's tokenizers package, which is not installed.",
            "Install it: pip install 'gptcli[tokenizers]'",
        ) from error
    return tokenizers


def train(pieces: Iterable[str], vocab_size: int, min_frequency: int = MIN_FREQUENCY) -> BPETokenizer:
    """A tokenizer of exactly ``vocab_size`` tokens; the same text gives the same, with any number of threads.

    Args:
        pieces: the text, cut only where GPT-2's pre-split cuts, and counted in parallel, piece by piece.
        vocab_size: number of tokens, the 256 bytes and <|endoftext|> included.
        min_frequency: how often a pair of tokens must occur to be merged.

    Raises:
        GptcliError: from `check_size`; or the text has too few pairs for ``vocab_size`` tokens.
    """
    check_size(vocab_size, min_frequency)
    theirs = library()
    tokenizer = theirs.Tokenizer(theirs.models.BPE())
    tokenizer.pre_tokenizer = theirs.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = theirs.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=min_frequency,
        initial_alphabet=theirs.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(without_surrogates, pieces), trainer)
    merges = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge)
        for merge in json.loads(tokenizer.to_str())["model"]["merges"]
    ]
    reached = SMALLEST + len(merges)
    if reached < vocab_size:
        times = "at least once" if min_frequency == 1 else f"at least {min_frequency} times"
        raise GptcliError(
            f"The text has pairs that occur {times} for a vocabulary of {reached:,} tokens, not of {vocab_size:,}.",
            f"Ask for at most {reached:,}, or give a longer text.",
        )
    return BPETokenizer.of_merges(merges)
