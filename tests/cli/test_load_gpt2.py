"""gptcli load-gpt2 as its users meet it: what it says, and what it makes of damaged, foreign and hostile files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import CONFIG, random_tensors, write_bundle, write_hf, write_nanogpt, write_openai
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gptcli.checkpoints import checkpoint, formats
from gptcli.errors import GptcliError

TF_TINY = Path(__file__).parents[1] / "checkpoints" / "formats" / "tf-gpt2-tiny"


def change(file: Path, edit: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file."""
    file.write_text(json.dumps(edit(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")


def flip(file: Path, byte: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def cut(file: Path, length: int) -> None:
    os.truncate(file, length)


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in random_tensors().items() if key != name}


def with_value(name: str, value: float) -> dict[str, torch.Tensor]:
    tensors = random_tensors()
    tensors[name].view(-1)[3] = value
    return tensors


def hf_with(*edits: Callable[[Path], Any], **settings: Any) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        write_hf(directory, **settings)
        for edit in edits:
            edit(directory)
        return directory

    return make


def openai_with(*edits: Callable[[Path], Any], **settings: Any) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        write_openai(directory, **settings)
        for edit in edits:
            edit(directory)
        return directory

    return make


def fields(**changes: Any) -> Callable[[Path], None]:
    return lambda d: change(d / "config.json", lambda config: {**config, **changes})


def shard_of(name: Any) -> Callable[[Path], None]:
    """The index places one tensor in ``name``."""

    def edit(index: Any) -> Any:
        index["weight_map"]["wte.weight"] = name
        return index

    return lambda d: change(d / "model.safetensors.index.json", edit)


def nanogpt_with(**changes: Any) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        file = write_nanogpt(directory / "ckpt.pt")
        values = torch.load(file, weights_only=True)
        torch.save({**values, **changes}, file)
        return directory

    return make


def lone(tensors: dict[str, torch.Tensor]) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        directory.mkdir()
        save_file(tensors, directory / "lone.safetensors")
        return directory / "lone.safetensors"

    return make


class Payload:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("it-ran"),)


def legacy_pickle(d: Path) -> None:
    torch.save({"a": Payload()}, d / "pytorch_model.bin", _use_new_zipfile_serialization=False)


W, B, CFG = "model.safetensors", "pytorch_model.bin", "config.json"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"

# What is wrong -> how to make it, and words of the two lines.
BAD: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "nothing there": (lambda d: d, ("There is no",)),
    "an empty directory": (lambda d: d.mkdir(), ("holds no GPT-2",)),
    "config.json absent": (hf_with(lambda d: (d / CFG).unlink()), ("no config.json",)),
    "config.json not JSON": (hf_with(lambda d: (d / CFG).write_text("{")), ("config.json is not JSON",)),
    "config.json not UTF-8": (hf_with(lambda d: (d / CFG).write_bytes(b"\xff{}")), ("config.json is not JSON",)),
    "config.json a list": (hf_with(lambda d: (d / CFG).write_text("[]")), ("not a JSON object",)),
    "config.json nested": (hf_with(lambda d: (d / CFG).write_text("[" * 99999)), ("config.json is not JSON",)),
    "a Llama": (
        hf_with(fields(model_type="llama", architectures=["LlamaForCausalLM"])),
        ("'llama' model (LlamaForCausalLM), not a GPT-2",),
    ),
    "no model_type": (hf_with(fields(model_type=None)), ("names no model_type",)),
    "cross-attention": (hf_with(fields(add_cross_attention=True)), ("add_cross_attention is True",)),
    "pruned heads": (hf_with(fields(pruned_heads={"0": [1]})), ("pruned_heads is {'0': [1]}",)),
    "quantised": (hf_with(fields(quantization_config={"bits": 4})), ("quantization_config",)),
    "an unknown activation": (hf_with(fields(activation_function="silu")), ("'silu'", CFG)),
    "layers as text": (hf_with(fields(n_layer="2")), ("n_layer is '2', not of type int",)),
    "layers as true": (hf_with(fields(n_layer=True)), ("n_layer is True",)),
    "an epsilon of zero": (hf_with(fields(layer_norm_epsilon=0.0)), ("layer_norm_eps is 0.0", CFG)),
    "an epsilon of NaN": (hf_with(fields(layer_norm_epsilon=float("nan"))), ("layer_norm_eps is nan",)),
    "heads that do not divide": (hf_with(fields(n_head=3)), ("emb_dim 128 is not divisible by n_heads 3", CFG)),
    "contradicting width": (
        hf_with(fields(n_embd=64)),
        ("of another shape: wte.weight is (61, 128) and should be (61, 64)", " and 23 more."),
    ),
    "contradicting depth": (hf_with(fields(n_layer=3)), ("missing: h.2.ln_1.weight (128,)", "and 7 more")),
    "a billion layers": (hf_with(fields(n_layer=10**9)), ("config.json: n_layers is 1000000000, outside [1, 10000]")),
    "a thousand layers": (hf_with(fields(n_layer=1000)), ("too few for n_layers 1000",)),
    "positions beyond any model": (
        hf_with(fields(n_positions=10**20)),
        ("config.json: context_length is 1000000000000", "outside [1, 1e+07]"),
    ),
    "a vocabulary beyond any model": (
        hf_with(fields(vocab_size=2**31)),
        ("config.json: vocab_size is 2147483648", "outside [1, 1e+08]"),
    ),
    "a missing tensor": (hf_with(tensors=without("h.1.ln_2.bias")), ("missing: h.1.ln_2.bias (128,)",)),
    "an extra tensor": (
        hf_with(tensors={**random_tensors(), "score.weight": torch.zeros(2, 128)}),
        ("not GPT-2's: score.weight (2, 128)",),
    ),
    "missing, extra and mis-shaped at once": (
        hf_with(tensors={**without("ln_f.bias"), "wpe.weight": torch.zeros(7, 128), "x": torch.zeros(1)}),
        ("missing: ln_f.bias (128,)", "not GPT-2's: x (1,)", "wpe.weight is (7, 128) and should be (20, 128)"),
    ),
    "a projection transposed": (
        hf_with(tensors={**random_tensors(), "h.0.mlp.c_fc.weight": torch.zeros(512, 128)}),
        ("h.0.mlp.c_fc.weight is (512, 128) and should be (128, 512)",),
    ),
    "a tensor under two names": (
        hf_with(tensors={**random_tensors(), "transformer.wte.weight": torch.zeros(61, 128)}),
        ("wte.weight' twice",),
    ),
    "NaN": (hf_with(tensors=with_value("h.0.attn.c_proj.weight", float("nan"))), ("h.0.attn.c_proj.weight",)),
    "infinity": (hf_with(tensors=with_value("ln_f.weight", float("inf"))), ("NaN or infinite", "ln_f.weight")),
    "integers": (hf_with(tensors={**random_tensors(), "ln_f.bias": torch.zeros(128).int()}), ("ln_f.bias int32",)),
    "doubles": (hf_with(tensors={**random_tensors(), "ln_f.bias": torch.zeros(128).double()}), ("ln_f.bias float64",)),
    "a head that is not tied": (
        hf_with(tensors={**random_tensors(), "lm_head.weight": torch.ones(61, 128)}),
        ("lm_head.weight differs from wte.weight", "tie_word_embeddings"),
    ),
    "a head that is missing": (hf_with(fields(tie_word_embeddings=False)), ("missing: lm_head.weight (61, 128)",)),
    "no weights": (hf_with(lambda d: (d / W).unlink()), ("no weights",)),
    "weights of Flax alone": (
        hf_with(lambda d: (d / W).rename(d / "flax_model.msgpack")),
        ("flax_model.msgpack", "Flax"),
    ),
    "two unknown files of weights": (
        hf_with(lambda d: shutil.copy(d / W, d / "b.safetensors"), lambda d: (d / W).rename(d / "a.safetensors")),
        ("2 other files of weights", "a.safetensors"),
    ),
    "empty weights": (hf_with(lambda d: (d / W).write_bytes(b"")), ("holds 0 bytes",)),
    "truncated weights": (hf_with(lambda d: cut(d / W, 5000)), ("cut short",)),
    "a pickle as .safetensors": (hf_with(lambda d: torch.save({}, d / W)), ("is a pickle",)),
    "a Git LFS pointer": (hf_with(lambda d: (d / W).write_bytes(b"version https://git-lfs.github.com")), ("Git LFS",)),
    "code in .bin": (hf_with(lambda d: torch.save({"a": Payload()}, d / B), form="bin"), ("holds code", "nothing")),
    "code in an old .bin": (hf_with(legacy_pickle, form="bin"), ("holds code", "nothing of it was run")),
    ".bin truncated": (hf_with(lambda d: cut(d / B, 9000), form="bin"), (B, "not weights that torch.save wrote")),
    ".bin of noise": (hf_with(lambda d: (d / B).write_bytes(b"PK\x03\x04" + bytes(99)), form="bin"), (B,)),
    ".bin of a list": (hf_with(lambda d: torch.save([1], d / B), form="bin"), ("holds a list",)),
    ".bin of numbers": (hf_with(lambda d: torch.save({"a": 1}, d / B), form="bin"), ("'a' is a int",)),
    ".bin of a giant without memory": (
        hf_with(lambda d: torch.save({**random_tensors(), "ln_f.bias": torch.zeros(1).expand(128)}, d / B), form="bin"),
        ("not plain", "ln_f.bias"),
    ),
    "an index that names a missing file": (
        hf_with(shard_of("model-9.safetensors"), form="safetensors-sharded"),
        ("'model-9.safetensors', which is not there",),
    ),
    "an index with a path outside": (
        hf_with(shard_of("../secret.safetensors"), form="safetensors-sharded"),
        ("'../secret.safetensors', a path outside",),
    ),
    "an index with an absolute path": (
        hf_with(shard_of("/etc/passwd"), form="safetensors-sharded"),
        ("'/etc/passwd', a path outside",),
    ),
    "an index with ..": (hf_with(shard_of(".."), form="safetensors-sharded"), ("'..', a path outside",)),
    "an index that names a number": (hf_with(shard_of(7), form="safetensors-sharded"), ("no weight_map",)),
    "an index that is a list": (
        hf_with(lambda d: (d / f"{W}.index.json").write_text("[]"), form="safetensors-sharded"),
        ("not a JSON object",),
    ),
    "an index that contradicts its shards": (
        hf_with(shard_of("model-00002-of-00002.safetensors"), form="safetensors-sharded"),
        ("holds 'wte.weight'", "places in 'model-00002-of-00002.safetensors'"),
    ),
    "a lone file of something else": (lone({"conv.weight": torch.zeros(3, 3)}), ("'s", "not GPT-2's")),
    "a lone file of odd width": (
        lone(random_tensors(CONFIG.with_changes(emb_dim=42, n_heads=3))),
        ("emb_dim 42 does not tell the number of heads",),
    ),
    "no index": (openai_with(lambda d: (d / INDEX).unlink()), (f"no {INDEX}",)),
    "no data shard": (openai_with(lambda d: (d / DATA).unlink()), (DATA, "cannot be read")),
    "an empty data shard": (openai_with(lambda d: (d / DATA).write_bytes(b"")), (DATA, "empty")),
    "no hparams.json": (openai_with(lambda d: (d / "hparams.json").unlink()), ("hparams.json",)),
    "hparams.json without heads": (
        openai_with(lambda d: change(d / "hparams.json", lambda h: {**h, "n_head": None})),
        ("n_head is None",),
    ),
    "hparams.json that contradicts": (
        openai_with(lambda d: change(d / "hparams.json", lambda h: {**h, "n_ctx": 21})),
        ("wpe.weight is (20, 128) and should be (21, 128)",),
    ),
    "a flipped bit in the index": (openai_with(lambda d: flip(d / INDEX, 40)), (INDEX, "CRC-32C")),
    "a flipped bit in the data": (openai_with(lambda d: flip(d / DATA, 77_777)), (DATA, "CRC-32C", "model/")),
    "a truncated index": (openai_with(lambda d: cut(d / INDEX, 300)), (INDEX, "cut short")),
    "truncated data": (openai_with(lambda d: cut(d / DATA, 300_000)), (DATA, "cut short")),
    "names missing": (openai_with(tensors=without("h.0.ln_1.weight")), ("missing: h.0.ln_1.weight (128,)",)),
    "names of something else": (
        openai_with(lambda d: write_bundle(d / "model.ckpt", {"model/Adam": torch.zeros(2)}, 99, 1)),
        ("too few for n_layers",),
    ),
    "NaN in TensorFlow's": (openai_with(tensors=with_value("wte.weight", float("nan"))), ("NaN", "wte.weight")),
    "two TensorFlow checkpoints": (
        openai_with(
            lambda d: (d / INDEX).rename(d / "a.index"),
            lambda d: shutil.copy(d / "a.index", d / "b.index"),
        ),
        ("2 checkpoints: a.index, b.index",),
    ),
    "nanoGPT without model_args": (nanogpt_with(model_args=None), ("no model_args",)),
    "nanoGPT with a size missing": (nanogpt_with(model_args={"n_layer": 2}), ("lacks vocab_size, block_size",)),
    "nanoGPT with text for a size": (
        nanogpt_with(
            model_args={"n_layer": "2", "n_head": 2, "n_embd": 128, "block_size": 20, "bias": True, "vocab_size": 61}
        ),
        ("n_layer '2', not a number",),
    ),
    "nanoGPT with a model that is none": (nanogpt_with(model={"wte": 5}), ("'wte' is a int",)),
    "nanoGPT without tensors": (nanogpt_with(model={}), ("too few",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, gptcli: Any, tmp_path: Path) -> None:
    make, words = BAD[name]
    made = make(tmp_path / "model")
    source = made if isinstance(made, Path) else tmp_path / "model"
    before = sorted(tmp_path.rglob("*"))
    gptcli("load-gpt2", "--from", source).assert_user_error(*words)
    assert sorted(tmp_path.rglob("*")) == before  # no directory left behind, and no payload ran
    with pytest.raises(GptcliError):
        formats.read(source)


@pytest.mark.parametrize("file", [INDEX, DATA])
def test_tensorflow_truncated_anywhere(tmp_path: Path, file: str) -> None:
    write_openai(tmp_path)
    whole = (tmp_path / file).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 15)):
        (tmp_path / file).write_bytes(whole[:length])
        with pytest.raises(GptcliError):
            formats.read(tmp_path)


def test_every_bit_of_a_tensorflow_index_counts(tmp_path: Path) -> None:
    """Every flipped bit is found, but for those at the end that point to the meta index, which nobody uses."""
    write_openai(tmp_path)
    index = tmp_path / INDEX
    whole = index.read_bytes()
    (good,) = [formats.read(tmp_path).tensors]
    for byte in range(0, len(whole), 23):
        index.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        try:
            tensors = formats.read(tmp_path).tensors
        except GptcliError:
            continue
        assert byte >= len(whole) - 48 - 13 - 100
        assert all(torch.equal(tensors[name], good[name]) for name in good)


SOURCES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "safetensors": (hf_with(), [W, CFG]),
    "shards": (hf_with(form="safetensors-sharded"), [f"{W}.index.json", "model-00001-of-00002.safetensors"]),
    "bin": (hf_with(form="bin"), [B]),
    "tensorflow": (openai_with(), [INDEX, DATA, "hparams.json"]),
    "nanogpt": (nanogpt_with(), ["ckpt.pt"]),
}
mutations = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "insert", "delete"]),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize(("source", "file"), [(name, file) for name, (_, files) in SOURCES.items() for file in files])
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations, near_the_start=st.booleans())
def test_mutated_files_give_weights_or_our_error(
    source: str, file: str, tmp_path: Path, changes: list[tuple[float, str, bytes]], near_the_start: bool
) -> None:
    model = tmp_path / "model"
    if not model.exists():
        SOURCES[source][0](model)
        shutil.copy(model / file, tmp_path / "good")
    content = bytearray((tmp_path / "good").read_bytes())
    for share, kind, new in changes:
        place = int(share * (min(len(content), 4000) if near_the_start else len(content)))
        content[place : place + (0 if kind == "insert" else len(new))] = b"" if kind == "delete" else new
    (model / file).write_bytes(content)
    try:
        tensors = formats.read(model).tensors
    except GptcliError as error:
        message = error.message + error.hint
        assert "\n" not in message
    else:
        assert len(tensors) == 28


