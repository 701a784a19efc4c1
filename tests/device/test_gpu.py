"""What a real GPU says of itself, and what commands on it say: `make test-gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY

from gptcli.checkpoints import checkpoint
from gptcli.device import peak_flops, placement

pytestmark = pytest.mark.gpu


def test_auto_finds_the_gpu_its_name_and_its_precision() -> None:
    found = placement.choose()
    assert found.name == f"cuda:0, {torch.cuda.get_device_name(0)}"
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    expected = "bfloat16" if has_bfloat16 else "float16"
    assert placement.training_precision("auto", found.device).name == expected
    assert 0 < placement.available_memory(found.device) <= torch.cuda.get_device_properties(0).total_memory


def test_the_peak_is_of_this_gpu_or_measured() -> None:
    found = peak_flops.peak(torch.device("cuda"), torch.float16)
    assert found.flops > 0
    assert found.source == "measured" or torch.cuda.get_device_name(0) in found.source
    assert peak_flops.measured_rate(torch.device("cuda"), torch.float16, 1) > 0


def test_a_run_on_the_gpu_names_it_and_keeps_its_dtype(gptcli: Any, story: Path) -> None:
    precision = placement.training_precision("auto", torch.device("cuda")).name
    result = gptcli("train", story, *TINY, "--max-steps", 6, "--sample-every", 0, "--device", "cuda", "--out", "run")
    assert result.code == 0, result.err
    assert f"on cuda:0, {torch.cuda.get_device_name(0)} (asked for)" in result.err
    assert f"{precision} (this GPU has" in result.err
    assert checkpoint.load(Path("run")).training["recipe"]["dtype"] == precision


def test_generate_computes_in_the_gpus_own_precision_and_evaluate_in_float32(gptcli: Any, story: Path) -> None:
    precision = placement.training_precision("auto", torch.device("cuda")).name
    assert gptcli("train", story, *TINY, "--max-steps", 2, "--sample-every", 0, "--out", "run").code == 0
    words = ("generate", "the", "--checkpoint", "run", "-n", 5)
    assert f"engine torch (a GPU is present), {precision}, seed" in gptcli(*words, "-v").err
    assert gptcli(*words, "--draft", "ngram").code == 0
    assert "float32 on cuda" in gptcli("evaluate", story, "--checkpoint", "run").out


def test_bench_measures_what_train_does_beside_both_peaks(gptcli: Any) -> None:
    options = ("--size", "tiny", "--work", "train", "--rows", 2, "--length", 64, "--repetitions", 2, "--device", "cuda")
    result = gptcli("bench", *options, "--json")
    assert result.code == 0, result.err
    assert result.json["dtype"] == placement.training_precision("auto", torch.device("cuda")).name
    assert result.json["device_name"] == f"cuda:0, {torch.cuda.get_device_name(0)}"
    assert result.json["peaks"]["measured"]["flops"] > 0
    assert next(iter(result.json["training_flops"].values())).keys() == {"6N", "with attention"}
