"""Rows of tensors in several files are one file's tensors, and mapped tensors are the file's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptcli.checkpoints.mapped_tensors import MappedTensors
from gptcli.checkpoints.row_shards import merged
from gptcli.checkpoints.safetensors_file import Streamed, read_header, read_tensors, write_tensors
from gptcli.errors import GptcliError

WHOLE = {
    "matrix": torch.randn(7, 5, generator=torch.Generator().manual_seed(1)),
    "vector": torch.arange(9.0),
    "few rows": torch.randn(2, 3, generator=torch.Generator().manual_seed(2)),
    "half": torch.randn(8, 2).bfloat16(),
    "step": torch.tensor(4.0),
    "random": torch.arange(16, dtype=torch.uint8),
}


def rows(process: int, processes: int) -> dict[str, Tensor]:
    """What a process holds: its rows of what is shared out, and the first process the rest."""
    found = {}
    for name, tensor in WHOLE.items():
        parts = (tensor,) if name in ("step", "random") else tensor.chunk(processes)
        if process < len(parts):
            found[name] = parts[process]
    return found


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 9])
def test_the_rows_of_all_processes_are_the_file_of_the_whole_tensors(tmp_path: Path, processes: int) -> None:
    write_tensors(tmp_path / "whole", WHOLE)
    files = [tmp_path / f"part {process}" for process in range(processes)]
    for process, file in enumerate(files):
        write_tensors(file, rows(process, processes))
    write_tensors(tmp_path / "merged", merged(files))
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()


def test_files_without_tensors_are_no_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "empty", {})
    assert merged([tmp_path / "empty"] * 2).shapes == {}
    with pytest.raises(GptcliError, match="cannot be read"):
        merged([tmp_path / "empty", tmp_path / "absent"])


def test_a_mapped_tensor_is_the_one_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_tensors(file, {**WHOLE, "empty": torch.empty(0, 3)})
    mapped, expected = MappedTensors(file), read_tensors(file)
    assert list(mapped) == list(expected)
    for name, tensor in mapped.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
    mapped["vector"].zero_()  # changes the copy in memory alone
    assert torch.equal(mapped["vector"], WHOLE["vector"])
    renamed = MappedTensors(file, {"other": read_header(file).tensors["vector"]})
    assert {name: tensor.tolist() for name, tensor in renamed.items()} == {"other": WHOLE["vector"].tolist()}
    with pytest.raises(KeyError):
        mapped["absent"]


def test_tensors_that_are_made_while_they_are_written_must_all_be_made(tmp_path: Path) -> None:
    shapes = {name: torch.empty(2, device="meta") for name in ("one", "two")}
    values = [("two", torch.ones(2)), ("one", torch.zeros(2))]
    write_tensors(tmp_path / "file", Streamed(shapes, iter(values)))
    assert {name: tensor.tolist() for name, tensor in read_tensors(tmp_path / "file").items()} == {
        "one": [0, 0], "two": [1, 1],
    }  # fmt: skip
    with pytest.raises(AssertionError, match="no values for one"):
        write_tensors(tmp_path / "other", Streamed(shapes, iter(values[:1])))
    assert not (tmp_path / "other").exists()
