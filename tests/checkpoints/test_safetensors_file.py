"""safetensors files: the same bytes as the library's, and nothing but GptcliError from hostile ones."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.checkpoints.safetensors_file import DTYPES, read_header, read_tensors, write_tensors
from gptcli.errors import GptcliError


def every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    numbers = {
        f"t.{name}": torch.randint(0, 2, (3, 5), generator=generator).to(getattr(torch, name))
        for name, _ in DTYPES.values()
    }
    return {**numbers, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "größe": torch.randn(2, 1, 7)}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    as_bytes = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.safetensors"
    write_tensors(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4.0), "c": torch.ones(1).half()})
    return path


def test_writes_the_bytes_of_the_library(tmp_path: Path) -> None:
    tensors = every_dtype()
    write_tensors(tmp_path / "ours", tensors)
    theirs = safetensors.torch.save(tensors, {"format": "pt"})
    ours = (tmp_path / "ours").read_bytes()
    assert ours == theirs
    assert int.from_bytes(ours[:8], "little") % 8 == 0


def test_saving_again_gives_the_same_bytes_with_one_metadata_key(tmp_path: Path) -> None:
    tensors = every_dtype()
    for name in ("a", "b"):
        write_tensors(tmp_path / name, tensors)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"format": "pt"} == read_header(tmp_path / "a").metadata


def test_a_file_of_ours_is_as_open_to_others_as_the_umask_says(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "x", every_dtype())
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = every_dtype()
    safetensors.torch.save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    read = read_tensors(tmp_path / "theirs")
    assert read.keys() == tensors.keys()
    assert all(same_bits(read[name], tensor) for name, tensor in tensors.items())
    assert read_header(tmp_path / "theirs").metadata == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_is_cast_and_transposed(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(8, 3)
    tensors = {"w": weight.t(), "ids": torch.arange(3), "none": torch.empty(0, 2), "one": torch.tensor(1.5)}
    write_tensors(tmp_path / "x", tensors, dtype=dtype)
    read = safetensors.torch.load_file(tmp_path / "x")
    for name, tensor in tensors.items():
        assert same_bits(read[name], tensor.to(dtype) if tensor.is_floating_point() else tensor), name
    converted = {name: tensor.contiguous() for name, tensor in read.items()}
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(converted, {"format": "pt"})


def test_tensors_are_writable_and_the_file_stays(good: Path) -> None:
    before = good.read_bytes()
    tensors = read_tensors(good)
    tensors["a"].mul_(2)
    assert tensors["a"][1, 2] == 10
    assert good.read_bytes() == before


def test_tensors_outlive_the_name_of_the_file(good: Path) -> None:
    tensors = read_tensors(good)
    write_tensors(good, {"a": torch.zeros(2, 3)})
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))


def test_a_file_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}'
    assert len(header) % 8
    data = torch.tensor([1.5, -2.5], dtype=torch.float64)
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + data.numpy().tobytes())
    assert torch.equal(read_tensors(tmp_path / "x")["a"], data)


def test_a_full_disk_is_seen_before_anything_is_written(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = good.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))  # type: ignore[attr-defined]
    with pytest.raises(GptcliError, match="10 left"):
        write_tensors(good, {"a": torch.zeros(100)})
    assert good.read_bytes() == before
    assert [path.name for path in good.parent.iterdir()] == [good.name]


def test_a_disk_that_fills_up_leaves_the_old_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = good.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GptcliError, match="nothing was changed"):
        write_tensors(good, {"a": torch.zeros(100)})
    assert good.read_bytes() == before
    assert [path.name for path in good.parent.iterdir()] == [good.name]


def test_writing_where_nothing_can_be_written(good: Path) -> None:
    for path in (good / "below-a-file", good.parent / "no" / "such" / "folder"):
        with pytest.raises(GptcliError, match="cannot be written"):
            write_tensors(path, {"a": torch.zeros(1)})


def test_a_dtype_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match="complex64"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(1, dtype=torch.complex64)})


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(*offsets: Any, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds 0 bytes"),
    "seven bytes": (b"\0" * 7, "holds 7 bytes"),
    "eight bytes alone": (b"\x10" + b"\0" * 7, "only 0 follow"),
    "no header": (b"\0" * 8, "not JSON"),
    "header past the end": (file_of({}, length=3), "has 3 bytes, but only 2 follow"),
    "negative as signed": (file_of({}, length=2**64 - 1), str(2**64 - 1)),
    "not UTF-8": (file_of(b'{"\xff":1}'), "byte 10 of the header is not UTF-8"),
    "not JSON": (file_of(b"{nonsense"), "not JSON"),
    "nested too deep": (file_of(b"[" * 200_000), "not JSON"),
    "a number without end": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "not an object": (file_of([]), "not a JSON object"),
    "spaces first": (file_of(b" {}"), "not a JSON object"),
    "the same name twice": (file_of(b'{"a":1,"a":2}'), "'a' twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "not an object of strings"),
    "metadata that is a list": (file_of({"__metadata__": []}), "not an object of strings"),
    "entry that is a number": (file_of({"a": 1}), "needs dtype, shape and data_offsets"),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "needs dtype, shape and data_offsets"),
    "unknown dtype": (file_of({"a": tensor(0, 8, dtype="F128")}, bytes(8)), "'F128'"),
    "dtype that is a list": (file_of({"a": tensor(0, 8, dtype=["F32"])}, bytes(8)), "dtype"),
    "negative shape": (file_of({"a": tensor(0, 8, shape=[-2])}, bytes(8)), "[-2]"),
    "shape of fractions": (file_of({"a": tensor(0, 8, shape=[2.0])}, bytes(8)), "[2.0]"),
    "shape of booleans": (file_of({"a": tensor(0, 4, shape=[True])}, bytes(4)), "[True]"),
    "shape that overflows": (file_of({"a": tensor(0, 8, shape=[2**33, 2**33])}, bytes(8)), "does not fill"),
    "overflow hidden by a zero": (file_of({"a": tensor(0, 0, shape=[0, 2**62, 2**62])}), "does not fill"),
    "a side of 64 bits": (file_of({"a": tensor(0, 0, shape=[0, 2**64])}), "does not fill"),
    "a thousand dimensions": (file_of({"a": tensor(0, 4, shape=[1] * 1000)}, bytes(4)), "does not fill"),
    "three offsets": (file_of({"a": tensor(0, 4, 8)}, bytes(8)), "[0, 4, 8]"),
    "offsets reordered": (file_of({"a": tensor(8, 0)}, bytes(8)), "[8, 0]"),
    "offsets negative": (file_of({"a": tensor(-8, 0)}, bytes(8)), "[-8, 0]"),
    "offsets out of range": (file_of({"a": tensor(0, 16, shape=[4])}, bytes(8)), "runs from 0 to 8"),
    "offsets past 64 bits": (file_of({"a": tensor(2**64, 2**64 + 8)}, bytes(8)), "runs from 0 to 8"),
    "shape and offsets disagree": (file_of({"a": tensor(0, 8, shape=[3])}, bytes(8)), "does not fill its 8 bytes"),
    "overlap": (file_of({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "'b' begins at data byte 4 and overlaps"),
    "the same bytes twice": (file_of({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)), "overlaps"),
    "gap": (file_of({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)), "leaves a gap"),
    "gap at the start": (file_of({"a": tensor(4, 12)}, bytes(12)), "leaves a gap"),
    "bytes appended": (file_of({"a": tensor(0, 8)}, bytes(9)), "1 bytes at the end belong to no tensor"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (read_header, read_tensors):
        with pytest.raises(GptcliError) as caught:
            read(path)
        assert words in caught.value.message
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message + caught.value.hint


def test_a_header_of_more_than_100_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 200_000_000)  # sparse: it takes no room
    with pytest.raises(GptcliError, match="100000001 bytes; at most 100000000"):
        read_header(path)


@pytest.mark.parametrize("new_zip", [True, False])
def test_a_pickle_under_that_name(tmp_path: Path, new_zip: bool) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors", _use_new_zipfile_serialization=new_zip)
    with pytest.raises(GptcliError, match="is a pickle"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(GptcliError, match="cannot be read"):
            read_tensors(path)


def test_truncated_at_every_byte_of_the_header_and_ten_places_of_the_data(good: Path) -> None:
    whole = good.read_bytes()
    data_start = 8 + int.from_bytes(whole[:8], "little")
    in_data = [data_start + (len(whole) - data_start) * tenth // 10 for tenth in range(10)]
    for length in [*range(data_start), *in_data]:
        good.write_bytes(whole[:length])
        with pytest.raises(GptcliError):
            read_tensors(good)


def read_or_refuse(path: Path, content: bytes, read: Callable[[Path], Any]) -> None:
    path.write_bytes(content)
    with contextlib.suppress(GptcliError):
        read(path)


mutations = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["set", "insert", "delete"]), st.binary(min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(changes=mutations)
def test_mutated_files_give_tensors_or_our_error(good: Path, changes: list[tuple[int, str, bytes]]) -> None:
    content = bytearray(safetensors.torch.save({"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4).half()}))
    for place, kind, new in changes:
        place %= max(1, len(content))
        end = {"set": place + len(new), "insert": place, "delete": place + len(new)}[kind]
        content[place:end] = b"" if kind == "delete" else new
    read_or_refuse(good.with_name("mutated"), bytes(content), read_tensors)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**65) | st.floats() | st.sampled_from(["F32", "BF16", "a", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4)
    ),
    max_leaves=8,
)
entries = json_values | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "F64"]),
        "shape": st.lists(st.integers(0, 3) | st.sampled_from([2**31, 2**62, 2**63, 2**64]), max_size=3),
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2),
    }
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries), data=st.binary(max_size=16))
def test_made_up_headers_give_tensors_or_our_error(good: Path, header: dict[str, Any], data: bytes) -> None:
    read_or_refuse(good.with_name("made-up"), file_of(header, data), read_tensors)
