"""generate with every engine, and gptcli quantize: the same text from all, and every mistake named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_checkpoint

from gptcli.checkpoints import checkpoint
from gptcli.config.compute import ComputeConfig
from gptcli.device import placement
from gptcli.inference.engine import Scorer
from gptcli.inference.open import EngineChoice, generation_dtype, open_scorer

PROMPT = "Every effort moves you"
CPU, TORCH = ("--engine", "cpu"), ("--engine", "torch")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoints" / "run", context_length=32)


def generated(gptcli: Any, *options: object) -> list[int]:
    result = gptcli("generate", PROMPT, "--json", "--ignore-eot", "-n", 40, "--seed", 5, *options)
    assert result.code == 0, result.err
    return result.json["samples"][0]["ids"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [(), ("-t", 0), ("-t", 1.3, "--top-k", 20, "--repetition-penalty", 1.2)], ids=str)
@pytest.mark.parametrize("overflow", ["slide", "crop"])
def test_both_engines_draw_the_same_tokens_past_the_context(
    gptcli: Any, run: Path, options: tuple[object, ...], overflow: str
) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    runs = [generated(gptcli, *engine, "--overflow", overflow, *options) for engine in (CPU, TORCH)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3 or "-t" in options


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_packed_in_memory_and_packed_on_disk_are_the_same_model_in_both_engines(
    gptcli: Any, run: Path, kind: str
) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    made = gptcli("quantize", run, "--bits", kind[-1])
    assert made.code == 0, made.err
    assert made.out.startswith(f"{run}-{kind}: ")
    packed = run.with_name(f"run-{kind}")
    runs = [
        generated(gptcli, "-c", checkpoint, "-t", 0, *engine, *options)
        for checkpoint, options in ((packed, ()), (run, ("--quantize", kind)))
        for engine in (CPU, TORCH)
    ]
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert generated(gptcli, "-c", packed, "-t", 0, "--quantize", kind) == runs[0]


@pytest.mark.parametrize(("bits", "times"), [(8, 3.8), (4, 6.2)])
def test_a_packed_checkpoint_is_a_quarter_or_a_sixth_of_the_size(
    gptcli: Any, tmp_path: Path, bits: int, times: float
) -> None:
    source = tiny_checkpoint(tmp_path / "wide", emb_dim=256, n_heads=4, n_layers=4)
    assert gptcli("quantize", source, "--bits", bits, "--out", "packed").code == 0
    old, new = ((path / "model.safetensors").stat().st_size for path in (source, tmp_path / "packed"))
    assert old / new > times
    loaded = checkpoint.load(tmp_path / "packed")
    original = checkpoint.load(source)
    for name, tensor in loaded.tensors.items():
        exact = name.startswith("wpe") or name.endswith("bias") or "ln_" in name
        spread = original.tensors[name].std()
        difference = (tensor - original.tensors[name]).abs().max()
        assert difference == 0 if exact else difference < spread / (20 if bits == 8 else 1)


def test_generating_on_the_cpu_needs_no_torch(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    penalties = "--repetition-penalty 1.2 --frequency-penalty 0.1 --presence-penalty 0.1 --no-repeat-ngram-size 3"
    options = f"{penalties} --top-k 9 --top-p 0.9 --min-p 0.01".split()
    code = (
        "import sys; from gptcli.cli import main; "
        f"plain = ['generate', 'a', '-c', {str(run)!r}, '-n', '3', '--engine', 'cpu']; "
        f"assert main(plain) == main([*plain, *{options}]) == 0; "
        "assert 'torch' not in sys.modules; assert 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "environment", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_FEATURES": "+avx2,+fma"}, {"NUMBA_ENABLE_AVX": "0"}]
)
def test_the_kernels_follow_the_processor_that_numba_compiles_for(environment: dict[str, str]) -> None:
    """Not the host's: LLVM ends the process where a kernel uses an instruction that the target lacks."""
    pytest.importorskip("numba", exc_type=ImportError)
    code = (
        "from gptcli.kernels.cpu import compile_cache, matmul, simd, target; import numpy as np; "
        "assert not simd.WIDE_REGISTERS and not target.INTEGER_PRODUCTS; "
        "assert matmul.TILE == 6 and compile_cache.DATA_TYPES[8] is np.int8"
    )
    root = Path(__file__).parents[2]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=clean | environment
    )
    assert done.returncode == 0, done.stderr


def test_verbose_says_which_engine_and_why(gptcli: Any, run: Path) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    assert "engine torch (asked for)" in gptcli("generate", "a", *TORCH, "-n", 2, "-v").err
    assert "engine cpu (" in gptcli("generate", "a", "--device", "cpu", "-n", 2, "-v").err
    err = gptcli("generate", "a", "--dtype", "bfloat16", "--device", "cpu", "-n", 2, "-v").err
    assert "engine torch (dtype bfloat16 is not float32)" in err


