"""GPT-2s as other programs write them, made from random weights, for tests to load."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gptcli.checkpoints.formats import names
from gptcli.checkpoints.formats.crc32c import crc32c
from gptcli.config.model import HUGGING_FACE_FIELDS, GPTConfig
from gptcli.model.parameters import parameter_shapes

CONFIG = GPTConfig(vocab_size=61, context_length=20, emb_dim=128, n_heads=2, n_layers=2, drop_rate=0.1)


def random_tensors(config: GPTConfig = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in parameter_shapes(config).items()}


def config_json(config: GPTConfig = CONFIG, **fields: Any) -> dict[str, Any]:
    theirs = {hf: getattr(config, ours) for ours, hf in HUGGING_FACE_FIELDS.items()}
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **theirs, **fields}


def write_hf(
    directory: Path,
    tensors: Mapping[str, Tensor] | None = None,
    config: GPTConfig = CONFIG,
    form: str = "safetensors",
    prefix: str = "",
    **fields: Any,
) -> Path:
    """``form``: safetensors, bin, or either with -sharded."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_json(config, **fields)), encoding="utf-8")
    named = {
        name if name == names.HEAD else prefix + name: tensor.contiguous()
        for name, tensor in (random_tensors(config) if tensors is None else tensors).items()
    }
    kind, _, sharded = form.partition("-")
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    if not sharded:
        _save(directory / f"{stem}.{suffix}", named)
        return directory
    half = len(named) // 2
    shards = [dict(list(named.items())[:half]), dict(list(named.items())[half:])]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        _save(directory / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file, {"format": "pt"})
    else:
        torch.save(tensors, file)


def write_nanogpt(
    file: Path,
    tensors: Mapping[str, Tensor] | None = None,
    config: GPTConfig = CONFIG,
    prefix: str = "_orig_mod.",
    bias: bool = True,
) -> Path:
    """As nanoGPT's train.py saves a run: Linear layouts, a tied head under its own name, an optimizer beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    theirs = names.transpose_projections(random_tensors(config) if tensors is None else tensors)
    state = {
        f"{prefix}transformer.{name}": tensor.contiguous()
        for name, tensor in theirs.items()
        if bias or not name.endswith(".bias")
    }
    state[f"{prefix}lm_head.weight"] = state[f"{prefix}transformer.wte.weight"]
    arguments = {
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_embd": config.emb_dim,
        "block_size": config.context_length,
        "bias": bias,
        "vocab_size": config.vocab_size,
        "dropout": config.drop_rate,
    }
    torch.save({"model": state, "model_args": arguments, "optimizer": {"state": {}}, "iter_num": 5}, file)
    return file


def write_course(
    file: Path,
    tensors: Mapping[str, Tensor] | None = None,
    config: GPTConfig = CONFIG,
    prefix: str = "",
    whole: bool = False,
) -> Path:
    """As the course saves its GPTModel: Linear layouts, three projections, a mask in each block, a head of its own.

    ``whole``: with the optimizer's state beside it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    theirs = names.transpose_projections(random_tensors(config) if tensors is None else tensors)
    words = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_proj": "att.out_proj", "mlp.c_fc": "ff.layers.0"}
    words |= {"mlp.c_proj": "ff.layers.2", "ln_f": "final_norm", "wte": "tok_emb", "wpe": "pos_emb"}
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        place, _, kind = name.removeprefix("h.").rpartition(".")
        block, _, inner = place.partition(".") if name.startswith("h.") else ("", "", place)
        at = f"trf_blocks.{block}." if block else ""
        if inner == "attn.c_attn":
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"{prefix}{at}att.W_{part}.{kind}"] = piece.contiguous()
            state[f"{prefix}{at}att.mask"] = torch.ones(config.context_length, config.context_length).triu(1)
        else:
            is_norm = inner.startswith("ln")
            kind = {"weight": "scale", "bias": "shift"}[kind] if is_norm else kind
            state[f"{prefix}{at}{words.get(inner, inner)}.{kind}"] = tensor.contiguous()
    state[f"{prefix}out_head.weight"] = state.pop(f"{prefix}lm_head.weight", state[f"{prefix}tok_emb.weight"])
    torch.save({"model_state_dict": state, "optimizer_state_dict": {"state": {}}} if whole else state, file)
    return file


