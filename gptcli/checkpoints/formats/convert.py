"""Conversion of a model from any format that gptcli reads to any that it writes, read back and compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gptcli.checkpoints import checkpoint, formats, layout, overwrite, safetensors_file
from gptcli.checkpoints.derived import add_record
from gptcli.checkpoints.formats import gguf_file
from gptcli.checkpoints.layout import CONFIG, WEIGHTS
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError, SettingError, nearest
from gptcli.tokenizers import Tokenizer

Format = Literal["hf", "gguf"]
FileDtype = Literal["float32", "float16", "bfloat16"]
HUB, OURS = "hf://", "gptcli"
_LARGEST_FLOAT16 = 65_504.0
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Converted:
    """What `convert` read and wrote.

    Attributes:
        path: the new checkpoint directory, or the GGUF file.
        source: the directory or file that was read.
        origin: the format of ``source``: "gptcli", "Hugging Face", …
        config: the model's shape.
        tokenizer: the kind of the tokenizer; "none" if the model has none.
        tensors: number of tensors written.
        notes: assumptions made on the way, one line each.
    """

    path: Path
    source: Path
    origin: str
    config: GPTConfig
    tokenizer: str
    tensors: int
    notes: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """The file that holds the weights."""
        return self.path / WEIGHTS if self.path.is_dir() else self.path


@dataclass(frozen=True)
class _Model:
    origin: str
    config: GPTConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    training: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert(
    source: str | Path,
    out: Path,
    format: str = "hf",  # noqa: A002
    dtype: str = "float32",
    *,
    force: bool = False,
    on_download: Callable[[str, int], None] = lambda name, size: None,
    bar: type[Any] | None = None,
) -> Converted:
    """Convert a model.

    Args:
        source: one of our checkpoints (its directory, or its name under checkpoints/), a directory or file of a foreign
            format (see `formats.read`), or ``hf://OWNER/NAME[@REVISION]`` on the hub.
        out: the new directory; with "gguf" also a file whose name ends in .gguf.
        format: "hf", a checkpoint directory, or "gguf", one file.
        dtype: of the weights in the file: float32, float16 or bfloat16.
        force: whether ``out`` may be replaced.
        on_download: called before each download with the file's name and its bytes.
        bar: a tqdm class for the bar of a download; None for no bar.

    Raises:
        GptcliError: there is no such source, format or dtype; the source is damaged, or does not fit the format or the
            dtype; ``out`` exists; it cannot be written, or what was read back differs.
    """
    if format not in get_args(Format):
        raise SettingError(f"There is no {{format}} {format!r}.", nearest(str(format), get_args(Format)))
    check_dtype(dtype)
    on_hub = str(source).startswith(HUB)
    path = Path() if on_hub else _find(source)
    if format == "hf":
        overwrite.check_output(out, force=force, inputs=[] if on_hub else [path])
    if on_hub:
        path = _download(str(source), on_download, bar)
    model = _read(path)
    target: torch.dtype = getattr(torch, dtype)
    tensors = checkpoint.in_file_form(model.config, model.tensors)
    if target is torch.float16:
        _check_range(tensors, path)
    if format == "hf":

        def add_texts(folder: Path) -> None:
            if model.origin == OURS:
                add_record(path, folder)

        checkpoint.create_from(
            out, model.config, tensors, model.tokenizer, model.training,
            dtype=target, force=force, populate=add_texts, inputs=[path],
        )  # fmt: skip
        _compare(out / WEIGHTS, tensors, target)
    else:
        out = _write_gguf(path, out, model, tensors, target, force)
    return Converted(out, path, model.origin, model.config, model.tokenizer.kind, len(tensors), model.notes)


def check_dtype(dtype: str) -> None:
    """Raise GptcliError unless weights can be written in ``dtype``."""
    if dtype not in get_args(FileDtype):
        raise SettingError(f"There is no {{dtype}} {dtype!r} for files.", nearest(str(dtype), get_args(FileDtype)))


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    return layout.find(path)


def _download(source: str, on_download: Callable[[str, int], None], bar: type[Any] | None) -> Path:
    from huggingface_hub.utils import tqdm

    from gptcli.checkpoints.formats import hub

    class NoBar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings | {"disable": True})  # type: ignore[no-untyped-call]

    repo, _, revision = source.removeprefix(HUB).partition("@")
    return hub.fetch(repo, revision or "main", on_download, bar or NoBar)


def _read(path: Path) -> _Model:
    """The model at ``path``, in our format if its config.json has our section."""
    if path.is_dir() and (path / CONFIG).is_file() and _is_ours(path):
        loaded = checkpoint.load(path)
        return _Model(OURS, loaded.config, loaded.tensors, loaded.tokenizer, loaded.training)
    if layout.is_adapter(path):
        raise GptcliError(
            f"{path} is an adapter, and not a whole model.",
            f"Merge it into the checkpoint that it changes: gptcli merge {path} -c CHECKPOINT --out NEW",
        )
    read = formats.read(path)
    return _Model(read.format, read.config, read.tensors, read.tokenizer, notes=read.notes)


def _is_ours(path: Path) -> bool:
    from gptcli.checkpoints.formats.source import read_json

    return OURS in read_json(path / CONFIG)


def _write_gguf(
    source: Path, out: Path, model: _Model, tensors: Mapping[str, Tensor], dtype: torch.dtype, force: bool
) -> Path:
    gguf_file.check_supported(model.config, model.tokenizer, str(source))
    name = source.resolve().name
    short = _SHORT[str(dtype).removeprefix("torch.")]
    file = out if out.suffix == ".gguf" and not out.is_dir() else out / f"{name}-{short}.gguf"
    overwrite.check_file(file, gguf_file.MAGIC, "a GGUF file", force)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptcliError(f"{file.parent} cannot be made: {error.strerror}.", "Choose another directory.") from error
    gguf_file.write(file, model.config, tensors, model.tokenizer, dtype, name)
    return file


def _compare(file: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    written = safetensors_file.read_tensors(file)
    if not all(torch.equal(written[name], tensor.to(dtype)) for name, tensor in tensors.items()):
        raise GptcliError(f"{file} is not what was written.", "The disk may be failing; try another one.")


def _check_range(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        largest = float(tensor.abs().max())
        if largest > _LARGEST_FLOAT16:
            raise SettingError(
                f"{path}: {name} holds {largest:.4g}, and the largest float16 number is {_LARGEST_FLOAT16:.0f}.",
                "Take {dtype} bfloat16, which has the range of float32.",
            )
