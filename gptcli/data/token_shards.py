"""Token shards: memory-mapped files with a fixed number of tokens each (the last may have fewer).

A shard is a header of 80 bytes and then its tokens: little-endian uint16 where vocab_size is at most 65,536, else
uint32. The header, little-endian and without padding: magic (8 bytes), version (uint32), bytes per token (uint32),
number of tokens (uint64), CRC-32 of the tokens (uint32), the tokenizer's fingerprint (32 bytes), the `Place` where the
shard ends (2 × uint64), CRC-32 of the preceding 76 bytes (uint32). corpus.json, in the same folder, has the settings,
the tokenizer and the totals.
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gptcli.checkpoints import overwrite
from gptcli.checkpoints.atomic import atomic_write, clear_partials, partial_path, put_in_place
from gptcli.checkpoints.layout import TOKENIZER_FILES
from gptcli.errors import GptcliError

MANIFEST = "corpus.json"
MAGIC, VERSION = b"GPTSHARD", 1
_FORMAT_NAME = "gptcli token shards, version "
FORMAT = f"{_FORMAT_NAME}{VERSION}"
_HEADER = struct.Struct("<8sIIQI32sQQI")
_SUM_BYTES = 2**24
_ROWS_HELD = 64  # the system may map 64 kB around each row
_AGAIN = "Run the gptcli prepare that made it again, with --force; or copy the folder again from where it came."
_ELSEWHERE = "Copy the folder again from where it came, or run gptcli prepare with another --out."
_ANEW = "Remove it and run the same gptcli prepare again: the shard is made again."

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Place:
    """A position in the texts: after ``chunk`` whole chunks (see encoding_chunks.py) and ``tokens`` of the next one."""

    chunk: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class ShardHeader:
    """The header of a shard.

    Attributes:
        width: bytes per token, 2 or 4.
        count: number of tokens.
        crc: CRC-32 of the tokens' bytes.
        fingerprint: the tokenizer's, in hex.
        end: the place in the texts where the next shard begins.
    """

    width: int
    count: int
    crc: int
    fingerprint: str
    end: Place

    def pack(self) -> bytes:
        """The 80 bytes of the header."""
        known = (MAGIC, VERSION, self.width, self.count, self.crc, bytes.fromhex(self.fingerprint))
        raw = _HEADER.pack(*known, self.end.chunk, self.end.tokens, 0)[:-4]
        return raw + struct.pack("<I", zlib.crc32(raw))


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype of tokens on disk: little-endian uint16 if every id fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def shard_path(folder: Path, number: int) -> Path:
    """The path of shard ``number``, counted from 0."""
    return folder / f"shard-{number:05d}.tokens"


def read_header(path: Path) -> ShardHeader:
    """The header of a shard; the file's length is checked, and no token is read.

    Raises:
        GptcliError: the file is missing, not a shard, of another version, damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            raw, size = file.read(_HEADER.size), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise GptcliError(f"{path} is missing.", _AGAIN) from None
    except OSError as error:
        raise GptcliError(f"Cannot read {path}: {error.strerror}.", "Check that you may read it.") from error
    if not raw.startswith(MAGIC):
        raise GptcliError(f"{path} is no token shard: it begins with {raw[:8]!r}, not with {MAGIC!r}.", _AGAIN)
    if len(raw) < _HEADER.size:
        raise GptcliError(
            f"{path} is cut short: it has {size} bytes, and its header alone takes {_HEADER.size}.", _ANEW
        )
    _, version, width, count, crc, fingerprint, chunk, tokens, own_crc = _HEADER.unpack(raw)
    if version != VERSION:
        raise GptcliError(f"{path} is a shard of version {version}; this gptcli reads version {VERSION}.", _AGAIN)
    if zlib.crc32(raw[:-4]) != own_crc or width not in (2, 4):
        raise GptcliError(f"{path} is damaged: the checksum of its header is wrong.", _ANEW)
    needed = _HEADER.size + count * width
    if size != needed:
        what = "is cut short" if size < needed else "is too long"
        raise GptcliError(f"{path} {what}: its {count:,} tokens take {needed:,} bytes, but it has {size:,}.", _ANEW)
    return ShardHeader(width, count, crc, fingerprint.hex(), Place(chunk, tokens))


