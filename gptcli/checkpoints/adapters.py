"""Low-rank adapters on disk, in PEFT's layout, and the weights of a model with one; imports no torch.

An adapter's directory holds adapter_config.json and adapter_model.safetensors, with PEFT's fields and names. One that
gptcli trained is a checkpoint besides: its config.json has the shape and, under "gptcli", the path and the checksum of
its base, the checkpoint whose weights it changes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.checkpoints.adapter_file import HEAD, Adapter, check_shapes, read
from gptcli.checkpoints.atomic import atomic_write
from gptcli.checkpoints.checksum import file_sum, matches
from gptcli.checkpoints.layout import (
    ADAPTER_CONFIG,
    CONFIG,
    WEIGHTS,
    is_adapter,
    packed_bits,
    read_config,
)
from gptcli.checkpoints.numpy_weights import WeightFile
from gptcli.config.lora import LoRAConfig
from gptcli.errors import GptcliError
from gptcli.model.quantization import Packed, unpacked


@dataclass(frozen=True)
class Base:
    """The checkpoint that an adapter changes: its directory, the size and CRC-32 of its weights, and their bits."""

    path: Path
    sum: dict[str, Any]
    bits: int

    @classmethod
    def of(cls, path: Path) -> "Base":
        """The checkpoint ``path`` as a base; raises GptcliError if it is an adapter itself, or has no weights."""
        refuse_adapter(path)
        return cls(path.absolute(), _sum_of(path), packed_bits(path, read_config(path)[1]))

    def record(self, folder: Path) -> dict[str, Any]:
        """The JSON value for config.json of an adapter in ``folder``."""
        return {"path": str(self.path), "beside": _relative(self.path, folder), **self.sum}


@dataclass(frozen=True)
class NewAdapter:
    """What an adapter that is trained says about itself on disk: its settings and its base."""

    config: LoRAConfig
    base: Base

    def write_config(self, folder: Path, *, is_classifier: bool = False) -> None:
        """Write adapter_config.json into ``folder`` atomically. Raises OSError."""
        alpha = self.config.alpha
        fields = {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS" if is_classifier else "CAUSAL_LM",
            "base_model_name_or_path": str(self.base.path),
            "inference_mode": True,
            "r": self.config.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": 0.0,
            "target_modules": list(self.config.targets),
            "fan_in_fan_out": True,  # W is stored (in, out)
            "bias": "none",
            "use_rslora": False,
            "use_dora": False,
            "init_lora_weights": True,
            "modules_to_save": ["score"] if is_classifier else None,
        }
        with (
            atomic_write(folder / ADAPTER_CONFIG) as partial,
            partial.open("w", encoding="utf-8", newline="\n") as file,
        ):
            json.dump(fields, file, indent=2)


class MergedWeights(Mapping[str, NDArray[Any] | Packed]):
    """A base's weights with an adapter's changes: a changed matrix is made, in float32, whenever it is read.

    Args:
        base: the weights of the base.
        adapter: its names and shapes must be those of ``base``.
        vocab_size: V; a classifier may have a row more than its base, of zeros, for padding.

    Attributes:
        bits: per weight of the base's matrices: 32, 8 or 4.
    """

    def __init__(self, base: WeightFile, adapter: Adapter, vocab_size: int) -> None:
        self.bits = base.bits
        self._base, self._adapter, self._vocab_size = base, adapter, vocab_size
        self._names = [name for name in base if not (name == "lm_head.weight" and HEAD in adapter.tensors)]
        self._names += [HEAD] if HEAD in adapter.tensors and HEAD not in base else []

    def __getitem__(self, name: str) -> NDArray[Any] | Packed:
        if name == HEAD and HEAD in self._adapter.tensors:
            return self._adapter.array(HEAD)
        weight = self._base[name]
        if name == "wte.weight" and (rows := _rows(weight)) < self._vocab_size:
            return np.pad(unpacked(name, weight), ((0, self._vocab_size - rows), (0, 0)))
        place = name.removesuffix(".weight")
        if f"{place}.lora_A" not in self._adapter.tensors:
            return weight
        a, b = self._adapter.array(f"{place}.lora_A"), self._adapter.array(f"{place}.lora_B")
        merged = unpacked(name, weight)  # (in, out)
        merged += np.float32(self._adapter.config.scale) * (a.T @ b.T)
        return merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_weights(path: Path, adapter: Path | None = None) -> WeightFile | MergedWeights:
    """The weights of a checkpoint, with the changes of an adapter if there is one.

    Args:
        path: the checkpoint; if it is an adapter of ours, its base is found by what its config.json says.
        adapter: an adapter for ``path``.

    Raises:
        GptcliError: a file is damaged; the adapter is no plain LoRA, or its base is missing or another one.
    """
    if adapter is None and is_adapter(path):
        adapter, path = path, find_base(path)
    if adapter is not None:
        check_base(path, adapter)
    config, ours = read_config(path)
    weights = WeightFile(path / WEIGHTS, config, packed_bits(path, ours))
    if adapter is None:
        return weights
    found = read(adapter)
    check_shapes(found, config, path)
    return MergedWeights(weights, found, read_config(described_by(path, adapter))[0].vocab_size)


def refuse_adapter(path: Path) -> None:
    """Raise GptcliError if ``path`` is an adapter, which can be no base for another one."""
    if is_adapter(path):
        raise GptcliError(
            f"{path} is an adapter itself, and no base for another one.",
            f"Merge it into its own base first: gptcli merge {path} --out NEW",
        )


def find_base(adapter: Path) -> Path:
    """The directory of an adapter's base: by its recorded path, or from the adapter's own place.

    Raises:
        GptcliError: neither is there, or nothing is recorded.
    """
    record = _record(adapter)
    name = record["path"] if record else read(adapter).base_name
    places = [Path(record["path"]), adapter / record["beside"]] if record else [Path(name)] if name else []
    for place in places:
        if (place / CONFIG).is_file():
            return place
    raise GptcliError(
        f"{adapter} is an adapter for {name or 'a model that it does not name'}, which is not there.",
        f"Put it there again, or say where it is now: gptcli generate PROMPT -c CHECKPOINT --adapter {adapter}",
    )


def check_base(base: Path, adapter: Path) -> None:
    """Raise GptcliError if ``base`` is an adapter, or has other weights than those that ``adapter`` was trained on."""
    refuse_adapter(base)
    record = _record(adapter)
    file = base / WEIGHTS
    if record is None or not file.exists():
        return
    expected = {"bytes": record["bytes"], "crc32": record["crc32"]}
    if file.stat().st_size != expected["bytes"] or not matches(file, expected):
        raise GptcliError(
            f"{adapter} is an adapter for other weights than those in {file}: {expected['bytes']:,} bytes with CRC-32 "
            f"{expected['crc32']}.",
            f"Name the checkpoint that it was trained on: gptcli generate PROMPT -c CHECKPOINT --adapter {adapter}",
        )


def described_by(path: Path, adapter: Path | None) -> Path:
    """The directory whose config.json and tokenizer count: the adapter's if gptcli made it, else the checkpoint's."""
    return adapter if adapter is not None and is_ours(adapter) else path


def is_ours(path: Path) -> bool:
    """Whether gptcli wrote config.json in ``path``; PEFT writes none."""
    try:
        return "gptcli" in json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _record(adapter: Path) -> dict[str, Any] | None:
    """What config.json of an adapter says about its base; None for one that gptcli did not write."""
    if not is_ours(adapter):
        return None
    record = read_config(adapter)[1].get("base")
    kinds = {"path": str, "beside": str, "bytes": int, "crc32": str}
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise GptcliError(f"{adapter / CONFIG} does not say which checkpoint the adapter changes.", "Copy it again.")
    return record


def _rows(embedding: NDArray[Any] | Packed) -> int:
    return int(embedding.values.shape[1] if isinstance(embedding, Packed) else len(embedding))


def _sum_of(path: Path) -> dict[str, Any]:
    file = path / WEIGHTS
    try:
        return file_sum(file)
    except OSError as error:
        raise GptcliError(
            f"{file} cannot be read: {error.strerror or error}.", "Check that the checkpoint is complete."
        ) from error


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return str(path)
