"""PEFT's layout of a low-rank adapter, adapter_config.json and adapter_model.safetensors, checked; imports no torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gptcli.checkpoints.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gptcli.checkpoints.numpy_weights import read_array
from gptcli.checkpoints.safetensors_file import DTYPES, TensorInfo, read_header
from gptcli.checkpoints.verify import FLOATS, listed
from gptcli.config.lora import TARGETS, LoRAConfig
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError
from gptcli.model.parameters import parameter_shapes

HEAD = "score.weight"  # a classifier's head, which an adapter holds whole
_PREFIX = "base_model.model."
_FACTOR = re.compile(rf"(h\.\d{{1,5}}\.(?:{'|'.join(map(re.escape, TARGETS))}))\.lora_([AB])")
_PICKLE = "adapter_model.bin"
_OTHER_METHODS = {  # fields of adapter_config.json that make it more than plain LoRA, and what they are called
    "use_dora": "DoRA", "lora_bias": "biases of its own", "rank_pattern": "several ranks", "use_qalora": "QALoRA",
    "alpha_pattern": "several scales", "layer_replication": "repeated layers", "use_bdlora": "BD-LoRA",
    "trainable_token_indices": "trained tokens", "target_parameters": "single parameters", "arrow_config": "Arrow",
    "alora_invocation_tokens": "activated LoRA", "megatron_config": "Megatron's layers", "kasa_config": "KaSA",
    "velora_config": "VeLoRA", "monteclora_config": "MonteCLoRA",
}  # fmt: skip
_KEEP_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # ways to begin that leave the base's weights alone
_PLAIN = "gptcli reads plain LoRA; let PEFT merge it into its base, and load that: gptcli load-gpt2 --from MERGED"


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been read and checked, except against a base.

    Attributes:
        path: its directory.
        config: its rank, its scale and which matrices it changes.
        base_name: the base by adapter_config.json: a path, a name on the hub, or empty.
        tensors: the header's entries by our names: ``h.0.attn.c_attn.lora_A``, ``score.weight``.
        names: the file's names by ours.
    """

    path: Path
    config: LoRAConfig
    base_name: str
    tensors: dict[str, TensorInfo]
    names: dict[str, str]

    @property
    def parameters(self) -> int:
        """Numbers in the adapter."""
        return sum(prod(info.shape) for info in self.tensors.values())

    def array(self, name: str) -> NDArray[Any]:
        """One tensor in float32; raises GptcliError if it is not finite."""
        return read_array(self.path / ADAPTER_WEIGHTS, self.names[name], self.tensors[name])


def read(path: Path) -> Adapter:
    """The adapter in the directory ``path``, made by gptcli or by PEFT.

    Raises:
        GptcliError: a file is missing or damaged, or the adapter is no plain LoRA on a GPT-2's matrices.
    """
    fields = _read_fields(path)
    file = path / ADAPTER_WEIGHTS
    if not file.exists() and (path / _PICKLE).exists():
        raise GptcliError(f"{path} holds {_PICKLE}, a pickle, and no {file.name}.", "Save it with PEFT as safetensors.")
    header = read_header(file)
    names = {own_name(name): name for name in header.tensors}
    if len(names) < len(header.tensors):
        raise GptcliError(f"{file} holds several adapters, or one twice.", "Save each in a directory of its own.")
    tensors = {own: header.tensors[name] for own, name in names.items()}
    _check_names(file, names, tensors, fields["r"])
    targets = {own.split(".", 2)[2].rpartition(".")[0] for own in tensors if own != HEAD}
    rank, alpha = fields["r"], float(fields["lora_alpha"])
    alpha *= rank**0.5 if fields.get("use_rslora") else 1.0  # scale = alpha / √r there
    return Adapter(path, LoRAConfig(rank, alpha, tuple(targets)), fields["base_model_name_or_path"], tensors, names)


def is_own(name: str) -> bool:
    """Whether a model's tensor ``name`` belongs to its adapter."""
    return name == HEAD or name.endswith((".lora_A", ".lora_B"))


def own_name(name: str) -> str:
    """Our name of a tensor in an adapter's file: ``h.0.attn.c_attn.lora_A``, ``score.weight``."""
    own = name.removeprefix(_PREFIX).removeprefix("transformer.").replace(".modules_to_save.", ".")
    return own.removesuffix(".weight") if ".lora_" in own else own


