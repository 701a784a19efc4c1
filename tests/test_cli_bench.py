"""gptcli bench on a model too small to be worth timing: the figures are consistent, and mistakes are named."""

from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

QUICK = ("--repetitions", 2, "--tokens", 8, "--prompt", 16, "--batch", 3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoints" / "run", context_length=32)


def test_every_work_is_measured_beside_its_limit(gptcli: Any, run: Path) -> None:
    pytest.importorskip("numba")
    result = gptcli("bench", run, *QUICK, "--json")
    assert result.code == 0, result.err
    rows = result.json["rows"]
    measured = {(row["work"].split()[0].strip(","), row["subject"]) for row in rows}
    engines = {"cpu float32", "cpu int8", "cpu int4"}
    expected = {(work, engine) for work in ("load", "prefill", "decode") for engine in engines}
    assert measured == expected | {(work, "torch float32") for work in ("prefill", "decode", "train")}
    for row in rows:
        assert 0 < min(row["low"], row["high"]) <= row["rate"] <= max(row["low"], row["high"])
        assert row["repetitions"] == 2
        if row["unit"] == "tokens/s":
            assert row["fraction"] > 0
            assert row["limit"] > 0


def test_single_works_in_a_table(gptcli: Any, run: Path) -> None:
    pytest.importorskip("numba")
    result = gptcli("bench", run, *QUICK, "--work", "decode")
    assert result.code == 0, result.err
    assert "decode 8" in result.out
    assert "cpu int4" in result.out
    assert "of the limit" in result.out
    assert "prefill" not in result.out


def test_transformers_is_measured_beside_it(gptcli: Any, run: Path) -> None:
    pytest.importorskip("transformers")
    rows = gptcli("bench", run, *QUICK, "--work", "train", "--against", "transformers", "--json").json["rows"]
    assert [row["subject"] for row in rows] == ["torch float32", "transformers"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--repetitions", 0), ("--repetitions is 0",)),
        (("--work", "decod"), ("'decod'", "decode")),
        (("--against", "llama"), ("'llama'", "transformers")),
        (("--size", "smal"), ("'smal'", "small")),
        (("nowhere",), ("nowhere",)),
        (("run", "--size", "small"), ("two models",)),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(gptcli: Any, run: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    gptcli("bench", *options).assert_user_error(*words)


def test_a_packed_checkpoint_is_refused(gptcli: Any, run: Path) -> None:
    assert gptcli("quantize", run).code == 0
    gptcli("bench", f"{run}-int8").assert_user_error("packed already")