@pytest.mark.parametrize(("has_bfloat16", "on_the_gpu"), [(True, "bfloat16"), (False, "float16")])
def test_auto_generates_in_half_precision_on_a_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, on_the_gpu: str
) -> None:
    torch_engine, cpu_engine = EngineChoice("torch", "a GPU is present"), EngineChoice("cpu", "no GPU found")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bfloat16)
    for device in ("auto", "cuda", "cuda:0"):
        assert generation_dtype("auto", torch_engine, device, drafted=False) == on_the_gpu
    assert generation_dtype("auto", torch_engine, "cuda", drafted=True) == "float32"
    assert generation_dtype("auto", torch_engine, "cpu", drafted=False) == "float32"
    assert generation_dtype("auto", cpu_engine, "auto", drafted=False) == "float32"
    assert generation_dtype("float32", torch_engine, "cuda", drafted=False) == "float32"
    assert placement.place(ComputeConfig("cuda")).dtype == torch.float32  # evaluate and classify


def test_the_model_is_in_the_dtype_that_verbose_names(gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def observed(*arguments: Any, **settings: Any) -> Scorer:
        scorer = open_scorer(*arguments, **settings)
        opened.append(scorer.engine.model.wte.weight.dtype)
        return scorer

    monkeypatch.setattr("gptcli.inference.open.open_scorer", observed)
    monkeypatch.setattr("gptcli.inference.open.generation_dtype", lambda *_: "bfloat16")
    result = gptcli("generate", "a", *TORCH, "--device", "cpu", "-n", 2, "-v")
    assert result.code == 0, result.err
    assert "engine torch (asked for), bfloat16, seed" in result.err
    assert opened == [torch.bfloat16]


def test_without_numba_torch_serves_and_verbose_says_so(
    gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    with_numba = generated(gptcli, "-t", 0)
    monkeypatch.setattr("gptcli.inference.open.numba_reason", lambda: "numba is not installed")
    monkeypatch.setattr("gptcli.kernels.cpu.compile_cache.is_kept", lambda what: False)
    assert generated(gptcli, "-t", 0) == with_numba
    assert "engine torch (numba is not installed)" in gptcli("generate", "a", "-n", 2, "-v").err
    gptcli("generate", "a", *CPU).assert_user_error("numba is not installed", "--engine torch")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "gpu"), ("'gpu'", "cpu")),
        (("--engine", "cpu", "--device", "cuda"), ("--device cuda is no CPU",)),
        (("--engine", "cpu", "--dtype", "bfloat16"), ("bfloat16 is not float32",)),
        (("--quantize", "int5"), ("'int5'", "int4")),
        (("--draft", "ngram", *TORCH, "--device", "cpu", "--dtype", "bfloat16"), ("A draft", "--dtype to float32")),
        (("--threads", 0), ("--threads is 0",)),
        (("--threads", 0, "--engine", "torch"), ("--threads is 0",)),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(gptcli: Any, run: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    gptcli("generate", PROMPT, *options).assert_user_error(*words)


def test_quantize_names_its_mistakes(gptcli: Any, run: Path) -> None:
    gptcli("quantize", run, "--bits", 5).assert_user_error("--bits is 5")
    gptcli("quantize", "nowhere").assert_user_error("nowhere")
    assert gptcli("quantize", run).code == 0
    gptcli("quantize", run).assert_user_error("run-int8 exists already", "--force")
    assert gptcli("quantize", run, "--force").code == 0
    gptcli("quantize", f"{run}-int8", "--out", "other").assert_user_error("packed in 8 bits already")
    gptcli("generate", "a", "-c", f"{run}-int8", "--quantize", "int4").assert_user_error("packed in 8 bits already")


@pytest.mark.parametrize("engine", [CPU, TORCH], ids=["cpu", "torch"])
def test_a_broken_file_is_named_by_both_engines(gptcli: Any, run: Path, engine: tuple[str, str]) -> None:
    if engine == CPU:
        pytest.importorskip("numba", exc_type=ImportError)
    from gptcli.checkpoints import safetensors_file

    tensors = {
        name: tensor.clone() for name, tensor in safetensors_file.read_tensors(run / "model.safetensors").items()
    }

    def broken(**changes: torch.Tensor | None) -> Any:
        changed = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
        safetensors_file.write_tensors(run / "model.safetensors", changed)
        return gptcli("generate", "a", *engine)

    broken(**{"ln_f.bias": None}).assert_user_error("missing: ln_f.bias (42,)")
    broken(**{"extra": torch.zeros(2)}).assert_user_error("not GPT-2's: extra (2,)")
    broken(**{"ln_f.bias": torch.zeros(3)}).assert_user_error("ln_f.bias is (3,) and should be (42,)")
    broken(**{"wte.weight": torch.full_like(tensors["wte.weight"], torch.nan)}).assert_user_error("wte.weight", "NaN")
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["gptcli"]["bits"] = 5
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    broken().assert_user_error("bits is 5")


@pytest.mark.parametrize("engine", [CPU, TORCH], ids=["cpu", "torch"])
def test_a_draft_changes_no_text_and_says_what_it_brought(
    gptcli: Any, run: Path, tmp_path: Path, engine: tuple[str, str]
) -> None:
    if engine == CPU:
        pytest.importorskip("numba", exc_type=ImportError)
    tiny_checkpoint(tmp_path / "checkpoints" / "draft", context_length=20, n_layers=1)
    sampled = ("-t", 0.7, "--top-k", 9, "--seed", 4)
    for draft in ("ngram", "draft", "int8", "int4", "none"):
        for how in (("-t", 0), sampled):
            drafted = generated(gptcli, "-c", run, *how, "--draft", draft, *engine)
            assert drafted == generated(gptcli, "-c", run, *how, *engine)
    for draft in ("ngram", "draft", "int8", "int4"):
        err = gptcli("generate", "abab", "-c", run, "--draft", draft, *engine, "--ignore-eot", "-t", 0).err
        assert "proposed tokens accepted" in err
        assert "tokens for each forward pass of the model" in err
        assert "speed of this run's own steps" in err or draft != "ngram"
    err = gptcli("generate", "abab", "-c", run, "--draft", "int8", *engine, "--verbose").err
    assert "The draft in int8 takes 0 MB, packed in" in err


def test_a_long_text_of_a_large_float32_model_on_the_cpu_is_drafted_without_asking(
    gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", exc_type=ImportError)

    def drafts(*options: object) -> bool:
        result = gptcli("generate", "abab", "-c", run, "--device", "cpu", "--ignore-eot", "-v", *options)
        assert result.code == 0, result.err
        assert ("proposed tokens accepted" in result.err) == ("The draft in int8" in result.err)
        return "The draft in int8" in result.err

    assert not drafts("-n", 48)  # a tiny model
    monkeypatch.setattr("gptcli.inference.drafting.BEYOND_CACHES", 0)
    assert drafts("-n", 48)
    assert drafts("-n", 24, "--num-samples", 2)
    assert not drafts("-n", 47)
    assert not drafts("-n", 48, "--draft", "none")
    assert not drafts("-n", 48, "--quantize", "int8")
    assert not drafts("-n", 48, "--engine", "torch")
    assert "Draft" not in gptcli("generate", "abab", "-c", run, "--device", "cpu", "-n", 48).err
    alike = ("-n", 60, "--seed", 2, "--device", "cpu")
    assert generated(gptcli, *alike) == generated(gptcli, *alike, "--draft", "none")
    with monkeypatch.context() as patch:
        patch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 0}))
        assert not drafts("-n", 48)
    monkeypatch.setattr("gptcli.kernels.cpu.compile_cache.are_kept", lambda: False)
    assert not drafts("-n", 48)


