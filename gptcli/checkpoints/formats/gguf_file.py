"""GGUF, the single-file format of llama.cpp, Ollama and LM Studio; written with the gguf package, an optional extra."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.checkpoints.atomic import atomic_write, clear_partials
from gptcli.checkpoints.formats.names import HEAD, transpose_projections
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError, SettingError
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.bpe import MERGES_FILE, VOCAB_FILE, BPETokenizer
from gptcli.tokenizers.gpt2 import GPT2Tokenizer

# dtype -> the value of general.file_type for a file mostly of this dtype (llama.cpp's LLAMA_FTYPE_*).
_FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
MAGIC = b"GGUF"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # ggml's token types


def check_supported(config: GPTConfig, tokenizer: Tokenizer, where: str) -> None:
    """Check that llama.cpp supports this model: fixed activation, fixed attention scale, byte-level BPE.

    Raises:
        GptcliError: llama.cpp does not support it, or the gguf package is not installed.
    """
    _gguf()
    if config.labels:
        raise SettingError(
            f"{where} is a classifier, and llama.cpp's GPT-2 is a language model.", "Export it with {format} hf."
        )
    fixed = {"activation": "gelu_new", "scale_attn": True, "scale_attn_by_layer": False}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise SettingError(
                f"{where}: llama.cpp's GPT-2 has {name} {value}, but this model has {getattr(config, name)}.",
                "Export it with {format} hf instead.",
            )
    if not isinstance(tokenizer, GPT2Tokenizer | BPETokenizer):
        raise SettingError(
            f"{where} has a tokenizer of kind {tokenizer.kind}; llama.cpp needs byte-level BPE.",
            "Train a model with the gpt2 tokenizer or with bpe:4096, or export this one with {format} hf.",
        )


def write(
    path: Path, config: GPTConfig, tensors: Mapping[str, Tensor], tokenizer: Tokenizer, dtype: torch.dtype, name: str
) -> None:
    """Write the model as one file, read it back and compare every tensor, and then rename it to ``path``.

    Matrices, embeddings included, are written as ``dtype``; tensors of one dimension (biases, norms) as float32.

    Args:
        path: the file.
        config: the model's shape.
        tensors: the weights by our checkpoint's names and layouts.
        tokenizer: GPT-2's, or a trained BPE.
        dtype: float32, float16 or bfloat16.
        name: the model's name, written to general.name.

    Raises:
        GptcliError: the disk is full or not writable, or the file read back differs from the tensors.
    """
    gguf = _gguf()
    placed = _placed(gguf, tensors, config, dtype)
    try:
        clear_partials(path)
        with atomic_write(path) as partial:
            writer = gguf.GGUFWriter(partial, "gpt2")
            _add_metadata(writer, config, tokenizer, dtype, name)
            for tensor_name, tensor in placed.items():
                kind = gguf.GGMLQuantizationType[_ggml_name(tensor, dtype)]
                array = _bits(tensor[:0], kind.name)
                nbytes = tensor.numel() * array.dtype.itemsize
                writer.add_tensor_info(tensor_name, list(tensor.shape), array.dtype, nbytes, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in placed.values():
                writer.write_tensor_data(_bits(tensor, _ggml_name(tensor, dtype)))
            writer.flush()
            writer.close()
            _compare(gguf, partial, placed, dtype)
    except OSError as error:
        raise GptcliError(
            f"{path} cannot be written: {error.strerror or error}.", "Choose a folder with room that you may write to."
        ) from error


def _placed(gguf: Any, tensors: Mapping[str, Tensor], config: GPTConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Views of ``tensors`` by ggml's names, projections transposed to (out, in)."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layers)
    placed = {}
    for name, tensor in transpose_projections(tensors).items():
        theirs = names.get_name(name if name == HEAD else f"transformer.{name}", try_suffixes=(".weight", ".bias"))
        placed[theirs] = tensor
    return placed


def _ggml_name(tensor: Tensor, dtype: torch.dtype) -> str:
    """GGML's name of the type that ``tensor`` is written as."""
    if tensor.dim() < 2:
        return "F32"
    return {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]


def _bits(tensor: Tensor, ggml_name: str) -> Any:
    """``tensor`` as a numpy array; bfloat16 as the same bits in int16, because numpy has no bfloat16."""
    target = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[ggml_name]
    cast = tensor.to(target).contiguous()
    return (cast.view(torch.int16) if ggml_name == "BF16" else cast).numpy()


def _add_metadata(writer: Any, config: GPTConfig, tokenizer: Tokenizer, dtype: torch.dtype, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.emb_dim)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        vocab = json.loads((Path(folder) / VOCAB_FILE).read_text(encoding="utf-8"))
        merges = (Path(folder) / MERGES_FILE).read_text(encoding="utf-8").split("\n")[1:-1]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    # The token list needs one entry per row of the embedding; rows without a token get unused [PAD…] tokens.
    by_id = {token_id: token for token, token_id in vocab.items()}
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(config.vocab_size)])
    types = dict.fromkeys(by_id, _NORMAL) | _added_types(tokenizer)
    writer.add_token_types([types.get(number, _UNUSED) for number in range(config.vocab_size)])
    writer.add_token_merges(merges)
    if tokenizer.eot_id is not None:
        writer.add_bos_token_id(tokenizer.eot_id)
        writer.add_eos_token_id(tokenizer.eot_id)
    writer.add_add_bos_token(False)


def _added_types(tokenizer: Tokenizer) -> dict[int, int]:
    """ggml's types of the tokens that BPE does not make, by id."""
    types = {} if tokenizer.eot_id is None else {tokenizer.eot_id: _CONTROL}
    if isinstance(tokenizer, BPETokenizer):
        kept = tokenizer.description.kept
        types |= {i: _USER_DEFINED if token in kept else _CONTROL for token, i in tokenizer.description.added.items()}
    return types


def _compare(gguf: Any, file: Path, placed: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, tensor in placed.items():
        expected = _bits(tensor, _ggml_name(tensor, dtype))
        written = found.pop(name, None)
        if written is None or written.data.tobytes() != expected.tobytes():
            raise GptcliError(f"{file}: {name} is not what was written.", "The disk may be failing; try another one.")
    if found:
        raise GptcliError(f"{file} has tensors that gptcli did not write: {', '.join(found)}.", "Try another disk.")


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise GptcliError(
            "GGUF files need the gguf package, which is not installed.", "Install it: pip install 'gptcli[gguf]'"
        ) from error
    return gguf
