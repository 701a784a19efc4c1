"""The record of a run's texts, made from what it opened."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gptcli.data.dataset import Corpus, first_tokens
from gptcli.data.examples import ExampleSet
from gptcli.data.text_record import PartRecord, TextRecord
from gptcli.data.token_shards import Shards
from gptcli.tokenizers import Tokenizer

SAMPLE = 200_000  # tokens of a part that are decoded to learn how many bytes a token stands for
LOSSY = ("word", "none")  # tokenizers whose tokens do not give their text back


def record_of(
    corpus: Corpus | ExampleSet, tokenizer: Tokenizer, source: Mapping[str, Any], train_share: float,
    before: TextRecord | None = None,
) -> TextRecord:  # fmt: skip
    """What RUN/texts.json says of a run.

    Args:
        corpus: its tokens or examples.
        tokenizer: the one that encoded them.
        source: the facts about the texts that its snapshots store.
        train_share: the fraction to train on.
        before: of the checkpoint whose weights it begins with.
    """
    if isinstance(corpus, ExampleSet):
        parts = [
            PartRecord(digest, part.tokens, None) if part is not None else None
            for part, digest in zip((corpus.train, corpus.validation), corpus.sums, strict=True)
        ]
        assert parts[0] is not None
        return TextRecord(
            source["texts"], source["encoding"], source["errors"], train_share, corpus.documents, parts[0], parts[1],
            before,
        )  # fmt: skip
    sums = corpus.sums or (corpus.fingerprint, corpus.fingerprint)
    train, validation = (
        _part(part, digest, tokenizer) for part, digest in zip((corpus.train, corpus.validation), sums, strict=True)
    )
    return TextRecord(
        source["texts"], source["encoding"], source["errors"], train_share, corpus.documents, train,
        validation if len(corpus.validation) else None, before,
    )  # fmt: skip


def _part(part: Tensor | Shards, digest: str, tokenizer: Tokenizer) -> PartRecord:
    sample = first_tokens(part, SAMPLE)
    if tokenizer.kind in LOSSY or not sample:
        return PartRecord(digest, len(part), None)
    return PartRecord(digest, len(part), len(tokenizer.decode(sample).encode("utf-8", "replace")) / len(sample))
