"""gptcli generate on real two-layer checkpoints: what reaches stdout, and every mistake a user can make."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_checkpoint

from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.inference.open import obstacle
from gptcli.inference.streaming import StopTexts

PROMPT = "Every effort moves you"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoints" / "run", context_length=32)


def test_the_text_goes_to_stdout_and_nothing_else_does(gptcli: Any, run: Path) -> None:
    options = ("--temperature", 0.5, "--top-k", 3, "--seed", 1, "-n", 20, "--ignore-eot")
    result = gptcli("generate", PROMPT, *options)
    assert result.code == 0, result.err
    assert result.out.startswith(PROMPT)
    assert len(result.out) > len(PROMPT) + 1
    assert result.out.endswith("\n")
    lines = result.err.splitlines(keepends=True)
    if obstacle(GPTConfig()) is not None:
        assert lines.pop(0).startswith("The torch engine is used: ")
    assert lines == [f"Using {Path('checkpoints/run')}, the newest checkpoint.\n"]
    whole = gptcli("generate", PROMPT, *options, "--no-stream", "-q")
    assert (whole.out, whole.err) == (result.out, "")


def test_it_streams(run: Path, tmp_path: Path) -> None:
    """The first characters are there while the rest is still being made."""
    command = [sys.executable, "-u", "-m", "gptcli", "generate", PROMPT, "-n", "2000", "-q", "--ignore-eot"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    start = process.stdout.read(len(PROMPT) + 5)
    assert process.poll() is None
    rest = process.stdout.read()
    assert process.wait() == 0
    assert start.startswith(PROMPT.encode())
    assert len(rest) > 1000


def test_a_seed_repeats_itself_and_samples_differ(gptcli: Any, run: Path) -> None:
    first, second, other = (gptcli("generate", PROMPT, "--seed", seed, "-n", 30).out for seed in (1, 1, 2))
    assert first == second != other
    record = gptcli("generate", PROMPT, "--seed", 1, "-n", 30, "--num-samples", 3, "--json").json
    texts = [sample["text"] for sample in record["samples"]]
    assert len(set(texts)) == 3
    assert PROMPT + texts[0] + "\n" == first
    assert [sample["seed"] for sample in record["samples"]] == [1, 2, 3]
    plain = gptcli("generate", PROMPT, "--seed", 1, "-n", 30, "--num-samples", 3)
    assert plain.out == "\n".join(f"{PROMPT}{text}\n" for text in texts)


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize("options", [(), ("--draft", "ngram"), ("--contrast-layer", 1)], ids=str)
def test_samples_read_their_prompt_once(
    gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch, engine: str, options: tuple[Any, ...]
) -> None:
    """What a sample is alone it is among others, though the prompt was read for the first one."""
    if engine == "cpu":
        pytest.importorskip("numba", exc_type=ImportError)
    arguments = ("generate", PROMPT, "-n", 8, "--engine", engine, *options, "--json", "--ignore-eot")
    alone = [gptcli(*arguments, "--seed", seed).json["samples"][0] for seed in range(3)]
    room, name = {
        "cpu": ("gptcli.inference.cpu_engine", "CpuEngine"),
        "torch": ("gptcli.inference.torch_engine", "TorchEngine"),
    }[engine]
    kind = getattr(importlib.import_module(room), name)
    forward, starts = kind.forward, []

    def counted(self: Any, slots: Any, ids: Any, positions: Any, **how: Any) -> Any:
        starts.extend(positions)
        return forward(self, slots, ids, positions, **how)

    monkeypatch.setattr(kind, "forward", counted)
    record = gptcli(*arguments, "--seed", 0, "--num-samples", 3).json
    assert record["samples"] == alone
    assert starts.count(0) == 1
    assert len(starts) > 3


def test_json_says_what_was_made_of_what(gptcli: Any, run: Path) -> None:
    record = gptcli("generate", "ab", "-n", 4, "--json", "--temperature", 0, "--ignore-eot").json
    assert record["prompt"] == "ab"
    assert record["prompt_ids"] == [97, 98]
    (sample,) = record["samples"]
    assert len(sample["ids"]) == 4
    assert sample["finish_reason"] == "length"


def test_steps_show_the_candidates_and_the_one_drawn(gptcli: Any, run: Path) -> None:
    table = gptcli("generate", "ab", "-n", 3, "--steps", "--seed", 4)
    assert table.code == 0, table.err
    assert "likeliest" in table.out
    assert len(re.findall(r"\d+\.\d%", table.out)) == 3 * 6
    record = gptcli("generate", "ab", "-n", 3, "--steps", "--seed", 4, "--json").json
    steps = record["samples"][0]["steps"]
    assert [step["id"] for step in steps] == record["samples"][0]["ids"]
    for step in steps:
        shares = [candidate["probability"] for candidate in step["candidates"]]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == 5


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_the_prompt_may_come_from_a_file_or_a_pipe(gptcli: Any, run: Path, tmp_path: Path, source: str) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("naïve café", encoding="utf-8")
    expected = gptcli("generate", "naïve café", "--seed", 1, "-n", 8).out
    if source == "file":
        assert gptcli("generate", "--file", prompt, "--seed", 1, "-n", 8).out == expected
        return
    command = [sys.executable, "-m", "gptcli", "generate", "-", "--seed", "1", "-n", "8"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, input=prompt.read_bytes(), capture_output=True, cwd=tmp_path, env=environment)
    assert result.stdout.decode().splitlines() == expected.splitlines()


def test_the_newest_checkpoint_speaks_unless_another_is_named(gptcli: Any, run: Path, tmp_path: Path) -> None:
    older = tiny_checkpoint(tmp_path / "checkpoints" / "older", seed=9)
    os.utime(older / checkpoint.WEIGHTS, (1, 1))
    assert "run" in gptcli("generate", "a", "-n", 1).err
    by_name, by_path = (gptcli("generate", "a", "-n", 8, "--seed", 0, "-c", name).out for name in ("older", older))
    assert by_name == by_path


def test_stop_ends_before_a_text_that_straddles_tokens(gptcli: Any, run: Path) -> None:
    free = gptcli("generate", "ab", "-n", 60, "--seed", 5, "--json", "--ignore-eot").json["samples"][0]["text"]
    stop = free[10:13]
    record = gptcli("generate", "ab", "-n", 60, "--seed", 5, "--json", "--ignore-eot", "--stop", stop, "--stop", "\0\0")
    (sample,) = record.json["samples"]
    assert sample["text"] == free[: free.index(stop)]
    assert sample["finish_reason"] == "stop"
    assert (
        gptcli("generate", "ab", "-n", 60, "--seed", 5, "--ignore-eot", "--stop", stop).out == f"ab{sample['text']}\n"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stop_texts_equal_cutting_the_whole_text(size: int) -> None:
    text = "aabaabaaabbabab. The end. aab"
    for stops in ([], ["aaab"], ["end", "The"], ["abab", "babab"], ["zzz"], ["aab. "]):
        filter_ = StopTexts(stops)
        out = ""
        for start in range(0, len(text), size):
            out += filter_.push(text[start : start + size])
            if filter_.found:
                break
        else:
            out += filter_.flush()
        ends = [text.index(stop) for stop in stops if stop in text]
        assert out == text[: min(ends, default=len(text))], (stops, size)


def test_a_cut_prompt_gets_one_line_and_an_uncut_one_none(gptcli: Any, run: Path) -> None:
    result = gptcli("generate", "x" * 40, "-n", 3, "-q")
    assert result.err == "The prompt has 40 tokens and the model's context holds 32: the first 8 are dropped.\n"
    assert gptcli("generate", "x" * 32, "-n", 3, "-q").err == ""


def test_min_new_tokens_holds_the_end_of_text_back(gptcli: Any, run: Path) -> None:
    loaded = checkpoint.load(run)
    tensors = {name: t.clone() for name, t in loaded.tensors.items()}
    model = loaded.model()
    model.load_state_dict(tensors)
    with torch.no_grad():  # a model that wants to end at once: every final state has a positive 0th component
        model.ln_f.bias.zero_()
        model.ln_f.weight.zero_()
        model.ln_f.bias[0] = 5.0
        model.wte.weight[:, 0] = 0.0
        model.wte.weight[256, 0] = 5.0
    checkpoint.create(Path("checkpoints/ends"), model, loaded.tokenizer, {})
    ended = gptcli("generate", "a", "-c", "ends", "--json", "-n", 9).json["samples"][0]
    assert (ended["ids"], ended["finish_reason"]) == ([], "end of text")
    held = gptcli("generate", "a", "-c", "ends", "--json", "-n", 9, "--min-new-tokens", 4).json["samples"][0]
    assert len(held["ids"]) == 4
    assert held["finish_reason"] == "end of text"
    ignored = gptcli("generate", "a", "-c", "ends", "--json", "-n", 9, "--ignore-eot").json["samples"][0]
    assert ignored["ids"] == [256] * 9


# Mistakes: two lines, exit code 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--top-k", 0), ("--top-k is 0",)),
        (("--temperature", -1), ("--temperature is -1",)),
        (("--temperature", "nan"), ("--temperature is nan",)),
        (("--temperature", "inf"), ("--temperature is inf",)),
        (("--top-p", 0), ("--top-p is 0",)),
        (("--top-p", 1.5), ("--top-p is 1.5",)),
        (("--top-p", "nan"), ("--top-p is nan",)),
        (("--min-p", -0.1), ("--min-p is -0.1",)),
        (("--repetition-penalty", 0), ("--repetition-penalty is 0",)),
        (("--max-new-tokens", 0), ("--max-new-tokens is 0",)),
        (("--min-new-tokens", 500), ("--min-new-tokens 500", "--max-new-tokens 100")),
        (("--num-samples", 0), ("--num-samples is 0",)),
        (("--overflow", "slid"), ("'slid'", "slide")),
        (("--overflow", "error"), ("context of 32",)),
        (("--device", "gpu"), ("'gpu'",)),
        (("--dtype", "float8"), ("'float8'",)),
        (("--checkpoint", "nowhere"), ("nowhere",)),
        (("--file", "x.txt"), ("--file",)),
    ],
)
def test_a_wrong_option_is_named(gptcli: Any, run: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    gptcli("generate", PROMPT, *options).assert_user_error(*words)


def test_no_checkpoint_yet(gptcli: Any) -> None:
    gptcli("generate", PROMPT).assert_user_error("no checkpoint", "gptcli train")


def test_an_empty_prompt(gptcli: Any, run: Path) -> None:
    gptcli("generate", "", "-c", run).assert_user_error("empty")


def test_a_character_that_the_model_has_never_seen(gptcli: Any, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "checkpoints" / "char", kind="char", text="abc abc")
    gptcli("generate", "abz").assert_user_error("'z'", "U+007A", "offset 2")


def _break(run: Path, what: str) -> None:
    weights, config = run / "model.safetensors", run / "config.json"
    data = weights.read_bytes()
    settings = json.loads(config.read_text(encoding="utf-8"))
    if what == "no config":
        config.unlink()
    elif what == "no weights":
        weights.unlink()
    elif what == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif what == "pickle":
        torch.save({"wte.weight": torch.zeros(2)}, weights)
    elif what == "NaN":
        weights.write_bytes(data[:-4] + b"\0\0\xc0\x7f")
    elif what == "config is no JSON":
        config.write_text("{", encoding="utf-8")
    elif what == "config of another model":
        settings["gptcli"]["config"]["emb_dim"] = 84
        config.write_text(json.dumps(settings), encoding="utf-8")
    elif what == "config of a deeper model":
        settings["gptcli"]["config"]["n_layers"] = 3
        config.write_text(json.dumps(settings), encoding="utf-8")
    elif what == "another tokenizer":
        settings["gptcli"]["tokenizer"]["fingerprint"] = "0" * 64
        config.write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no config", ("config.json",)),
        ("no weights", ("model.safetensors",)),
        ("truncated", ("model.safetensors",)),
        ("pickle", ("model.safetensors",)),
        ("NaN", ("NaN",)),
        ("config is no JSON", ("config.json",)),
        ("config of another model", ("wte.weight is (257, 42)", "(257, 84)", "23 more")),
        ("config of a deeper model", ("missing: h.2.ln_1.weight (42,)", "7 more")),
        ("another tokenizer", ("tokenizer",)),
    ],
)
def test_a_broken_checkpoint_is_named(gptcli: Any, run: Path, what: str, words: tuple[str, ...]) -> None:
    _break(run, what)
    gptcli("generate", PROMPT, "--checkpoint", run).assert_user_error(*words)


def test_an_empty_directory_is_no_checkpoint(gptcli: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    gptcli("generate", PROMPT, "--checkpoint", "empty").assert_user_error("is empty")


def test_ctrl_c_ends_with_130(gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptcli.inference.sequence.draw", interrupt)
    result = gptcli("generate", PROMPT)
    assert result.code == 130
    assert "Traceback" not in result.err