def file_name(own: str) -> str:
    """The inverse of `own_name`: PEFT's name."""
    return _PREFIX + (own if own == HEAD else f"transformer.{own}.weight")


def _read_fields(path: Path) -> dict[str, Any]:
    """adapter_config.json, with what is used of it checked."""
    file = path / ADAPTER_CONFIG
    if not file.is_file():
        raise GptcliError(
            f"{path} is no adapter: it has no {file.name}.", "gptcli finetune --train lora makes one, and so does PEFT."
        )
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        kind, rank, alpha = fields["peft_type"], fields["r"], fields["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]
        raise GptcliError(f"{file} is damaged: {what}.", "Copy the adapter again.") from error
    if kind != "LORA":
        raise GptcliError(f"{file}: the adapter is of the kind {kind!r:.40}, not LORA.", _PLAIN)
    others = [called for name, called in _OTHER_METHODS.items() if fields.get(name)]
    if fields.get("bias", "none") != "none":
        others.append(f"trained biases ({fields['bias']!r:.20})")
    if not any(fields.get("init_lora_weights") is way or fields.get("init_lora_weights") == way for way in _KEEP_BASE):
        others.append(f"a changed base ({fields['init_lora_weights']!r:.20})")
    saved = fields.get("modules_to_save") or []
    if not isinstance(saved, list) or not set(map(str, saved)) <= {"score", "classifier"}:
        others.append(f"whole modules ({saved!r:.60})")
    if others:
        raise GptcliError(f"{file}: the adapter has {', '.join(others)}, which plain LoRA has not.", _PLAIN)
    if type(rank) is not int or not 1 <= rank <= 2**20 or type(alpha) not in (int, float) or not 0 < alpha < 2**20:
        raise GptcliError(f"{file}: r is {rank!r:.20} and lora_alpha {alpha!r:.20}.", "Both must be numbers above 0.")
    name = fields.get("base_model_name_or_path")
    checked: dict[str, Any] = fields | {"base_model_name_or_path": name if isinstance(name, str) else ""}
    return checked


def _check_names(file: Path, names: Mapping[str, str], tensors: Mapping[str, TensorInfo], rank: int) -> None:
    """Check that every tensor is a factor of its pair, or a classifier's head, with ``rank`` and a float dtype."""
    others = [name for own, name in names.items() if own != HEAD and not _FACTOR.fullmatch(own)]
    if others:
        raise GptcliError(f"{file} holds more than plain LoRA on {', '.join(TARGETS)}: {listed(others)}.", _PLAIN)
    strange = [f"{names[own]} {info.dtype}" for own, info in tensors.items() if DTYPES[info.dtype][0] not in FLOATS]
    if strange:
        raise GptcliError(f"{file}: not plain floats: {listed(strange)}.", "Save the adapter in float32.")
    factors = [own for own in tensors if own != HEAD]
    if not factors:
        raise GptcliError(f"{file} holds no adapter.", "Copy it again.")
    for own in factors:
        other = own[:-1] + ("B" if own.endswith("A") else "A")
        shape = tensors[own].shape
        if other not in tensors:
            raise GptcliError(f"{file} has {names[own]} without {file_name(other)}.", "Copy it again.")
        if len(shape) != 2 or shape[0 if own.endswith("A") else 1] != rank:
            raise GptcliError(
                f"{file}: {names[own]} has shape {shape}, but {ADAPTER_CONFIG} says r {rank}.",
                "The files come from two adapters; copy both again from one place.",
            )


def check_shapes(adapter: Adapter, config: GPTConfig, base: Path) -> None:
    """Raise GptcliError unless every tensor of ``adapter`` fits the matrices of ``base``, whose shape is ``config``."""
    shapes = parameter_shapes(config)
    for own, info in adapter.tensors.items():
        expected = _expected_shape(own, info.shape, shapes, config)
        if info.shape != expected:
            what = "which it has not" if expected is None else f"where {expected} fits"
            raise GptcliError(
                f"{adapter.path} is no adapter for {base}: {own} has shape {info.shape}, {what}.",
                "Name the checkpoint that it was trained on.",
            )


def _expected_shape(
    own: str, found: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], config: GPTConfig
) -> tuple[int, ...] | None:
    if own == HEAD:
        return (*found[:1], config.emb_dim)
    place, _, factor = own.rpartition(".")
    shape = shapes.get(f"{place}.weight")
    if shape is None:
        return None
    return (found[0], shape[0]) if factor.endswith("A") else (shape[1], found[1])