def test_what_it_says(gptcli: Any, tmp_path: Path) -> None:
    result = gptcli("load-gpt2", "--from", TF_TINY)
    assert result.code == 0
    assert result.out.strip() == (
        f"{Path('checkpoints') / 'tf-gpt2-tiny'}: 367,008 parameters from OpenAI's TensorFlow files, float32, "
        "no tokenizer, 1.48 MB"
    )
    assert "512 tokens are not GPT-2's" in result.err
    expected = np.load(TF_TINY / "expected.npz")
    model = checkpoint.load(Path("checkpoints/tf-gpt2-tiny")).model()
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["input_ids"])[None])[0].double().numpy()
    assert np.abs(logits - expected["logits"]).max() < 1e-4


def test_text_is_refused_where_there_is_no_tokenizer(gptcli: Any) -> None:
    gptcli("load-gpt2", "--from", TF_TINY)
    gptcli("generate", "Hello", "-c", "checkpoints/tf-gpt2-tiny").assert_user_error("has no tokenizer", "vocab.json")


def test_where_it_goes(gptcli: Any, tmp_path: Path) -> None:
    write_hf(tmp_path / "my-gpt2")
    write_nanogpt(tmp_path / "run-7" / "ckpt.pt")
    assert gptcli("load-gpt2", "--from", "my-gpt2").code == 0
    assert gptcli("load-gpt2", "--from", tmp_path / "run-7" / "ckpt.pt").code == 0
    assert gptcli("load-gpt2", "--from", "my-gpt2", "--out", "deep/down", "--dtype", "bfloat16").code == 0
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["my-gpt2", "run-7"]
    assert checkpoint.load(Path("deep/down")).tensors["wte.weight"].dtype == torch.bfloat16
    gptcli("load-gpt2", "--from", "my-gpt2").assert_user_error("exists already", "--force")
    assert gptcli("load-gpt2", "--from", "my-gpt2", "--force").code == 0


