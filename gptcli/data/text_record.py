"""RUN/texts.json: which texts a run was trained on, by their hashes, and how they were split. Imports no torch."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.checkpoints.atomic import atomic_write
from gptcli.checkpoints.layout import TEXTS
from gptcli.data.documents import Document, read_documents
from gptcli.errors import GptcliError

PARTS = ("train", "validation")


@dataclass(frozen=True)
class DocumentRecord:
    """One document: the SHA-256 of its text, its length, and how many of its characters, the first, were trained on."""

    name: str
    sha256: str
    characters: int
    trained: int


@dataclass(frozen=True)
class PartRecord:
    """A part of the texts: SHA-256 of its text (of its tokens where they were prepared), its tokens, and the bytes of
    text that a token stands for, None where decoding does not give the text back."""

    sha256: str
    tokens: int
    bytes_per_token: float | None


@dataclass(frozen=True)
class TextRecord:
    """What a run was trained on.

    Attributes:
        texts: the absolute paths, folders and globs, or ``-``.
        encoding, errors: how they were read.
        train_share: the fraction of the characters that was trained on.
        documents: in their order; empty for prepared tokens, whose texts are not known.
        train, validation: the parts; None where there is none.
        before: of the checkpoint that it was trained further from; None for random weights, or where it has no record.
    """

    texts: Sequence[str]
    encoding: str | None
    errors: str
    train_share: float
    documents: Sequence[DocumentRecord]
    train: PartRecord
    validation: PartRecord | None
    before: "TextRecord | None" = None

    def trained_share(self, documents: Iterable[Document]) -> float | None:
        """The share of the characters of ``documents`` that was trained on; None where none of them is known.

        A document is known if it is one of the run's, or one part of its texts.
        """
        shares = [(len(document.text), self._share(document)) for document in documents]
        if all(share is None for _, share in shares):
            return None
        return sum(length * (share or 0.0) for length, share in shares) / max(1, sum(length for length, _ in shares))

    def _share(self, document: Document) -> float | None:
        digest, length = sha256([document.text]), max(1, len(document.text))
        whole, start = document.cut_from or (digest, 0)
        # The first characters of a document are trained on, so that the larger share has the smaller in it.
        shares = [min(max(each.trained - start, 0) / length, 1.0) for each in self.documents if each.sha256 == whole]
        if not shares:
            parts = ((self.train, 1.0), (self.validation, 0.0))
            shares = [share for part, share in parts if part is not None and part.sha256 == digest]
        earlier = self.before._share(document) if self.before is not None else None
        return max([*shares, *([] if earlier is None else [earlier])], default=None)


def split_characters(texts: Sequence[str], train_share: float) -> tuple[list[str], list[str]]:
    """The first ``train_share`` of all characters, and the rest; a text that spans the boundary is cut there."""
    left = int(train_share * sum(len(text) for text in texts))
    train, validation = [], []
    for text in texts:
        head, tail = text[:left], text[left:]
        left -= len(head)
        train += [head] if head else []
        validation += [tail] if tail else []
    return train, validation


def sha256(texts: Iterable[str]) -> str:
    """SHA-256, in hex, of the concatenated texts in UTF-8."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "replace"))
    return digest.hexdigest()


def document_records(documents: Iterable[Document], train_share: float) -> tuple[DocumentRecord, ...]:
    """The records of documents that are split at ``train_share`` of their characters."""
    found = list(documents)
    left = int(train_share * sum(len(document.text) for document in found))
    records = []
    for document in found:
        trained = min(left, len(document.text))
        left -= trained
        records.append(DocumentRecord(document.name, sha256([document.text]), len(document.text), trained))
    return tuple(records)


def write(run: Path, record: TextRecord) -> None:
    """Write ``record`` into a run's directory, atomically. Raises OSError."""
    with atomic_write(run / TEXTS) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(_stored(record), file, indent=1)


def _stored(record: TextRecord) -> dict[str, Any]:
    before = {"before": _stored(record.before)} if record.before is not None else {}
    return {name: value for name, value in asdict(record).items() if name != "before"} | before


def read(checkpoint: Path) -> TextRecord | None:
    """The record in a checkpoint's directory; None where there is none, as in older runs, or it is damaged."""
    try:
        return _restored(json.loads((checkpoint / TEXTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _restored(stored: dict[str, Any]) -> TextRecord:
    parts = {name: stored[name] and PartRecord(**stored[name]) for name in PARTS}
    documents = [DocumentRecord(**each) for each in stored["documents"]]
    before = _restored(stored["before"]) if stored.get("before") else None
    return TextRecord(**stored | parts | {"documents": documents, "before": before})


def _source(texts: Sequence[str]) -> str:
    if "-" in texts:
        return "stdin"
    return f"{texts[0]}, which holds {'tokens' if Path(texts[0]).is_dir() else 'separate examples'}"


def has_part(checkpoint: Path, part: str) -> bool:
    """Whether `open_part` can open this part."""
    try:
        return bool(open_part(checkpoint, part))
    except GptcliError:
        return False


def open_part(checkpoint: Path, part: str) -> list[Document]:
    """The train or validation part of the texts that a run was trained on, read again from where they were.

    Raises:
        GptcliError: the checkpoint does not know its texts, has no such part, or they have changed or cannot be read.
    """
    record = read(checkpoint)
    if record is None:
        raise GptcliError(
            f"{checkpoint} does not say which texts it was trained on.", "Give a text to measure it on instead."
        )
    found = record.train if part == "train" else record.validation
    if found is None:
        raise GptcliError(f"{checkpoint} held no text out to validate on.", "Give a text to measure it on instead.")
    if not record.documents or "-" in record.texts:
        raise GptcliError(
            f"The text of {checkpoint} came from {_source(record.texts)}.", "Give a text to measure it on instead."
        )
    documents = read_documents(list(record.texts), encoding=record.encoding, errors=record.errors)
    train, validation = split_characters([document.text for document in documents], record.train_share)
    texts = train if part == "train" else validation
    if sha256(texts) != found.sha256:
        raise GptcliError(
            f"The texts of {checkpoint} ({', '.join(record.texts)}) are not what they were.",
            "Give a text to measure it on instead.",
        )
    records = document_records(documents, record.train_share)
    cut = records[: len(texts)] if part == "train" else records[len(documents) - len(texts) :]
    starts = [0 if part == "train" else each.trained for each in cut]
    return [
        Document(f"{each.name} ({part} part)", text, (each.sha256, start))
        for each, text, start in zip(cut, texts, starts, strict=True)
    ]