def write_llm_c(
    file: Path, tensors: Mapping[str, Tensor] | None = None, config: GPTConfig = CONFIG, version: int = 3
) -> Path:
    """As llm.c's train_gpt2.py writes a model: version 3 float32, 5 bfloat16; the vocabulary padded to 128."""
    file.parent.mkdir(parents=True, exist_ok=True)
    theirs = names.transpose_projections(random_tensors(config) if tensors is None else tensors)
    padded = -(-config.vocab_size // 128) * 128
    sizes = (config.context_length, config.vocab_size, config.n_layers, config.n_heads, config.emb_dim, padded)
    content = struct.pack("<8i", 20240326, version, *sizes).ljust(1024, b"\0")
    blocks = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    order = [
        f"h.{layer}.{name}.{kind}" for name in blocks for kind in ("weight", "bias") for layer in range(config.n_layers)
    ]
    for name in ["wte.weight", "wpe.weight", *order, "ln_f.weight", "ln_f.bias"]:
        tensor = theirs[name].to(torch.float32 if version == 3 else torch.bfloat16).contiguous()
        content += tensor.view(-1).view(torch.uint8).numpy().tobytes()
        if name == "wte.weight":
            content += bytes((padded - config.vocab_size) * config.emb_dim * tensor.element_size())
    file.write_bytes(content)
    return file


def write_openai(
    directory: Path,
    tensors: Mapping[str, Tensor] | None = None,
    config: GPTConfig = CONFIG,
    block_bytes: int = 4096,
    shards: int = 1,
) -> Path:
    """hparams.json and a TensorFlow checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    hparams = {
        "n_vocab": config.vocab_size,
        "n_ctx": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
    }
    (directory / "hparams.json").write_text(json.dumps(hparams), encoding="utf-8")
    theirs = names.to_openai(random_tensors(config) if tensors is None else tensors)
    write_bundle(directory / "model.ckpt", theirs, block_bytes, shards)
    return directory


def write_bundle(prefix: Path, tensors: Mapping[str, Tensor], block_bytes: int, shards: int) -> None:
    """TensorFlow's checkpoint format V2, tensors dealt out to shards in turns."""
    data = [bytearray() for _ in range(shards)]
    entries = {b"": _field(1, shards) + _field(3, _field(1, 1))}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        raw = tensor.contiguous().numpy().tobytes()
        shape = b"".join(_field(2, _field(1, side)) for side in tensor.shape)
        entry = _field(1, 1) + _field(2, shape) + _field(3, number % shards)
        entry += _field(4, len(data[number % shards])) + _field(5, len(raw))
        entries[name.encode()] = entry + bytes([6 << 3 | 5]) + struct.pack("<I", _masked(raw))
        data[number % shards] += raw
    for number, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{shards:05d}").write_bytes(content)
    prefix.with_name(f"{prefix.name}.index").write_bytes(_table(sorted(entries.items()), block_bytes))


def _table(entries: Iterable[tuple[bytes, bytes]], block_bytes: int) -> bytes:
    table, pending, index = bytearray(), [], []

    def place(block: bytes) -> bytes:
        handle = _varint(len(table)) + _varint(len(block))
        table.extend(block + b"\0" + struct.pack("<I", _masked(block + b"\0")))
        return handle

    for key, value in entries:
        pending.append((key, value))
        if sum(len(k) + len(v) for k, v in pending) >= block_bytes:
            index.append((key, place(_block(pending))))
            pending = []
    if pending:
        index.append((pending[-1][0], place(_block(pending))))
    footer = place(_block([])) + place(_block(index, restart_every=1))
    return bytes(table) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _block(entries: list[tuple[bytes, bytes]], restart_every: int = 16) -> bytes:
    block, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        if number % restart_every == 0:
            restarts.append(len(block))
            last = b""
        shared = next((i for i, (a, b) in enumerate(zip(last, key, strict=False)) if a != b), min(len(last), len(key)))
        block += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(block) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
