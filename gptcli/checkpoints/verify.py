"""The one check of a model's tensors against its config: names, shapes and dtypes, before any data is read."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from gptcli.checkpoints.safetensors_file import DTYPES
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError
from gptcli.model.parameters import parameter_shapes
from gptcli.model.quantization import GROUP, is_packed_name, is_transposed, scale_name

FLOATS = ("float32", "float16", "bfloat16")
_WRAPPERS = re.compile(r"(?:_orig_mod\.|module\.|transformer\.)+")  # torch.compile's, DataParallel's, Hugging Face's
_MOST_LISTED = 5
_OTHER_MODELS = (
    "The files come from different models, or one is cut off: copy all of them again from one place, or train again."
)

Shape = tuple[int, ...]


class Described(Protocol):
    """A tensor, or its entry in a header: dtype by torch's or by safetensors' name."""

    @property
    def shape(self) -> Iterable[int]: ...
    @property
    def dtype(self) -> Any: ...


T = TypeVar("T")


def plain_names(tensors: Mapping[str, T], where: str) -> dict[str, T]:
    """``tensors`` by names without the prefixes that wrappers add, in any order and number.

    Raises:
        GptcliError: two names become the same name.
    """
    found: dict[str, T] = {}
    for name, tensor in tensors.items():
        wrapped = _WRAPPERS.match(name)
        ours = name[wrapped.end() :] if wrapped else name
        if ours in found:
            raise GptcliError(f"{where} has the tensor {ours!r:.80} twice, once as {name!r:.80}.", "Remove one.")
        found[ours] = tensor
    return found


def file_shapes(
    config: GPTConfig, names: Collection[str], where: str, bits: int = 32
) -> tuple[dict[str, Shape], dict[str, str]]:
    """The shapes of the tensors in a file of ours, and the dtypes of those that are not floats of `FLOATS`.

    Args:
        config: the model's shape.
        names: the tensors in the file. A model without qkv biases may have them there, as zeros.
        where: the file's name.
        bits: bits per weight of the matrices: 32, 8 or 4.

    Raises:
        GptcliError: there are fewer tensors than layers; a hostile config has thousands of layers, and shapes to list.
    """
    if config.n_layers > len(names):
        raise GptcliError(f"{where} has {len(names)} tensors, too few for n_layers {config.n_layers}.", _OTHER_MODELS)
    shapes = parameter_shapes(config.with_changes(qkv_bias=True))
    if not config.qkv_bias:
        spare = {name for name in shapes if name.endswith("attn.c_attn.bias")}.difference(names)
        shapes = {name: shape for name, shape in shapes.items() if name not in spare}
    dtypes = {}
    for name in [name for name in shapes if bits < 32 and is_packed_name(name)]:
        scale = scale_name(name)
        shapes[name], shapes[scale] = packed_shapes(shapes[name], name, bits)
        dtypes[name], dtypes[scale] = ("int8", "float32") if bits == 8 else ("uint8", "bfloat16")
    return shapes, dtypes


def packed_shapes(shape: Shape, name: str, bits: int) -> tuple[Shape, Shape]:
    """Shapes of the packed values and of the scales of the matrix ``name``."""
    inputs, outputs = shape[::-1] if is_transposed(name) else shape
    groups = -(-inputs // GROUP)
    return ((inputs, outputs), (outputs,)) if bits == 8 else ((groups * GROUP // 2, outputs), (groups, outputs))


def verify(
    shapes: Mapping[str, Shape], found: Mapping[str, Described], where: str, dtypes: Mapping[str, str] | None = None
) -> None:
    """Check that ``found`` has exactly the tensors of ``shapes``.

    Args:
        shapes: the expected shapes by name.
        found: the tensors of a file, or the entries of its header.
        where: the file's name.
        dtypes: the dtypes of the names that are not one of `FLOATS`.

    Raises:
        GptcliError: lists up to 5 tensors that are missing, unknown, or of another shape or dtype.
    """
    missing = [f"{name} {shape}" for name, shape in shapes.items() if name not in found]
    extra = [f"{name} {tuple(entry.shape)}" for name, entry in found.items() if name not in shapes]
    other = [
        f"{name} is {tuple(found[name].shape)} and should be {shape}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    complaints = {"missing": missing, "not GPT-2's": extra, "of another shape": other}
    said = [f"{what}: {listed(names)}" for what, names in complaints.items() if names]
    if said:
        raise GptcliError(f"{where} and its config disagree; {'; '.join(said)}.", _OTHER_MODELS)
    strange = []
    for name, entry in found.items():
        dtype = str(entry.dtype).removeprefix("torch.")
        dtype = DTYPES[dtype][0] if dtype in DTYPES else dtype
        if dtype not in ([dtypes[name]] if dtypes and name in dtypes else FLOATS):
            strange.append(f"{name} {dtype}")
    if strange:
        raise GptcliError(
            f"{where}: not plain float16, bfloat16 or float32 weights: {listed(strange)}."
            if not dtypes
            else f"{where}: weights of another dtype than config.json says: {listed(strange)}.",
            "Quantised weights of other programs cannot be read; take the original model.",
        )


def nonzero_bias(where: str, name: str) -> GptcliError:
    """The error for a qkv bias in a model without them; a file of ours has zeros there, as transformers needs them."""
    return GptcliError(f"{where}: {name} is not zero, but config.json says qkv_bias false.", _OTHER_MODELS)


def not_finite(where: str, name: str) -> GptcliError:
    """The error for a tensor with NaN or infinite values."""
    return GptcliError(
        f"{where}: {name} holds NaN or infinite weights.",
        "The file is damaged, or the run that wrote it had diverged: train again with a lower learning rate.",
    )


def listed(names: Iterable[str]) -> str:
    """Up to 5 names as ASCII of at most 200 characters each, and the number of the others."""
    every = list(names)
    shown = [name.encode("ascii", "backslashreplace").decode() for name in every[:_MOST_LISTED]]
    shown = ["".join(c if c.isprintable() else "?" for c in name)[:200] for name in shown]
    more = len(every) - _MOST_LISTED
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
