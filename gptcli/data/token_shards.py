"""Token shards: a text's tokens in files of a fixed length, to be read by memory map.

A shard is a header of 80 bytes and then its tokens, little-endian, two bytes each where the vocabulary allows it and
else four. The header holds, little-endian and without gaps: the magic bytes, the version, the bytes a token, how many
tokens follow, their CRC-32, the tokenizer's fingerprint, the place in the text where the shard ends (see `Place`), and
the CRC-32 of all of this. corpus.json, beside the shards, says what they were made of and how.
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
from gptcli.checkpoints.layout import TOKENIZER_FILES
from gptcli.checkpoints.safetensors_file import clear_partials, partial_path, sync_directory
from gptcli.errors import GptcliError

MANIFEST = "corpus.json"
MAGIC, VERSION = b"GPTSHARD", 1
_FORMAT_NAME = "gptcli token shards, version "
FORMAT = f"{_FORMAT_NAME}{VERSION}"
_HEADER = struct.Struct("<8sIIQI32sQQI")
_SUM_BYTES = 2**24
_ROWS_HELD = 64  # each may map 64 kB around it
_AGAIN = "Run the gptcli prepare that made it again, with --force; or copy the folder again from where it came."
_ELSEWHERE = "Copy the folder again from where it came, or run gptcli prepare with another --out."
_ANEW = "Remove it and run the same gptcli prepare again: it is made anew."

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Place:
    """A place in a text: ``chunk`` chunks of it are done (see chunks.py), and ``tokens`` of the one after."""

    chunk: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Header:
    """What the first bytes of a shard say.

    Attributes:
        width: bytes a token, 2 or 4.
        count: tokens.
        crc: of the tokens' bytes.
        fingerprint: of the tokenizer, in hex.
        end: where in the text the next shard begins.
    """

    width: int
    count: int
    crc: int
    fingerprint: str
    end: Place

    def pack(self) -> bytes:
        """As it is in the file."""
        known = (MAGIC, VERSION, self.width, self.count, self.crc, bytes.fromhex(self.fingerprint))
        raw = _HEADER.pack(*known, self.end.chunk, self.end.tokens, 0)[:-4]
        return raw + struct.pack("<I", zlib.crc32(raw))


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Of tokens on disk: two bytes where they hold every id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def shard_path(folder: Path, number: int) -> Path:
    """Where shard ``number``, from 0, is."""
    return folder / f"shard-{number:05d}.tokens"


def read_header(path: Path) -> Header:
    """The header of a shard that has all its bytes; the tokens themselves are not looked at.

    Raises:
        GptcliError: no shard, one of another version, or one that is damaged or cut short.
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
    return Header(width, count, crc, fingerprint.hex(), Place(chunk, tokens))


def check_fingerprint(path: Path, header: Header, fingerprint: str) -> None:
    """Raise GptcliError where a shard is of another tokenizer than ``fingerprint``'s."""
    if header.fingerprint != fingerprint:
        raise GptcliError(
            f"{path} is of another tokenizer: its fingerprint is {header.fingerprint[:12]}…, but {MANIFEST} says "
            f"{fingerprint[:12]}….",
            _AGAIN,
        )


def check_sum(path: Path, header: Header) -> None:
    """Read a whole shard and raise GptcliError where its checksum is wrong."""
    crc = 0
    with path.open("rb") as file:
        file.seek(_HEADER.size)
        while piece := file.read(_SUM_BYTES):
            crc = zlib.crc32(piece, crc)
    if crc != header.crc:
        raise GptcliError(f"{path} is damaged: the checksum of its tokens is {crc:08x}, not {header.crc:08x}.", _ANEW)


class Writer:
    """Writes tokens into shards of a fixed length; each appears whole or not at all.

    Args:
        folder: where to.
        fingerprint: of the tokenizer, in hex.
        dtype: as `token_dtype` says.
        shard_tokens: tokens a shard; the last one may have fewer.
        number: of the first shard to write.
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
        """Append ``tokens[first:]``, where ``tokens`` are those of chunk number ``chunk``."""
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
        """Give the shard begun, if there is one, its header and its name."""
        if self._file is None:
            return
        header = Header(self._dtype.itemsize, self._count, self._crc, self._fingerprint, end)
        self._file.seek(0)
        self._file.write(header.pack())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(shard_path(self._folder, self.number))
        sync_directory(self._folder)
        self._file, self._count, self._crc, self.number = None, 0, 0, self.number + 1

    def close(self) -> None:
        """Give up the shard begun."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
            self._partial.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write corpus.json, over the one before, at once."""
    partial = partial_path(folder / MANIFEST)
    with partial.open("w", encoding="utf-8", newline="\n") as out:
        json.dump({"format": FORMAT, **manifest}, out, indent=1, ensure_ascii=False)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(folder / MANIFEST)
    sync_directory(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What corpus.json says: ``settings``, ``tokenizer`` (kind, fingerprint, vocab_size), ``totals`` (or None as yet).

    Raises:
        GptcliError: it is missing, or is not what `write_manifest` writes.
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
    """A run of tokens that lies in files: only what is looked at is in memory, and not for long.

    Args:
        maps: the shards' memory maps.
        parts: the tokens of each.
        identity: equal for equal tokens.
        span: which tokens of all these it has: the first, and the one after the last.
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
        """SHA-256, in hex, of what the shards' headers say of their tokens, and of which of them this has."""
        return hashlib.sha256(f"{self._all} {self._begin} {self._end}".encode()).hexdigest()

    def part(self, begin: int, end: int) -> "Shards":
        """The tokens from ``begin`` to before ``end``."""
        return Shards(self._maps, self._parts, self._all, (self._begin + begin, self._begin + end))

    def rows(self, starts: Sequence[int], length: int) -> NDArray[np.int64]:
        """Stretches of ``length`` tokens that begin at ``starts``: (B, length)."""
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
        """Now and then, give back the pages looked at: the system keeps them as long as it has room."""
        self._rows_held += rows
        if self._rows_held >= _ROWS_HELD and hasattr(mmap, "MADV_DONTNEED"):
            for shard in self._maps:
                shard.madvise(mmap.MADV_DONTNEED)
            self._rows_held = 0


def open_shards(folder: Path) -> Shards:
    """All tokens of a prepared folder. Every header and every file's length is checked, no token is read.

    Raises:
        GptcliError: the folder is unfinished, or a shard is missing, damaged, cut short or of another tokenizer.
    """
    manifest = read_manifest(folder)
    totals = manifest["totals"]
    if totals is None:
        raise GptcliError(f"{folder} is not finished.", "Run the same gptcli prepare again: it goes on where it was.")
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
                "Raise the limit of open files (ulimit -n), or prepare it again with larger --shard-tokens.",
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
