"""Checkpoint directories: written atomically, and readable by Hugging Face's transformers without conversion.

``config.json`` has Hugging Face's fields, and ours under "gptcli"; ``model.safetensors`` has Hugging Face's names and
layouts; the tokenizer's files are in the same directory, which gets its final name when all files are written.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli import __version__
from gptcli.checkpoints import adapter_file, classifier, overwrite, safetensors_file
from gptcli.checkpoints.adapters import MergedWeights, NewAdapter, described_by, open_weights
from gptcli.checkpoints.atomic import atomic_write, clear_partials, partial_path
from gptcli.checkpoints.layout import (
    ADAPTER_WEIGHTS,
    CONFIG,
    METRICS,
    WEIGHTS,
    check_parts,
    is_adapter,
    packed_bits,
    read_config,
    tokenizer_of,
)
from gptcli.checkpoints.layout import ROOT as ROOT
from gptcli.checkpoints.layout import find as find
from gptcli.checkpoints.numpy_weights import WeightFile
from gptcli.checkpoints.safetensors_file import Streamed
from gptcli.checkpoints.verify import file_shapes, nonzero_bias, not_finite, plain_names, verify
from gptcli.config.fields import as_dict
from gptcli.config.model import HUGGING_FACE_FIELDS, GPTConfig
from gptcli.device.placement import whole
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPTModel
from gptcli.model.lora import is_adapted
from gptcli.model.quantization import unpacked
from gptcli.model.quantized import PackedModel
from gptcli.tokenizers import Tokenizer, chat_template


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and checked.

    Attributes:
        path: its directory.
        config: the model's shape.
        tokenizer: the tokenizer of its training data.
        tensors: weights by the model's parameter names, memory-mapped; packed weights are unpacked, and an adapter is
            merged, on access.
        training: data of the run that wrote it (step, losses, …); empty if no run wrote it.
        arrays: the same weights as arrays, packed ones packed; None for plain float weights.
    """

    path: Path
    config: GPTConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]
    training: dict[str, Any]
    arrays: WeightFile | MergedWeights | None = None

    def model(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> GPTModel:
        """The model with these weights, in eval mode; float32 weights on the CPU are not copied."""
        with torch.device("meta"):
            model = GPTModel(self.config, init=None)
        model.load_state_dict({name: t.to(device, dtype) for name, t in self.tensors.items()}, assign=True)
        return model.eval()

    def runner(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, bits: int = 32
    ) -> GPTModel:
        """The model for inference only: packed matrices stay packed, and ``bits`` 8 or 4 packs float32 ones."""
        stored = self.arrays.bits if self.arrays else 32
        if stored == bits == 32:
            return self.model(device, dtype)
        weights = self.arrays or WeightFile(self.path / WEIGHTS, self.config)
        return PackedModel(self.config, weights, min(stored, bits), device, dtype)

    def as_classifier(self, labels: Sequence[str], seed: int) -> "Checkpoint":
        """The start of a classifier: this model with a new head, drawn from N(0, 0.02²); the same labels keep theirs.

        A model whose tokenizer has no end of text gets one row more, for padding.

        Args:
            labels: in the order of the logits.
            seed: decides what is drawn.

        Raises:
            GptcliError: there is no tokenizer, or ``labels`` are one, equal, empty or no texts.
        """
        if tuple(labels) == self.config.labels:
            return self
        if self.tokenizer.kind == "none":
            raise GptcliError(f"{self.path} has no tokenizer, so it cannot read texts.", "Take another checkpoint.")
        config, tokenizer = self.config.with_changes(labels=tuple(labels)), self.tokenizer
        tensors = {name: self.tensors[name] for name in self.tensors if name not in ("lm_head.weight", "score.weight")}
        if classifier.padding_id(config, tokenizer) is None:
            config = config.with_changes(vocab_size=config.vocab_size + 1)
            tensors["wte.weight"] = F.pad(tensors["wte.weight"], (0, 0, 0, 1))
        head = torch.empty(len(labels), config.emb_dim)
        tensors["score.weight"] = head.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        return replace(self, config=config, tensors=tensors, training={}, arrays=None)


class _Unpacked(Mapping[str, Tensor]):
    """Packed or merged weights as float32 tensors in the model's shapes, each made on access."""

    def __init__(self, weights: WeightFile | MergedWeights) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(unpacked(name, self._weights[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def load(path: Path, adapter: Path | None = None) -> Checkpoint:
    """Read and verify a checkpoint: every tensor is present, has its shape, and is finite.

    Args:
        path: its directory; of an adapter of ours, if that is to be used on the base that it names.
        adapter: another directory, of an adapter for the checkpoint; tokenizer and config are then its own if it has
            them.

    Raises:
        GptcliError: something is missing, damaged or contradictory; the message has the name and both values.
    """
    about = described_by(path, adapter)
    config, ours = read_config(about)
    tokenizer = tokenizer_of(about, ours)
    check_parts(about, config, tokenizer)
    if adapter is not None or is_adapter(path) or packed_bits(path, ours) < 32:
        arrays = open_weights(path, adapter)
        return Checkpoint(adapter or path, config, tokenizer, _Unpacked(arrays), ours.get("training", {}), arrays)
    tensors = from_file(safetensors_file.read_tensors(path / WEIGHTS), config, path / WEIGHTS)
    return Checkpoint(path, config, tokenizer, tensors, ours.get("training", {}))


def from_file(tensors: Mapping[str, Tensor], config: GPTConfig, file: Path) -> dict[str, Tensor]:
    """The model's parameters from a file's tensors, verified; zero qkv biases are left out if ``config`` has none."""
    own = plain_names(tensors, str(file))
    check_tensors(own, config, str(file))
    if not config.qkv_bias:
        for name in [name for name in own if name.endswith("attn.c_attn.bias")]:
            if own.pop(name).count_nonzero():
                raise nonzero_bias(str(file), name)
    return own


def check_tensors(tensors: Mapping[str, Tensor], config: GPTConfig, where: str) -> None:
    """Check that ``tensors`` are exactly the model's parameters (qkv biases may be more), and finite.

    Raises:
        GptcliError: see `verify`; or a tensor has NaN or infinite values.
    """
    shapes, _ = file_shapes(config, tensors, where)
    verify(shapes, tensors, where)
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise not_finite(where, name)


def to_file(model: GPTModel, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Parameters in the file's form (see `in_file_form`), float32 and on the CPU.

    Those of a model with adapters are what an adapter's file holds. ``weights`` are the model's own by default, or
    others by the names of its state_dict.
    """
    found = model.state_dict() if weights is None else weights
    adapted = is_adapted(model)
    if adapted:
        found = {name: found[name] for name in found if adapter_file.is_own(name)}
    tensors = {name: whole(p).detach().to("cpu", torch.float32).contiguous() for name, p in found.items()}
    if adapted:
        return {adapter_file.file_name(name): tensor for name, tensor in tensors.items()}
    return in_file_form(model.config, tensors)


def in_file_form(config: GPTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, with zeros (3·emb_dim) for the qkv biases if the model has none, by the file's names.

    A language model's names are the model's, as in GPT-2's own files; those of a classifier's body begin with
    ``transformer.``, as in GPT2ForSequenceClassification.
    """
    found = dict(tensors)
    if not config.qkv_bias:
        for layer in range(config.n_layers):
            found[f"h.{layer}.attn.c_attn.bias"] = torch.zeros(3 * config.emb_dim)
    return {file_name(config, name): tensor for name, tensor in found.items()}


def file_name(config: GPTConfig, name: str) -> str:
    """The file's name of the model's parameter ``name`` (see `in_file_form`)."""
    return f"transformer.{name}" if config.labels and name != "score.weight" else name


def all_finite(tensor: Tensor) -> bool:
    """No NaN, no infinity. A finite sum proves it in one pass; if the sum is not finite, each element is tested."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def create(path: Path, model: GPTModel, tokenizer: Tokenizer, training: Mapping[str, Any], force: bool = False) -> None:
    """`create_from` with the weights of ``model``."""
    create_from(path, model.config, to_file(model), tokenizer, training, force=force)


def create_from(
    path: Path,
    config: GPTConfig,
    tensors: Mapping[str, Tensor] | Streamed,
    tokenizer: Tokenizer,
    training: Mapping[str, Any],
    dtype: torch.dtype | None = torch.float32,
    force: bool = False,
    bits: int = 32,
    populate: Callable[[Path], None] = lambda partial: None,
    inputs: Sequence[Path] = (),
    adapter: NewAdapter | None = None,
) -> None:
    """Write a new checkpoint; ``path`` is created atomically.

    Args:
        path: the directory; its parents are made.
        config: the model's shape.
        tensors: the weights by the file's names; cast to ``dtype`` one at a time while they are written.
        tokenizer: its files are written into the directory.
        training: JSON values about the run.
        dtype: dtype of the weights in the file; None keeps each tensor's own.
        force: replace an existing checkpoint, after the new one is complete.
        bits: 8 or 4 if the matrices among the tensors are packed, else 32.
        populate: writes further files into the temporary directory before it is renamed to ``path``.
        inputs: paths that the command reads; ``path`` must not replace them.
        adapter: what the tensors are, if they are an adapter's and not a model's.

    Raises:
        GptcliError: ``path`` exists and ``force`` is not given or not allowed (see `overwrite`), or it cannot be
            written.
    """
    overwrite.check_output(path, force=force, inputs=inputs)
    partial = partial_path(path)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        clear_partials(path)
        partial.mkdir()
        tokenizer.save(partial)
        chat_template.write(partial, tokenizer.chat_template)
        if config.labels:
            classifier.name_padding(partial, config, tokenizer)
        name = str(dtype or torch.float32).removeprefix("torch.")
        write_config(partial, config, tokenizer, training, name, bits, adapter)
        safetensors_file.write_tensors(partial / (ADAPTER_WEIGHTS if adapter else WEIGHTS), tensors, dtype=dtype)
        populate(partial)
        overwrite.put_in_place(partial, path, force=force)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row to the run's metrics.jsonl."""
    try:
        with (path / METRICS).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise cannot_write(path / METRICS, error) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every row of the run's metrics.jsonl; a last line without its newline is incomplete and is skipped."""
    with (path / METRICS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def write_config(
    path: Path,
    config: GPTConfig,
    tokenizer: Tokenizer,
    training: Mapping[str, Any],
    dtype: str = "float32",
    bits: int = 32,
    adapter: NewAdapter | None = None,
) -> None:
    """Write config.json, and that of an adapter, into the directory ``path`` atomically. Raises OSError."""
    bits = adapter.base.bits if adapter else bits
    everything = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, theirs in HUGGING_FACE_FIELDS.items()},
        "n_ctx": config.context_length,
        "initializer_range": 0.02,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": config.drop_rate,
        "bos_token_id": tokenizer.eot_id,
        "eos_token_id": tokenizer.eot_id,
        "torch_dtype": dtype,
        **(classifier.fields(config, tokenizer) if config.labels else {}),
        "gptcli": {
            "version": __version__,
            "config": as_dict(config),
            "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
            "training": dict(training),
            **({"bits": bits} if bits < 32 else {}),
            **({"base": adapter.base.record(path)} if adapter else {}),
        },
    }
    if adapter is not None:
        adapter.write_config(path, is_classifier=bool(config.labels))
    _write_json(path / CONFIG, everything)


def add_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Add JSON values about the run to config.json in the directory ``path``. Raises OSError."""
    everything = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    everything["gptcli"]["training"] |= facts
    _write_json(path / CONFIG, everything)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(file) as partial, partial.open("w", encoding="utf-8", newline="\n") as opened:
        json.dump(content, opened, indent=2)


def cannot_write(path: Path, error: OSError) -> GptcliError:
    """``error`` as a GptcliError with a hint."""
    return GptcliError(
        f"Cannot write the checkpoint {path}: {error.strerror or error}.",
        "Choose a folder that can be written to and has room.",
    )