def check_fingerprint(path: Path, header: ShardHeader, fingerprint: str) -> None:
    """Raise GptcliError if a shard's tokenizer does not have this ``fingerprint``."""
    if header.fingerprint != fingerprint:
        raise GptcliError(
            f"{path} is of another tokenizer: its fingerprint is {header.fingerprint[:12]}…, but {MANIFEST} says "
            f"{fingerprint[:12]}….",
            _AGAIN,
        )


def check_sum(path: Path, header: ShardHeader) -> None:
    """Read a whole shard and raise GptcliError if the CRC-32 of its tokens is wrong."""
    crc = 0
    with path.open("rb") as file:
        file.seek(_HEADER.size)
        while piece := file.read(_SUM_BYTES):
            crc = zlib.crc32(piece, crc)
    if crc != header.crc:
        raise GptcliError(f"{path} is damaged: the checksum of its tokens is {crc:08x}, not {header.crc:08x}.", _ANEW)


class Writer:
    """Writes tokens into shards of a fixed length; each shard is renamed to its final name only when complete.

    Args:
        folder: the folder of the shards.
        fingerprint: the tokenizer's, in hex.
        dtype: the result of `token_dtype`.
        shard_tokens: tokens per shard; the last one may have fewer.
        number: number of the first shard to write.
    """

    def __init__(
        self, folder: Path, fingerprint: str, dtype: np.dtype[Any], shard_tokens: int, number: int = 0
    ) -> None:
        self.number = number
        self._folder, self._fingerprint, self._dtype, self._shard_tokens = folder, fingerprint, dtype, shard_tokens
        self._file: BinaryIO | None = None
        self._count, self._crc = 0, 0
        self._partial = partial_path(folder / "shard")
        clear_partials(folder / "shard")

    def add(self, tokens: Tokens, chunk: int, first: int = 0) -> None:
        """Append ``tokens[first:]``, where ``tokens`` are all tokens of chunk number ``chunk``."""
        while first < len(tokens):
            part = tokens[first : first + self._shard_tokens - self._count].astype(self._dtype, copy=False)
            if self._file is None:
                self._file = self._partial.open("wb")
                self._file.write(bytes(_HEADER.size))
            self._file.write(part.data)
            self._crc = zlib.crc32(part.data, self._crc)
            self._count += len(part)
            first += len(part)
            if self._count == self._shard_tokens:
                self.end_shard(Place(chunk, first))

    def end_shard(self, end: Place) -> None:
        """Write the header of the current shard, if there is one, and rename the file to its final name."""
        if self._file is None:
            return
        header = ShardHeader(self._dtype.itemsize, self._count, self._crc, self._fingerprint, end)
        self._file.seek(0)
        self._file.write(header.pack())
        self._file.close()
        put_in_place(self._partial, shard_path(self._folder, self.number))
        self._file, self._count, self._crc, self.number = None, 0, 0, self.number + 1

    def close(self) -> None:
        """Delete the incomplete current shard."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
            self._partial.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write corpus.json atomically, replacing an existing one."""
    with atomic_write(folder / MANIFEST) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
        json.dump({"format": FORMAT, **manifest}, out, indent=1, ensure_ascii=False)
        out.write("\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """corpus.json: ``settings``, ``tokenizer`` (kind, fingerprint, vocab_size), ``totals`` (None while unfinished).

    Raises:
        GptcliError: the file is missing, damaged or of another version.
    """
    file = folder / MANIFEST
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        known = said["format"] == FORMAT
        if not known and str(said["format"]).startswith(_FORMAT_NAME):
            version = str(said["format"]).removeprefix(_FORMAT_NAME)[:20]
            raise GptcliError(
                f"{file} is of version {version}; this gptcli reads version {VERSION}.",
                "Update gptcli, or run gptcli prepare with another --out.",
            )
        tokenizer, totals = said["tokenizer"], said["totals"]
        whole = isinstance(tokenizer["kind"], str) and isinstance(said["settings"], dict)
        bytes.fromhex(tokenizer["fingerprint"])
        if totals is not None:
            whole &= all(type(totals[name]) is int for name in ("documents", "characters", "tokens", "shards"))
    except OSError as error:
        raise GptcliError(f"Cannot read {file}: {error.strerror}.", _ELSEWHERE) from error
    except (ValueError, KeyError, TypeError) as error:
        raise GptcliError(f"{file} is damaged, or not written by gptcli prepare.", _ELSEWHERE) from error
    if not known or not whole:
        raise GptcliError(f"{file} is damaged, or of another version of gptcli.", _ELSEWHERE)
    found: dict[str, Any] = said
    return found


class Shards:
    """Consecutive tokens in memory-mapped shards; pages that were read are released every _ROWS_HELD rows.

    Args:
        maps: the shards' memory maps.
        parts: the tokens of each shard, uint16 or uint32.
        identity: a digest of the tokenizer's fingerprint and of the shards' lengths and checksums.
        span: index of the first token and of the one after the last; None for all.
    """

    def __init__(
        self, maps: Sequence[mmap.mmap], parts: Sequence[Tokens], identity: str, span: tuple[int, int] | None = None
    ) -> None:
        self._maps, self._parts, self._all = maps, parts, identity
        self._ends = np.cumsum([len(part) for part in parts])
        self._begin, self._end = span or (0, int(self._ends[-1]) if parts else 0)
        self._rows_held = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def identity(self) -> str:
        """SHA-256, in hex, of the shards' identity and of the span."""
        return hashlib.sha256(f"{self._all} {self._begin} {self._end}".encode()).hexdigest()

    @property
    def parts(self) -> Sequence[Tokens]:
        """The tokens of every shard, whatever the span: uint16 or uint32."""
        return self._parts

    def part(self, begin: int, end: int) -> "Shards":
        """The tokens from ``begin`` up to, not including, ``end``."""
        return Shards(self._maps, self._parts, self._all, (self._begin + begin, self._begin + end))

    def rows(self, starts: Sequence[int], length: int) -> NDArray[np.int64]:
        """``length`` consecutive tokens from each of ``starts``: (B, length) int64."""
        rows = np.empty((len(starts), length), np.int64)
        for row, start in zip(rows, starts, strict=True):
            at, done = self._begin + start, 0
            shard = int(np.searchsorted(self._ends, at, side="right"))
            while done < length:
                first = at + done - (int(self._ends[shard]) - len(self._parts[shard]))
                piece = self._parts[shard][first : first + length - done]
                row[done : done + len(piece)] = piece
                done += len(piece)
                shard += 1
        self._let_go(len(starts))
        return rows

    def _let_go(self, rows: int) -> None:
        """Release the mapped pages every _ROWS_HELD rows; the system itself keeps them until memory is short."""
        self._rows_held += rows
        if self._rows_held >= _ROWS_HELD and hasattr(mmap, "MADV_DONTNEED"):
            for shard in self._maps:
                shard.madvise(mmap.MADV_DONTNEED)
            self._rows_held = 0


def open_shards(folder: Path) -> Shards:
    """All tokens of a prepared folder. Every header and every file's length is checked; no token is read.

    Raises:
        GptcliError: the folder is unfinished, or a shard is missing, damaged, truncated or of another tokenizer.
    """
    manifest = read_manifest(folder)
    totals = manifest["totals"]
    if totals is None:
        raise GptcliError(
            f"{folder} is not finished.", "Run the same gptcli prepare again: it continues where it stopped."
        )
    digest = hashlib.sha256(manifest["tokenizer"]["fingerprint"].encode())
    maps, parts = [], []
    for number in range(totals["shards"]):
        path = shard_path(folder, number)
        header = read_header(path)
        check_fingerprint(path, header, manifest["tokenizer"]["fingerprint"])
        digest.update(f" {header.count} {header.crc}".encode())
        try:
            with path.open("rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise GptcliError(
                f"Cannot map {path}: {error.strerror}.",
                "Raise the limit of open files (ulimit -n), or run gptcli prepare again with larger --shard-tokens.",
            ) from error
        parts.append(np.frombuffer(maps[-1], f"<u{header.width}", header.count, _HEADER.size))
    shards = Shards(maps, parts, digest.hexdigest())
    if len(shards) != totals["tokens"]:
        raise GptcliError(
            f"{folder} has {len(shards):,} tokens in its shards, but {MANIFEST} says {totals['tokens']:,}.", _AGAIN
        )
    return shards


FOLDER = overwrite.Kind(
    "a folder of gptcli prepare",
    re.compile(rf"{overwrite.written(MANIFEST, 'shard', *TOKENIZER_FILES)}|shard-\d{{5,}}\.tokens|{overwrite.LOCKS}"),
    MANIFEST,
    read_manifest,
)
