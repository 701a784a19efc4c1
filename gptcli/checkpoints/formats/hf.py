"""GPT-2 in the format of Hugging Face's transformers: config.json; safetensors or pickles, in one file or in shards."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gptcli.checkpoints import safetensors_file
from gptcli.checkpoints.checkpoint import check_tensors
from gptcli.checkpoints.classifier import CLASSIFIER
from gptcli.checkpoints.formats import names
from gptcli.checkpoints.formats.source import Source, find_tokenizer, only_tensors, read_json, read_pickle
from gptcli.config.model import HUGGING_FACE_FIELDS, PRESETS, GPTConfig
from gptcli.errors import GptcliError, SettingError

CONFIG = "config.json"
# In order of preference: a safetensors file cannot hold code.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# Fields of config.json for computations that our model does not support, with the value that turns each off.
_REFUSED = {"add_cross_attention": False, "pruned_heads": {}, "quantization_config": None, "is_encoder_decoder": False}
_SAME_ACTIVATION = {"gelu_pytorch_tanh": "gelu_new"}
_OTHER_FRAMEWORKS = {".h5": "TensorFlow's Keras", ".msgpack": "Flax", ".onnx": "ONNX", ".gguf": "llama.cpp's GGUF"}


def read_directory(directory: Path, weights: Path | None = None) -> Source:
    """The model in a directory with config.json and weights; ``weights`` is the file to read, None for the default.

    Raises:
        GptcliError: something is missing, damaged, contradictory or hostile, or is not a supported GPT-2.
    """
    config = read_config(directory / CONFIG)
    file = weights or find_weights(directory)
    tensors = _read_shards(directory, file) if file.name.endswith(".index.json") else read_tensors(file)
    return make_source(tensors, config, directory, str(file))


def make_source(tensors: Mapping[str, Tensor], config: GPTConfig, directory: Path, where: str) -> Source:
    """Translate the tensors to our names, check them against ``config`` and find the tokenizer."""
    ours = names.settle_head(names.from_hugging_face(tensors, where), config.tie_weights, where)
    check_tensors(ours, config, where)
    notes: list[str] = []
    return Source("Hugging Face", config, ours, find_tokenizer(directory, config.vocab_size, notes), notes)


def read_lone_file(file: Path) -> Source:
    """The model in a weights file without a config.json; its shape is inferred from the tensors.

    Raises:
        GptcliError: as `read_directory`, or the shape cannot be inferred.
    """
    tensors = read_tensors(file)
    config = names.infer_config(names.from_hugging_face(tensors, str(file)), str(file))
    source = make_source(tensors, config, file.parent, str(file))
    source.notes.insert(
        0, f"No config.json: {config.n_layers} layers and {config.n_heads} heads of 64 are inferred from the tensors."
    )
    return source


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file or pickle; the content decides which, but a file whose name ends in
    .safetensors is never read as a pickle, which can hold code."""
    if file.suffix == ".safetensors" or not is_pickle(file):
        return safetensors_file.read_tensors(file)
    return only_tensors(read_pickle(file), str(file))


def is_pickle(file: Path) -> bool:
    """Whether the first bytes are those of torch.save's formats, a zip archive or (before PyTorch 1.6) a pickle."""
    try:
        with file.open("rb") as opened:
            start = opened.read(8)
    except OSError as error:
        raise GptcliError(f"{file} cannot be read: {error.strerror or error}.", "Check the path.") from error
    # A safetensors file begins with a uint64 header length, whose bytes 5 to 7 are 0 below 1 TiB.
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and any(start[5:]))


def find_weights(directory: Path) -> Path:
    """The weights file of ``directory``, or the index of its shards."""
    for name in WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    candidates = [path for path in sorted(directory.iterdir()) if path.suffix in (".safetensors", ".bin", ".pt")]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise SettingError(
            f"{directory} has no {WEIGHTS[0]} but {len(candidates)} other files of weights.",
            f"Name one of them: {{source}} {candidates[0]}",
        )
    for path in sorted(directory.iterdir()):
        if path.suffix in _OTHER_FRAMEWORKS:
            raise GptcliError(
                f"{directory} has no weights but {path.name}, in the format of {_OTHER_FRAMEWORKS[path.suffix]}.",
                "Take the model's safetensors file instead; nearly every repository has one.",
            )
    raise GptcliError(
        f"{directory} has a {CONFIG} but no weights.", f"Put {WEIGHTS[0]} beside it, or download the model again."
    )


