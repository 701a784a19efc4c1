"""TensorFlow's checkpoint format V2, read without TensorFlow: an index file and data shards of raw tensors.

The index is a sorted string table as in LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md):
blocks of prefix-compressed entries, each block followed by its compression type (1 byte) and a masked CRC-32C (uint32,
little-endian); a footer of 48 bytes with the offset and size of the index block, which lists the blocks. The values are
protocol buffers (BundleHeaderProto under the empty key, BundleEntryProto under each tensor's name:
tensorflow/core/protobuf/tensor_bundle.proto).
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptcli.checkpoints.formats.crc32c import crc32c, unmask
from gptcli.errors import GptcliError

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER_BYTES = 48
_MOST_INDEX_BYTES = 100_000_000
_MOST_SHARDS = 10_000
# DataType in tensorflow/core/framework/types.proto.
_DTYPES = {1: torch.float32, 14: torch.bfloat16, 19: torch.float16}
_AGAIN = "Download or copy the TensorFlow files again; the shards and the index belong together."


class _FormatError(Exception):
    """The bytes do not follow the format; the caller converts it to a GptcliError with the file's name."""


@dataclass(frozen=True)
class _Entry:
    """A BundleEntryProto: a tensor's dtype, shape and place; offset and size in bytes, ``crc`` unmasked."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


def read_bundle(index: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint whose index file is ``index``, mapped from disk, each with its CRC checked.

    Raises:
        GptcliError: the index or a shard is missing, truncated or damaged, or uses a feature that is not supported.
    """
    try:
        entries = _read_index(index)
        shards, tensors = _shards(entries.pop("", b"")), {}
        parsed = {name: _entry(value) for name, value in entries.items()}
    except _FormatError as error:
        raise GptcliError(f"{index}: {error}.", _AGAIN) from error
    maps: dict[int, mmap.mmap] = {}
    for name, entry in parsed.items():
        file = index.with_name(f"{index.name.removesuffix('.index')}.data-{entry.shard:05d}-of-{shards:05d}")
        if not 0 <= entry.shard < shards:
            raise GptcliError(f"{index} places {name!r:.100} in shard {entry.shard} of {shards}.", _AGAIN)
        if entry.shard not in maps:
            maps[entry.shard] = _map(file)
        try:
            tensors[name] = _tensor(name, entry, maps[entry.shard])
        except _FormatError as error:
            raise GptcliError(f"{file}: {error}.", _AGAIN) from error
    return tensors


def _map(file: Path) -> mmap.mmap:
    try:
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise GptcliError(f"{file} is empty.", _AGAIN) from error
    except OSError as error:
        raise GptcliError(f"{file} cannot be read: {error.strerror or error}.", _AGAIN) from error


def _tensor(name: str, entry: _Entry, data: mmap.mmap) -> Tensor:
    if entry.dtype not in _DTYPES or entry.sliced:
        kind = "is stored in slices" if entry.sliced else f"has TensorFlow's data type {entry.dtype}"
        raise _FormatError(f"{name!r:.100} {kind}, which GPT-2's weights do not")
    dtype, count = _DTYPES[entry.dtype], math.prod(entry.shape)
    if entry.size != count * dtype.itemsize or max(entry.shape, default=0) >= 2**63:
        raise _FormatError(
            f"{name!r:.100} has {entry.size} bytes, which shape {entry.shape!s:.60} of {dtype} does not fill"
        )
    end = entry.offset + entry.size
    if end > len(data):
        raise _FormatError(f"{name!r:.100} ends at byte {end}, but the file at {len(data)}: it is cut short")
    if crc32c(memoryview(data)[entry.offset : end]) != entry.crc:
        raise _FormatError(
            f"{name!r:.100} is damaged: the CRC-32C of bytes {entry.offset} to {end} is not the stored one"
        )
    if count == 0:
        raise _FormatError(f"{name!r:.100} is empty, {entry.shape!s:.60}")
    if entry.offset % dtype.itemsize:
        return torch.frombuffer(bytearray(data[entry.offset : end]), dtype=dtype).view(entry.shape)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=entry.offset).view(entry.shape)


