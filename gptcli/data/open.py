"""Opens the training data: texts in memory, large texts through token shards, or a folder that prepare wrote."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptcli import tokenizers
from gptcli.checkpoints import layout
from gptcli.data import documents, token_shards
from gptcli.data.dataset import Corpus, make_corpus, open_prepared
from gptcli.data.prepare import Preparation, PreparationRequest
from gptcli.data.text_decoding import PACKED
from gptcli.data.text_record import document_records, sha256, split_characters
from gptcli.data.tokenizer_training import first_characters, in_pieces, train_bpe
from gptcli.device.resources import usable_cpus
from gptcli.errors import GptcliError, SettingError
from gptcli.tokenizers import Tokenizer, bpe_training
from gptcli.tokenizers.choice import Choice, choose
from gptcli.tokenizers.text import END_OF_TEXT, to_utf8

# Bytes of text above which tokens are written to shards first. In memory, each token (about 4 bytes of text) takes 36
# bytes as a Python int, and one thread encodes the text twice: at this size, half a gigabyte and half a minute.
LARGE = 64_000_000
MOST_COUNTED = 16_000_000  # characters of a large text on which its vocabulary is trained
MOST_NAMES = 8  # files that a line lists
PACKED_IN = 4  # estimated ratio of a text's size to its compressed size


TrainTokenizer = Callable[[Sequence[str], int], Tokenizer]  # of texts, or their beginning, and of their bytes in all


@dataclass(frozen=True)
class TextOptions:
    """How to read texts.

    Attributes:
        texts: files, folders, globs or ``-``, as given on the command line.
        train_share: fraction of the characters (of the tokens in a prepared folder) to train on.
        encoding, errors: see `documents.read_documents`.
        allow_special: see `Tokenizer.encode`.
        readmes: whether the READMEs in a folder are texts as well; see `documents.find`.
    """

    texts: Sequence[str]
    train_share: float
    encoding: str | None
    errors: str
    allow_special: bool
    readmes: bool = False


def _prepare(preparation: Preparation) -> None:
    preparation.run(usable_cpus())


def _ignore(line: str) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Functions that print messages and run the preparation; the defaults print nothing.

    Attributes:
        report: called with a line about a choice made or a slow step.
        warn: called with a warning line.
        prepare: runs the preparation of a large text.
    """

    report: Callable[[str], None] = _ignore
    warn: Callable[[str], None] = _ignore
    prepare: Callable[[Preparation], None] = _prepare


def open_texts(
    options: TextOptions,
    name: str | None,
    tokenizer: Tokenizer | None,
    cache: Path,
    callbacks: Callbacks,
    *,
    replace: bool,
    processes: int,
    advice: str | None = None,
    trained: TrainTokenizer | None = None,
) -> tuple[Corpus, Tokenizer, list[str]]:
    """The tokens, the tokenizer, and the absolute paths (or ``-``) by which a resumed run opens the texts again.

    Args:
        options: the texts and how to read them.
        name: a kind, bpe:N or a directory (see `choose`), if the user gave one.
        tokenizer: the tokenizer to use; None for a new one.
        cache: the folder for the shards of a large text.
        callbacks: receive messages, warnings and the preparation.
        replace: whether a cache of other texts may be replaced.
        processes: number of processes that open these texts; with more than one, none writes shards.
        advice: the hint where the cache holds other texts; None for one that names --out and --force.
        trained: makes the tokenizer, where none is given, from the training part of the texts, of a large one from its
            first `MOST_COUNTED` characters.

    Raises:
        GptcliError: a text cannot be read; a folder of shards is incomplete or has another tokenizer.
    """
    chosen = choose(name, layout.ROOT) if name is not None else None
    new = Choice("gpt2") if chosen is None else chosen
    tokenizer = tokenizer or new.tokenizer
    folder = prepared_folder(options.texts)
    if folder is None and tokenizer is None and new.vocab_size is not None:
        bpe_training.library()  # before the texts are read
    trained = trained if chosen is None else None
    if folder is None and _size(options) > LARGE:
        if tokenizer is None and trained is not None and "-" not in options.texts:  # stdin is read only once
            tokenizer = trained(_split(_beginning(options), options), int(options.train_share * _size(options)))
        preparation = _preparation(options, new, tokenizer, cache, replace, advice)
        if processes > 1 and preparation.state != "finished":
            raise GptcliError(
                f"The text is large, and {processes} processes cannot encode it together.",
                "Encode it first (gptcli prepare TEXT --out FOLDER), and train on that folder.",
            )
        callbacks.report(
            f"The text is large: its tokens go to {preparation.out} first, and training reads them from there."
        )
        callbacks.prepare(preparation)
        folder = cache
    if folder is not None:
        corpus, its_tokenizer = _open_prepared(folder, options.train_share, chosen, tokenizer)
        names = [str(folder.absolute())]
    else:
        corpus, its_tokenizer = _read(options, new, tokenizer, callbacks.report, trained)
        names = [text if text == "-" else str(Path(text).absolute()) for text in options.texts]
    for line in corpus.notes:
        callbacks.warn(line)
    return corpus, its_tokenizer, names