def read_config(file: Path) -> GPTConfig:
    """The shape that a Hugging Face config.json describes.

    Raises:
        GptcliError: the file is missing, not JSON or not of a GPT-2, or a field asks for an unsupported computation.
    """
    fields = read_json(file)
    model_type = fields.get("model_type")
    if model_type != "gpt2":
        architectures = fields.get("architectures")
        named = f" ({architectures[0]!s:.60})" if isinstance(architectures, list) and architectures else ""
        raise GptcliError(
            f"{file}: this is a {model_type!r:.60} model{named}, not a GPT-2."
            if model_type is not None
            else f"{file} names no model_type.",
            "Only GPT-2's architecture is supported: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2 and the like.",
        )
    for name, harmless in _REFUSED.items():
        if fields.get(name, harmless) not in (harmless, None):
            raise GptcliError(
                f"{file}: {name} is {fields[name]!r:.60}, which is not supported.",
                "This model computes something that GPT-2 does not; gptcli would compute other results.",
            )
    # A field that is absent or null has transformers' default, which is GPT-2 small's value.
    values = {ours: fields[theirs] for ours, theirs in HUGGING_FACE_FIELDS.items() if fields.get(theirs) is not None}
    defaults = PRESETS["small"]
    for ours, value in values.items():
        expected = int if ours == "ffn_dim" else type(getattr(defaults, ours))
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise GptcliError(
                f"{file}: {HUGGING_FACE_FIELDS[ours]} is {value!r:.60}, not of type {expected.__name__}.",
                "Download or copy it again.",
            )
    architectures = fields.get("architectures")
    if isinstance(architectures, list) and CLASSIFIER in architectures:
        values["labels"] = _labels(fields.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"}), file)
    values["activation"] = _SAME_ACTIVATION.get(values.get("activation", ""), values.get("activation", "gelu_new"))
    return _named_by_their_fields(file, lambda: GPTConfig(**values))


def _labels(id2label: Any, file: Path) -> tuple[str, ...]:
    """The labels in the order of their ids, which are 0, 1, ..."""
    names = id2label if isinstance(id2label, dict) else {}
    labels = tuple(str(names[key]) for key in map(str, range(len(names))) if key in names)
    if not labels or len(labels) < len(names):
        raise GptcliError(f"{file}: id2label is {id2label!r:.80}, not labels by id.", "Download or copy it again.")
    return labels


def _named_by_their_fields(file: Path, make: Callable[[], GPTConfig]) -> GPTConfig:
    """``make()``; the message of a GptcliError gets the name of the file."""
    try:
        return make()
    except GptcliError as error:
        raise GptcliError(f"{file}: {error.message}", error.hint) from error


def shard_names(index: Path) -> list[str]:
    """The shard files that ``index`` lists, relative to its directory.

    Raises:
        GptcliError: the index is damaged, or lists a path outside its directory.
    """
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if name in ("", ".", "..") or any(letter in name for letter in "/\\:\0"):
            raise GptcliError(
                f"{index} names {name!r:.100}, a path outside of its directory.",
                "Do not trust this model: an index names files beside it and nothing else.",
            )
    return names


def _check_shards(directory: Path, index: Path) -> None:
    for name in shard_names(index):
        if not (directory / name).is_file():
            raise GptcliError(f"{index} names {name!r:.100}, which is not there.", "Download all shards of the model.")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map: Any = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise GptcliError(f"{index} has no weight_map of file names.", "Download or copy it again.")
    return weight_map


def _read_shards(directory: Path, index: Path) -> dict[str, Tensor]:
    """Every tensor of the shards of ``index``; each must be in the shard that the index says."""
    weight_map = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    _check_shards(directory, index)
    for name in shard_names(index):
        for key, tensor in read_tensors(directory / name).items():
            if weight_map.get(key) != name:
                raise GptcliError(
                    f"{directory / name} holds {key!r:.80}, which {index.name} places in {weight_map.get(key)!r:.80}.",
                    "The shards and the index come from different models; download them again.",
                )
            tensors[key] = tensor
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise GptcliError(
            f"{index} places {absent[0]!r:.100} in {weight_map[absent[0]]!r:.100}, which does not hold it"
            + (f" ({len(absent)} tensors are missing so)." if len(absent) > 1 else "."),
            "The shards and the index come from different models; download them again.",
        )
    return tensors
