"""Every format gives the same checkpoint as Hugging Face's, bit for bit; and names go there and back unchanged."""

import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import CONFIG, random_tensors, write_course, write_hf, write_llm_c, write_nanogpt, write_openai
from safetensors.torch import load_file

from gptcli import tokenizers
from gptcli.checkpoints import formats
from gptcli.checkpoints.formats import names
from gptcli.checkpoints.formats.crc32c import crc32c
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPTModel

TF_TINY = Path(__file__).parent / "tf-gpt2-tiny"


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def files_of(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_the_table_and_its_inverse() -> None:
    ours = random_tensors()
    theirs = names.to_openai(ours)
    assert all(name.startswith("model/") for name in theirs)
    assert theirs["model/h1/attn/c_proj/w"].shape == (1, 128, 128)
    assert same(names.from_openai(theirs), ours)
    assert same(names.transpose_projections(names.transpose_projections(ours)), ours)


@pytest.mark.parametrize("prefix", ["", "transformer.", "module._orig_mod.", "_orig_mod.module.transformer."])
@pytest.mark.parametrize("form", ["safetensors", "safetensors-sharded", "bin", "bin-sharded"])
def test_hugging_face_directories(tmp_path: Path, form: str, prefix: str) -> None:
    tensors = random_tensors()
    source = formats.read(write_hf(tmp_path / "model", tensors, form=form, prefix=prefix))
    assert same(source.tensors, tensors)
    assert source.config == CONFIG


def test_old_masks_are_left_out_and_a_tied_head_may_be_there_twice(tmp_path: Path) -> None:
    tensors = random_tensors()
    more = {"h.0.attn.bias": torch.ones(1, 1, 20, 20), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    more["lm_head.weight"] = tensors["wte.weight"].clone()
    assert same(formats.read(write_hf(tmp_path / "a", tensors | more)).tensors, tensors)
    only_head = {name: tensor for name, tensor in tensors.items() if name != "wte.weight"}
    only_head["lm_head.weight"] = tensors["wte.weight"]
    assert same(formats.read(write_hf(tmp_path / "b", only_head)).tensors, tensors)


def test_a_head_of_its_own(tmp_path: Path) -> None:
    config = CONFIG.with_changes(tie_weights=False)
    tensors = random_tensors(config)
    source = formats.read(write_hf(tmp_path, tensors, config, prefix="transformer."))
    assert same(source.tensors, tensors)
    assert not source.config.tie_weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors().items()}
    assert same(formats.read(write_hf(tmp_path, tensors)).tensors, tensors)


def test_a_lone_file_infers_its_shape(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG.with_changes(ffn_dim=96))
    write_hf(tmp_path / "model", tensors)
    shutil.move(tmp_path / "model" / "model.safetensors", tmp_path / "lone.safetensors")
    source = formats.read(tmp_path / "lone.safetensors")
    assert source.config == CONFIG.with_changes(ffn_dim=96)
    assert "2 heads of 64" in source.notes[0]
    assert same(source.tensors, tensors)


@pytest.mark.parametrize(("block_bytes", "shards"), [(4096, 1), (1, 1), (200, 3)])
def test_tensorflow(tmp_path: Path, block_bytes: int, shards: int) -> None:
    """One block, a block for each tensor, several shards."""
    tensors = random_tensors()
    directory = write_openai(tmp_path / "355M", tensors, block_bytes=block_bytes, shards=shards)
    assert same(formats.read(directory).tensors, tensors)
    assert same(formats.read(directory / "model.ckpt.index").tensors, tensors)


def test_recognised_by_content(tmp_path: Path) -> None:
    """Files under other names: the course's download renames nothing, but people do."""
    tensors = random_tensors()
    openai = write_openai(tmp_path / "tf", tensors)
    for path in list(openai.glob("model.ckpt*")):
        path.rename(openai / path.name.replace("model.ckpt", "gpt2-weights"))
    assert same(formats.read(openai).tensors, tensors)
    nanogpt = write_nanogpt(tmp_path / "run" / "best.bin", tensors)
    assert formats.read(nanogpt).format == "nanoGPT"
    hugging_face = write_hf(tmp_path / "hf", tensors)
    (hugging_face / "model.safetensors").rename(hugging_face / "weights.bin")
    assert same(formats.read(hugging_face).tensors, tensors)


def test_nanogpt(tmp_path: Path) -> None:
    tensors = random_tensors()
    source = formats.read(write_nanogpt(tmp_path / "ckpt.pt", tensors))
    assert same(source.tensors, tensors)
    assert source.config == CONFIG.with_changes(activation="gelu")


def test_nanogpt_without_biases_and_with_a_padded_vocabulary(tmp_path: Path) -> None:
    config = CONFIG.with_changes(vocab_size=50_304, emb_dim=8)
    tensors = random_tensors(config)
    source = formats.read(write_nanogpt(tmp_path / "ckpt.pt", tensors, config, prefix="", bias=False).parent)
    assert source.config.vocab_size == 50_257
    assert torch.equal(source.tensors["wte.weight"], tensors["wte.weight"][:50_257])
    assert not any(tensor.any() for name, tensor in source.tensors.items() if name.endswith(".bias"))
    assert torch.equal(source.tensors["h.1.mlp.c_proj.weight"], tensors["h.1.mlp.c_proj.weight"])
    assert source.tokenizer.kind == "gpt2"


def test_every_source_gives_the_same_checkpoint(gptcli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors, exact = random_tensors(), CONFIG.with_changes(activation="gelu")
    sources = {
        "hf": write_hf(tmp_path / "1" / "hf", tensors),
        "bin": write_hf(tmp_path / "2" / "bin", tensors, form="bin-sharded", prefix="transformer."),
        "tf": write_openai(tmp_path / "3" / "tf", tensors),
        "exact": write_hf(tmp_path / "4" / "exact", tensors, exact),
        "nano": write_nanogpt(tmp_path / "5" / "nano" / "ckpt.pt", tensors),
    }
    for source in sources.values():
        assert gptcli("load-gpt2", "--from", source).code == 0
    made = {name: files_of(Path("checkpoints") / name) for name in sources}
    assert made["hf"] == made["bin"] == made["tf"]
    assert made["exact"] == made["nano"]  # nanoGPT's GELU is exact
    assert made["hf"]["model.safetensors"] == made["nano"]["model.safetensors"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back_is_bit_identical(gptcli, tmp_path: Path, dtype: str) -> None:  # type: ignore[no-untyped-def]
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in random_tensors().items()}
    write_hf(tmp_path / "model", tensors)
    assert gptcli("load-gpt2", "--from", "model").code == 0
    assert gptcli("export", "checkpoints/model", "back", "--dtype", dtype).code == 0
    assert same(load_file(tmp_path / "back" / "model.safetensors"), tensors)


def test_the_tensorflow_model_that_the_project_was_given() -> None:
    source = formats.read(TF_TINY)
    model = GPTModel(source.config, init=None).eval()
    model.load_state_dict(source.tensors, assign=True)
    expected = np.load(TF_TINY / "expected.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["input_ids"])[None])[0].double().numpy()
    assert np.abs(logits - expected["logits"]).max() < 1e-4
    ids = torch.from_numpy(expected["greedy_ids"][:8])[None]
    for _ in range(16):
        with torch.no_grad():
            ids = torch.cat([ids, model.next_logits(ids).argmax(-1, keepdim=True)], dim=1)
    assert ids[0].tolist() == expected["greedy_ids"].tolist()
    assert source.tokenizer.kind == "none"


def test_the_tokenizer_is_gpt2s_only_where_the_files_or_the_size_say_so(tmp_path: Path) -> None:
    big = CONFIG.with_changes(vocab_size=50_257, emb_dim=8)
    assert formats.read(write_hf(tmp_path / "a", config=big)).tokenizer.kind == "gpt2"
    more = big.with_changes(vocab_size=50_260)
    assert formats.read(write_hf(tmp_path / "b", config=more)).tokenizer.kind == "none"
    tokenizers.build("gpt2").save(tmp_path / "b")
    source = formats.read(tmp_path / "b")
    assert source.tokenizer.kind == "gpt2"
    assert "3 tokens beyond" in source.notes[0]
    (tmp_path / "a" / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    (tmp_path / "a" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    assert formats.read(tmp_path / "a").tokenizer.kind == "none"


def test_crc32c_of_the_published_examples() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_crc32c_of_long_data_is_that_of_one_byte_after_another() -> None:
    data = torch.randint(0, 256, (70_001,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    register = 0xFFFFFFFF
    for byte in data.tobytes():
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0x82F63B78 * (register & 1)
    assert crc32c(data.tobytes()) == register ^ 0xFFFFFFFF


def test_an_index_that_is_compressed_is_refused_by_name(tmp_path: Path) -> None:
    index = write_openai(tmp_path) / "model.ckpt.index"
    table = bytearray(index.read_bytes())
    # The only data block starts at 0; the block after it, empty, follows its 5 bytes of type and CRC.
    end = table.index(struct.pack("<II", 0, 1) + b"\0", 8) - 5
    table[end] = 1
    crc = crc32c(bytes(table[: end + 1]))
    table[end + 1 : end + 5] = struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
    index.write_bytes(table)
    with pytest.raises(GptcliError, match="compressed"):
        formats.read(tmp_path)


def two_checkpoints(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """A run of OpenAI's format with the checkpoints model-500 and model-1000."""
    made = {}
    for seed, name in ((1, "model-500"), (2, "model-1000")):
        made[name] = random_tensors(seed=seed)
        write_openai(directory, made[name])
        for path in list(directory.glob("model.ckpt*")):
            path.rename(directory / path.name.replace("model.ckpt", name))
    return made


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001", ""])
def test_the_tensorflow_checkpoint_that_is_named_is_read(tmp_path: Path, suffix: str) -> None:
    for name, tensors in two_checkpoints(tmp_path).items():
        assert same(formats.read(tmp_path / f"{name}{suffix}").tensors, tensors)


def test_of_two_tensorflow_checkpoints_one_must_be_named(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    with pytest.raises(GptcliError, match="2 checkpoints") as caught:
        formats.read(tmp_path)
    assert f"source {tmp_path / 'model-1000.index'}" in caught.value.hint
    with pytest.raises(GptcliError, match="There is no"):
        formats.read(tmp_path / "model-700")


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "_orig_mod."])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_courses_state_dict(tmp_path: Path, prefix: str, whole: bool, bias: bool, tied: bool) -> None:
    config = CONFIG.with_changes(qkv_bias=bias, tie_weights=tied)
    tensors = random_tensors(config)
    file = write_course(tmp_path / "model.pth", tensors, config, prefix, whole)
    for path in (file, tmp_path):
        source = formats.read(path)
        assert source.config == config
        assert same(source.tensors, tensors)
    assert "2 heads of 64" in source.notes[0]


@pytest.mark.parametrize("removed", ["trf_blocks.1.att.W_key.weight", "trf_blocks.0.norm2.shift", "pos_emb.weight"])
def test_a_state_dict_of_the_courses_that_lacks_a_tensor(tmp_path: Path, removed: str) -> None:
    file = write_course(tmp_path / "model.pth")
    state = torch.load(file)
    torch.save({name: tensor for name, tensor in state.items() if name != removed}, file)
    with pytest.raises(GptcliError, match=r"three tensors|missing: h\.0\.ln_2\.bias|not GPT-2's"):
        formats.read(file)


@pytest.mark.parametrize(("version", "dtype"), [(3, torch.float32), (5, torch.bfloat16)])
def test_llm_c(tmp_path: Path, version: int, dtype: torch.dtype) -> None:
    tensors = random_tensors()
    source = formats.read(write_llm_c(tmp_path / "gpt2_124M.bin", tensors, version=version))
    assert source.config == CONFIG
    assert same(source.tensors, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert "The 67 rows that pad the vocabulary are dropped." in source.notes


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [(4, 1, "of llm.c's of version 1"), (8, 2**30, "context_length is 1073741824"), (12, 40, "makes them"),
     (16, 3, "makes them"), (16, 0, "n_layers is 0"), (28, 60, "makes them"), (20, 3, "not divisible")],
)  # fmt: skip
def test_a_damaged_file_of_llm_c_is_called_by_its_name(tmp_path: Path, place: int, value: int, words: str) -> None:
    file = write_llm_c(tmp_path / "model.bin")
    content = bytearray(file.read_bytes())
    content[place : place + 4] = struct.pack("<i", value)
    if place == 12:
        content += bytes(4)
    file.write_bytes(content)
    with pytest.raises(GptcliError, match=r"llm\.c's") as caught:
        formats.read(file)
    assert words in caught.value.message
    file.write_bytes(content[:20])
    with pytest.raises(GptcliError, match="ends at byte 20, in its header"):
        formats.read(file)