def cache_beside(run: Path) -> Path:
    """The folder for the tokens of a large text: beside the run, because the run's folder is created in one step."""
    return run.with_name(f"{run.name}.tokens")


def prepared_folder(texts: Sequence[str]) -> Path | None:
    """The folder among ``texts`` that gptcli prepare wrote; None if there is none.

    Raises:
        GptcliError: the folder is given together with other texts.
    """
    found = [Path(text) for text in texts if text != "-" and (Path(text) / token_shards.MANIFEST).is_file()]
    if found and len(texts) > 1:
        raise GptcliError(
            f"{found[0]} holds prepared tokens, which cannot be trained on together with other texts.",
            "Give it alone, or prepare all texts into one folder: gptcli prepare TEXT... --out FOLDER",
        )
    return found[0] if found else None


def refuse_decoding(folder: Path | None, named: Collection[str]) -> None:
    """Raise GptcliError if ``named`` has an option for reading text, but ``folder`` holds tokens already."""
    for name in ("encoding", "errors", "allow_special"):
        if folder is not None and name in named:
            raise SettingError(
                f"{{{name}}} says how to read a text, but {folder} holds tokens already.",
                "Leave it out, or prepare the text again with it.",
            )


def input_paths(texts: Sequence[str]) -> list[Path]:
    """The existing files and folders among ``texts``, and the files that the globs match."""
    named = [Path(text) for text in texts if text != "-" and Path(text).exists()]
    globs = [text for text in texts if text != "-" and not Path(text).exists()]
    return named + [path for found in documents.find(globs) for path in found.files if path is not None]


def _size(options: TextOptions) -> int:
    """Estimated bytes of text in all files; stdin counts as 0."""
    sources = documents.find(options.texts, readmes=options.readmes)
    files = [path for found in sources for path in found.files if path is not None]
    return sum(path.stat().st_size * (PACKED_IN if path.suffix.lower() in PACKED else 1) for path in files)


def _read(
    options: TextOptions, new: Choice, tokenizer: Tokenizer | None, report: Callable[[str], None],
    trained: TrainTokenizer | None,
) -> tuple[Corpus, Tokenizer]:  # fmt: skip
    found = documents.find(options.texts, readmes=options.readmes)
    for source in found:
        if source.folder is not None or len(source.files) > 1:
            report(_listed(source))
    read = documents.read_documents(found, encoding=options.encoding, errors=options.errors)
    texts = [document.text for document in read]
    if tokenizer is None and trained is not None:
        seen, _ = split_characters(texts, options.train_share)
        tokenizer = trained(_split(seen, options), sum(len(to_utf8(text)) for text in seen))
    elif tokenizer is None and new.vocab_size is not None:
        seen, _ = split_characters(texts, options.train_share)
        tokenizer = train_bpe(in_pieces(seen), new.vocab_size, allow_special=options.allow_special)
    tokenizer = tokenizer or tokenizers.build(new.kind, "\n".join(texts))
    corpus = make_corpus(texts, tokenizer, options.train_share, options.allow_special)
    share = 1.0 if len(corpus.train) == corpus.tokens else options.train_share  # all of a short text trains
    sums = tuple(sha256(part) for part in split_characters(texts, share))
    return dataclasses.replace(corpus, documents=document_records(read, share), sums=sums), tokenizer