def _read_index(index: Path) -> dict[str, bytes]:
    try:
        if index.stat().st_size > _MOST_INDEX_BYTES:
            raise _FormatError("it is too big for an index")
        table = index.read_bytes()
    except OSError as error:
        raise GptcliError(f"{index} cannot be read: {error.strerror or error}.", _AGAIN) from error
    if len(table) < _FOOTER_BYTES or not table.endswith(MAGIC):
        raise _FormatError(
            f"its {len(table)} bytes do not end as an index of TensorFlow does; it is cut short or another file"
        )
    footer = table[-_FOOTER_BYTES : -len(MAGIC)]
    place = _handle(footer, 0)[1]  # skip the handle of the metaindex block, which is not needed
    (offset, size), _ = _handle(footer, place)
    found: dict[str, bytes] = {}
    for _, handle in _block(table, offset, size):
        for key, value in _block(table, *_handle(handle, 0)[0]):
            try:
                name = key.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _FormatError(f"the name {key!r:.100} is not UTF-8") from error
            if name in found:
                raise _FormatError(f"{name!r:.100} is there twice")
            found[name] = value
    return found


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) entries of one block, after a check of its CRC."""
    if offset + size + 5 > len(table) or size < 4:
        raise _FormatError(f"a block of {size} bytes at {offset} reaches past the end at {len(table)}")
    compression, crc = struct.unpack_from("<BI", table, offset + size)
    if crc32c(table[offset : offset + size + 1]) != unmask(crc):
        raise _FormatError(f"the block at byte {offset} is damaged: its CRC-32C is not the stored one")
    if compression != 0:
        raise _FormatError(
            f"the block at byte {offset} is compressed (type {compression}), which TensorFlow's indexes are not"
        )
    block = table[offset : offset + size]
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    end = size - 4 - 4 * restarts
    if end < 0:
        raise _FormatError(f"the block at byte {offset} claims {restarts} restarts")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        unshared, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + unshared + length > end:
            raise _FormatError(f"an entry of the block at byte {offset} reaches past its end")
        key = key[:shared] + block[place : place + unshared]
        place += unshared + length
        yield key, block[place - length : place]


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A base-128 varint, least significant group first, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise _FormatError("a number is cut short")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _FormatError("a number has more than ten bytes")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer: int for numbers, bytes for length-delimited fields."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == 0:
            number, place = _varint(message, place)
            yield tag >> 3, number
            continue
        length, place = _varint(message, place) if wire == 2 else ({1: 8, 5: 4}.get(wire, -1), place)
        if length < 0 or place + length > len(message):
            raise _FormatError("a record of it is cut short or no protocol buffer")
        value = message[place : place + length]
        place += length
        yield tag >> 3, value if wire == 2 else int.from_bytes(value, "little")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _FormatError("a record of it has text where a number belongs")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _FormatError("a record of it has a number where a message belongs")
    return value


def _shards(header: bytes) -> int:
    """The number of data shards, from a BundleHeaderProto."""
    values = {number: value for number, value in _fields(header) if number in (1, 2)}
    shards = _number(values.get(1, 0))
    if not 1 <= shards <= _MOST_SHARDS:
        raise _FormatError(f"its header names {shards} data shards")
    if _number(values.get(2, 0)) != 0:
        raise _FormatError("its data is big-endian, which is not supported")
    return shards


def _entry(record: bytes) -> _Entry:
    dtype = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    sliced = False
    for number, value in _fields(record):
        match number:
            case 1:
                dtype = _number(value)
            case 2:
                shape = tuple(_side(_bytes(dim)) for field, dim in _fields(_bytes(value)) if field == 2)
            case 3:
                shard = _number(value)
            case 4:
                offset = _number(value)
            case 5:
                size = _number(value)
            case 6:
                crc = unmask(_number(value) & 0xFFFFFFFF)
            case 7:
                sliced = True
    return _Entry(dtype, shape, shard, offset, size, crc, sliced)


def _side(dim: bytes) -> int:
    return next((_number(value) for field, value in _fields(dim) if field == 1), 0)
