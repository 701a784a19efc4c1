"""Encodes texts of any size into token shards: in parallel, in bounded memory, resumable after an interruption.

The texts are read in chunks (see encoding_chunks.py). Chunk boundaries depend only on the texts, so each shard's header
records the chunk and the token where the shard ends; resuming reads the earlier chunks again without encoding them.
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gptcli import tokenizers
from gptcli.checkpoints import overwrite
from gptcli.checkpoints.atomic import clear_partials, partial_path
from gptcli.data import documents, token_shards
from gptcli.data.encoding_chunks import Portion, chunks
from gptcli.data.token_shards import Place, Tokens, Writer
from gptcli.data.tokenizer_training import first_characters, train_bpe
from gptcli.errors import GptcliError, SettingError, nearest
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.char import CharTokenizer
from gptcli.tokenizers.gpt2 import GPT2Tokenizer
from gptcli.tokenizers.word import WordTokenizer

SHARD_TOKENS = 2**25
IN_FLIGHT = 3  # chunks per worker


@dataclass(frozen=True)
class PreparationRequest:
    """The texts to prepare and the settings.

    Attributes:
        texts: files, folders, globs; - is stdin.
        kind: the kind of tokenizer.
        vocab_size: of a BPE to be trained on the first ``train_share`` of all characters; None for another tokenizer.
        encoding, errors: how bytes are decoded; see `documents.read_documents`.
        field: if given, each line of a file is a JSON object, and this field of it is a text; None: a file is a text.
        allow_special: encode <|endoftext|> in a text as the special token.
        shard_tokens: tokens per shard.
        train_share: fraction of the characters.
        readmes: see `documents.find`.

    Raises:
        GptcliError: the tokenizer, encoding or value of ``errors`` is unknown, or ``shard_tokens`` is under 1.
    """

    texts: tuple[str, ...]
    kind: str = "gpt2"
    encoding: str | None = None
    errors: str = "strict"
    field: str | None = None
    allow_special: bool = False
    shard_tokens: int = SHARD_TOKENS
    vocab_size: int | None = None
    train_share: float = 0.9
    readmes: bool = False

    def __post_init__(self) -> None:
        documents.check_decoding(self.encoding, self.errors)
        if self.kind not in (*tokenizers.KINDS, BPETokenizer.kind):
            raise GptcliError(f"There is no tokenizer {self.kind!r}.", nearest(self.kind, tokenizers.KINDS))
        if self.shard_tokens < 1:
            raise SettingError(f"{{shard_tokens}} is {self.shard_tokens}; a shard has at least 1.", "Leave it out.")


class Preparation:
    """The preparation of one corpus.

    Attributes:
        request: the texts and the settings.
        bytes: total size of the files on disk; stdin counts as 0.
        passes: number of times the texts are read: 2 for a new char or word tokenizer, 3 for a BPE, else 1.
        shards_done: number of complete shards in ``out``.
        state: ``new``, ``unfinished`` (``run`` continues it) or ``finished`` (``run`` does nothing).

    Args:
        out: the folder to make.
        request: the texts and the settings.
        tokenizer: an existing tokenizer of the requested kind; None for a new one.
        force: replace a corpus of other texts or settings.
        advice: the hint where ``out`` holds such a corpus; None for one that names ``force``.

    Raises:
        GptcliError: a text is missing; ``out`` holds something else, or a corpus of other texts or settings; a shard in
            it is damaged (the checksum of every shard is computed).
    """

    def __init__(
        self, out: Path, request: PreparationRequest, tokenizer: Tokenizer | None = None, force: bool = False,
        advice: str | None = None,
    ) -> None:  # fmt: skip
        self.out, self.request, self._given, self._advice = out, request, tokenizer, advice
        suffixes = documents.SUFFIXES if request.field is None else documents.RECORD_SUFFIXES
        self._found = documents.find(request.texts, suffixes, request.readmes)
        files = [path for found in self._found for path in found.files]
        self._again = all(path is not None and path.is_file() for path in files)
        self._settings = self._describe(files)
        self.bytes = sum(path.stat().st_size for path in files if path is not None)
        self._start, self.shards_done, self._begun, self._replaces = Place(), 0, False, force
        self.state = self._look(force)
        learns = {"char": 2, "word": 2, "bpe": 3} if self._given is None and self.state == "new" else {}
        self.passes = learns.get(request.kind, 1)
        if self.passes > 1 and not self._again:
            raise GptcliError(
                f"A {request.kind} tokenizer reads the text twice, and stdin or a pipe can be read only once.",
                "Save the text as a file first, or choose the gpt2 or byte tokenizer.",
            )

    def run(self, workers: int, report: Callable[[int], None] = lambda count: None) -> None:
        """Encode all chunks that are not yet in complete shards.

        Args:
            workers: number of encoding threads.
            report: called with the number of bytes read so far, out of `bytes` times `passes`.

        Raises:
            GptcliError: a text cannot be read (a folder that this call created is removed), or the disk cannot be
                written to (complete shards remain, and the same request continues after them).
        """
        if self.state == "finished":
            return
        try:
            tokenizer = self._begin(report) if self.state == "new" else self._saved_tokenizer()
            self._encode(tokenizer, workers, lambda count: report(count + (self.passes - 1) * self.bytes))
        except GptcliError:
            if self._begun and not overwrite.foreign(self.out, token_shards.FOLDER.ours):
                shutil.rmtree(self.out, ignore_errors=True)
            raise
        except OSError as error:
            raise GptcliError(
                f"Cannot write to {self.out}: {error.strerror or error}.",
                "Free some space, or choose another folder; the same command continues after the last whole shard.",
            ) from error

    def _describe(self, files: list[Path | None]) -> dict[str, Any]:
        """All settings and files that the tokens depend on, for corpus.json."""
        sources: list[dict[str, Any]] = []
        for path in files:
            if path is None:
                sources.append({"path": "-"})
            else:
                about = path.stat()
                sources.append({"path": str(path.absolute()), "bytes": about.st_size, "modified": about.st_mtime_ns})
        request = self.request
        trained = {} if request.vocab_size is None else {"train_share": request.train_share}
        return trained | {
            "tokenizer": request.kind, "encoding": request.encoding, "errors": request.errors, "field": request.field,
            "allow_special": request.allow_special, "shard_tokens": request.shard_tokens, "sources": sources,
        }  # fmt: skip

    def _look(self, force: bool) -> str:
        """The state of ``out``: new, unfinished or finished; raises where ``out`` may not be used."""
        is_there = (self.out / token_shards.MANIFEST).is_file()
        if force or not is_there:
            self._check_output(force)
            return "new"
        manifest = token_shards.read_manifest(self.out)
        self._compare(manifest)
        finished = manifest["totals"] is not None
        if not finished and not self._again:
            self._check_output(force=True)
            self._replaces = True
            return "new"
        self._count_whole_shards(manifest["tokenizer"]["fingerprint"])
        return "finished" if finished and self.shards_done == manifest["totals"]["shards"] else "unfinished"

    def _check_output(self, force: bool) -> None:
        files = [path for found in self._found for path in found.files if path is not None]
        overwrite.check_output(self.out, token_shards.FOLDER, force=force, inputs=files)

    def _hint(self) -> str:
        """The hint where ``out`` holds other tokens; it names ``force`` unless that would be refused."""
        if self._advice is not None:
            return self._advice
        try:
            self._check_output(force=True)
        except GptcliError:
            return "Choose another folder."
        return "Choose another folder, or replace it with {force}."

    def _compare(self, manifest: dict[str, Any]) -> None:
        before, now, hint = manifest["settings"], self._settings, self._hint()
        for name in now:
            if name != "sources" and now[name] != before.get(name):
                both = f"{before.get(name)}, not {now[name]}"
                raise SettingError(f"{self.out} was prepared with {{{name}}} {both}.", hint)
        fingerprint, size = manifest["tokenizer"]["fingerprint"], manifest["tokenizer"]["vocab_size"]
        if self.request.vocab_size not in (None, size):
            raise SettingError(f"{self.out} was prepared with bpe:{size}, not bpe:{self.request.vocab_size}.", hint)
        if self._given is not None and self._given.fingerprint != fingerprint:
            raise SettingError(f"{self.out} was prepared with another {self.request.kind} tokenizer.", hint)
        old = {source["path"]: source for source in before.get("sources", [])}
        for source in now["sources"]:
            was = old.get(source["path"])
            if was != source and was is not None:
                changed = f"{was.get('bytes', 0):,} bytes then, {source.get('bytes', 0):,} now"
                if was.get("bytes") == source.get("bytes"):
                    changed = "the file has been written since"
                raise SettingError(f"{source['path']} has changed since {self.out} was begun: {changed}.", hint)
        if now["sources"] != before.get("sources"):
            raise SettingError(f"{self.out} was prepared from other texts.", hint)
        if not self._again and manifest["totals"] is not None:
            raise SettingError(f"{self.out} exists already, and stdin cannot be compared with what it holds.", hint)

    def _count_whole_shards(self, fingerprint: str) -> None:
        while (path := token_shards.shard_path(self.out, self.shards_done)).exists():
            header = token_shards.read_header(path)
            token_shards.check_fingerprint(path, header, fingerprint)
            token_shards.check_sum(path, header)
            self._start = header.end
            self.shards_done += 1

    def _saved_tokenizer(self) -> Tokenizer:
        about = token_shards.read_manifest(self.out)["tokenizer"]
        return tokenizers.load(self.out, about["kind"], about["fingerprint"])

    def _stream(self, report: Callable[[int], None]) -> Iterator[tuple[bool, str]]:
        request = self.request
        how: dict[str, Any] = {"encoding": request.encoding, "errors": request.errors, "field": request.field}
        return ((begins, text) for _, begins, text in documents.stream(self._found, **how, report=report))

    def _begin(self, report: Callable[[int], None]) -> Tokenizer:
        """Create the folder atomically, with the tokenizer and a corpus.json whose totals are null."""
        tokenizer = self._given or self._new_tokenizer(report)
        partial = partial_path(self.out)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            clear_partials(self.out)
            partial.mkdir()
            tokenizer.save(partial)
            token_shards.write_manifest(partial, self._manifest(tokenizer, None))
            overwrite.put_in_place(partial, self.out, token_shards.FOLDER, force=self._replaces)
            self._begun = True
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return tokenizer

    def _new_tokenizer(self, report: Callable[[int], None]) -> Tokenizer:
        if self.passes == 1:
            return tokenizers.build(self.request.kind)
        if self.request.vocab_size is not None:
            seen = int(self.request.train_share * sum(len(text) for _, text in self._stream(report)))
            pieces_seen = first_characters(self._stream(lambda count: report(self.bytes + count)), seen)
            return train_bpe(pieces_seen, self.request.vocab_size, allow_special=self.request.allow_special)
        several = 0

        def pieces() -> Iterator[str]:
            nonlocal several
            for chunk in chunks(self._stream(report)):
                for separated, text in chunk:
                    several |= separated
                    yield text
            if several:
                yield "\n"  # train joins several texts by a newline

        learned = CharTokenizer if self.request.kind == "char" else WordTokenizer
        return learned.from_pieces(pieces())

    def _encode(self, tokenizer: Tokenizer, workers: int, report: Callable[[int], None]) -> None:
        dtype = token_shards.token_dtype(tokenizer.vocab_size)
        encode = _encoder(tokenizer, self.request.allow_special)
        totals = {"documents": 1, "characters": 0, "tokens": 0}
        read = 0

        def note(count: int) -> None:
            nonlocal read
            read = count

        def counted() -> Iterator[tuple[Portion, int]]:
            for chunk in chunks(self._stream(note)):
                totals["documents"] += sum(separated for separated, _ in chunk)
                totals["characters"] += sum(len(text) for _, text in chunk)
                yield chunk, read

        writer = Writer(self.out, tokenizer.fingerprint, dtype, self.request.shard_tokens, self.shards_done)
        numbered = counted()
        for _, count in islice(numbered, self._start.chunk):
            report(count)
        number, first = self._start.chunk, self._start.tokens
        try:
            for tokens, count in _in_order(numbered, encode, workers):
                writer.add(tokens, number, first)
                number, first = number + 1, 0
                report(count)
            writer.end_shard(Place(number))
        finally:
            writer.close()
        totals["tokens"] = sum(
            token_shards.read_header(token_shards.shard_path(self.out, shard)).count for shard in range(writer.number)
        )
        token_shards.write_manifest(self.out, self._manifest(tokenizer, {**totals, "shards": writer.number}))

    def _manifest(self, tokenizer: Tokenizer, totals: dict[str, int] | None) -> dict[str, Any]:
        about = {
            "kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size
        }  # fmt: skip
        return {"settings": self._settings, "tokenizer": about, "totals": totals}


def _encoder(tokenizer: Tokenizer, allow_special: bool) -> Callable[[Portion], Tokens]:
    dtype, eot = token_shards.token_dtype(tokenizer.vocab_size), tokenizer.eot_id

    def encode(chunk: Portion) -> Tokens:
        runs: list[Tokens] = []
        for separated, text in chunk:
            if separated and eot is not None:
                runs.append(np.array([eot], dtype))
            if isinstance(tokenizer, GPT2Tokenizer | BPETokenizer):
                runs.append(tokenizer.encode_array(text, allow_special=allow_special).astype(dtype))
            else:
                runs.append(np.array(tokenizer.encode(text, allow_special=allow_special), dtype))
        return np.concatenate(runs)

    return encode


def _in_order(
    chunks: Iterable[tuple[Portion, int]], encode: Callable[[Portion], Tokens], workers: int
) -> Iterator[tuple[Tokens, int]]:
    """Encode in threads (tiktoken releases the GIL); up to IN_FLIGHT chunks per worker are queued, results in order."""
    waiting: deque[tuple[Future[Tokens], int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for chunk, count in chunks:
                waiting.append((pool.submit(encode, chunk), count))
                if len(waiting) >= IN_FLIGHT * workers:
                    done, read = waiting.popleft()
                    yield done.result(), read
            while waiting:
                done, read = waiting.popleft()
                yield done.result(), read
        finally:
            for late, _ in waiting:
                late.cancel()