def _beginning(options: TextOptions) -> list[str]:
    """The training part of the texts, at most its first `MOST_COUNTED` characters."""
    documents.check_decoding(options.encoding, options.errors)
    found = documents.find(options.texts, readmes=options.readmes)

    def pieces() -> Iterator[tuple[bool, str]]:
        stream = documents.stream(found, encoding=options.encoding, errors=options.errors)
        return ((begins, piece) for _, begins, piece in stream)

    count = min(MOST_COUNTED, int(options.train_share * sum(len(piece) for _, piece in pieces())))
    texts: list[list[str]] = []
    for begins, piece in first_characters(pieces(), count):
        if begins:
            texts.append([])
        texts[-1].append(piece)
    return ["".join(pieces) for pieces in texts]


def _split(texts: Sequence[str], options: TextOptions) -> list[str]:
    """``texts`` without the special tokens in them."""
    return [part for text in texts for part in (text.split(END_OF_TEXT) if options.allow_special else [text])]


def _listed(source: documents.Found) -> str:
    """The files of a folder or glob, in a line."""
    paths = [path for path in source.files if path is not None]
    names = [str(path.relative_to(source.folder) if source.folder else path) for path in paths]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    left_out = f" (not {', '.join(path.name for path in source.left_out)})" if source.left_out else ""
    count = f"{len(names)} texts" if len(names) > 1 else "1 text"
    where = f" in {source.folder}" if source.folder else ""
    return f"Reading {count}{where}: {', '.join(names[:MOST_NAMES])}{more}{left_out}."


def _open_prepared(
    folder: Path, train_share: float, chosen: Choice | None, tokenizer: Tokenizer | None
) -> tuple[Corpus, Tokenizer]:
    about = token_shards.read_manifest(folder)["tokenizer"]
    if chosen is not None and not chosen.matches(about["kind"], about["fingerprint"], about["vocab_size"]):
        raise SettingError(
            f"{{tokenizer}} is {chosen}, but {folder} was prepared with {about['kind']} (vocabulary of "
            f"{about['vocab_size']:,}, {about['fingerprint'][:12]}…).",
            "Leave it out, or prepare the text again with the other one.",
        )
    if tokenizer is not None and tokenizer.fingerprint != about["fingerprint"]:
        raise GptcliError(
            f"{folder} was prepared with another tokenizer: {about['kind']} {about['fingerprint'][:12]}…, where the "
            f"checkpoint has {tokenizer.kind} {tokenizer.fingerprint[:12]}….",
            "Train on the text itself, or on one that was prepared with the checkpoint's tokenizer.",
        )
    corpus = open_prepared(folder, train_share)
    return corpus, tokenizer or tokenizers.load(folder, about["kind"], about["fingerprint"])


def _preparation(
    options: TextOptions, new: Choice, tokenizer: Tokenizer | None, cache: Path, replace: bool, advice: str | None
) -> Preparation:
    new = new if tokenizer is None else Choice(tokenizer.kind)
    request = PreparationRequest(
        tuple(options.texts), new.kind, options.encoding, options.errors, allow_special=options.allow_special,
        vocab_size=new.vocab_size, train_share=options.train_share, readmes=options.readmes,
    )  # fmt: skip
    try:
        return Preparation(cache, request, tokenizer, advice=advice)
    except GptcliError:
        if not replace:
            raise
        return Preparation(cache, request, tokenizer, force=True)