def test_options_that_do_not_go_together(gptcli: Any, tmp_path: Path) -> None:
    gptcli("load-gpt2", "--from", "x", "--size", "xl").assert_user_error("--size and --from", "one")
    gptcli("load-gpt2", "--from", "x", "--revision", "main").assert_user_error("--revision", "--from")
    gptcli("load-gpt2", "--size", "medum").assert_user_error("'medum'", "Did you mean medium?")
    gptcli("load-gpt2", "--from", "x", "--dtype", "int8").assert_user_error("'int8'", "float32")


def test_an_output_that_cannot_be_written(gptcli: Any, tmp_path: Path) -> None:
    write_hf(tmp_path / "model")
    (tmp_path / "a-file").write_text("")
    gptcli("load-gpt2", "--from", "model", "--out", "a-file/x").assert_user_error("a-file")


def test_a_full_disk_leaves_nothing(gptcli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 5, 5))  # type: ignore[attr-defined]
    gptcli("load-gpt2", "--from", "model").assert_user_error("the disk has 5 left")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_names_of_a_report_are_printable() -> None:
    tensors = {**random_tensors(), "\x1b[31m\ud800": torch.zeros(1)}
    with pytest.raises(GptcliError) as caught:
        checkpoint.check_tensors(tensors, CONFIG, "here")
    assert caught.value.message.isprintable()