def test_a_draft_in_fewer_bits_is_for_float32_weights(gptcli: Any, run: Path, tmp_path: Path) -> None:
    assert gptcli("quantize", run, "--bits", 8).code == 0
    for options in (("-c", f"{run}-int8"), ("-c", run, "--quantize", "int8")):
        for draft in ("int8", "int4"):
            refused = gptcli("generate", "abab", *options, "--draft", draft)
            refused.assert_user_error(f"--draft {draft}", "in int8", "--draft ngram")
    gptcli("generate", "abab", "-c", run, "--draft", "int5").assert_user_error(
        "no checkpoint int5", "int8, int4, ngram"
    )
    tiny_checkpoint(tmp_path / "int8", "char", "abc", context_length=32)  # the words win; this is how to say the place
    assert gptcli("generate", "abab", "-c", run, "--draft", "int8", "-n", 4).code == 0
    gptcli("generate", "abab", "-c", run, "--draft", "./int8").assert_user_error("--draft ./int8", "tokenizer")


def test_compile_falls_back_with_one_line(gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        def call(*_: object) -> Any:
            raise RuntimeError("no compiler\nat all")

        return call

    plain = generated(gptcli, "-t", 0, *TORCH)
    monkeypatch.setattr(torch, "compile", broken)
    result = gptcli("generate", PROMPT, "--json", "--ignore-eot", "-n", 40, "--seed", 5, "-t", 0, "--compile")
    assert result.json["samples"][0]["ids"] == plain
    assert result.err.count("torch.compile cannot work here (no compiler)") == 1
    assert "at all" not in result.err
    pytest.importorskip("numba", exc_type=ImportError)
    gptcli("generate", "a", "--compile", *CPU).assert_user_error("--compile is torch's")


def test_a_draft_with_another_tokenizer_is_refused(gptcli: Any, run: Path, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "checkpoints" / "letters", "char", "abc", context_length=32)
    gptcli("generate", "abc", "-c", run, "--draft", "letters").assert_user_error("--draft letters", "ngram")
    gptcli("generate", "abc", "-c", run, "--draft", "nowhere").assert_user_error("nowhere")


def test_the_layer_contrast_is_the_same_in_both_engines(gptcli: Any, run: Path) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    runs = [generated(gptcli, "-t", 0, "--contrast-layer", 1, *engine) for engine in (CPU, TORCH)]
    assert runs[0] == runs[1] != generated(gptcli, "-t", 0)
    gptcli("generate", "a", "--contrast-layer", 2).assert_user_error("--contrast-layer is 2", "from 1 to 1")
    gptcli("generate", "a", "--contrast-layer", 0).assert_user_error("--contrast-layer is 0")
