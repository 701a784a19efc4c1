"""gptcli train on real text: files, what they say, and every mistake a user can make."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TEXT, TINY

from gptcli.checkpoints import checkpoint, safetensors_file
from gptcli.config.recipe import RecipeConfig
from gptcli.training.run_plan import make_plan


def digest(path: Path) -> str:
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def test_a_text_becomes_a_checkpoint(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *TINY, "--epochs", 3)
    assert result.code == 0, result.err
    run = Path("checkpoints/story")
    assert result.out == f"{run}\n"
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "model.safetensors", "metrics.jsonl", "loss.png"} <= names
    assert not [name for name in names if "partial" in name]
    rows = checkpoint.read_metrics(run)
    fields = "step epoch tokens_seen train_loss val_loss learning_rate tokens_per_second seconds "
    fields += "grad_norm memory skipped mfu"
    assert list(rows[0]) == fields.split()
    assert [row["step"] for row in rows] == [0, 5, 10, 15, 20, 23]  # 35 windows, 4 at once: 8 steps an epoch
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["tokens_seen"] == 24 * 4 * 16
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "Ep 1 (Step 000000): Train loss " in result.err
    assert "612" not in result.out
    assert "624 characters, 624 tokens (char, vocabulary 16): 561 to train on, 63 to validate." in result.err
    assert "gptcli generate the --checkpoint" in result.err


def test_the_same_seed_gives_the_same_weights_and_another_one_others(gptcli: Any, story: Path) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert gptcli("train", story, *TINY, "--epochs", 1, "--seed", seed, "--out", name, "-q").code == 0
        runs.append(digest(Path(name)))
    assert runs[0] == runs[1] != runs[2]


def test_evaluating_and_sampling_change_nothing(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *TINY, "--epochs", 2, "--out", "a").code == 0
    assert gptcli("train", story, *TINY, "--epochs", 2, "--out", "b", "--eval-every", 3, "--sample-every", 0).code == 0
    assert digest(Path("a")) == digest(Path("b"))


def test_the_default_is_the_courses_run(the_verdict: Path) -> None:
    """5,145 tokens in 18 and 2 windows, 4 steps an epoch, 40 in all."""
    from gptcli import tokenizers
    from gptcli.data.dataset import make_corpus

    corpus = make_corpus([the_verdict.read_text(encoding="utf-8")], tokenizers.build("gpt2"), 0.9)
    assert (len(corpus.train), len(corpus.validation)) == (4612, 534)
    plan = make_plan(corpus, RecipeConfig())
    assert (plan.train_windows, plan.validation_windows) == (18, 2)
    assert (plan.steps_per_epoch, plan.total_steps) == (4, 40)


def test_going_on_from_a_checkpoint_keeps_its_tokenizer_and_shape(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *TINY, "--epochs", 2, "--out", "a").code == 0
    result = gptcli("train", story, "--init-from", "a", "--epochs", 2, "--out", "b")
    assert result.code == 0, result.err
    first, second = (checkpoint.load(Path(name)) for name in "ab")
    assert first.config == second.config
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint
    assert checkpoint.read_metrics(Path("b"))[0]["train_loss"] < checkpoint.read_metrics(Path("a"))[0]["train_loss"]


def test_several_sources_are_one_corpus(gptcli: Any, story: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("one.txt", "two.md", "three.csv"):
        (folder / name).write_text(TEXT, encoding="utf-8")
    result = gptcli("train", story, folder, *TINY, "--max-steps", 1, "--out", "run")
    assert result.code == 0, result.err
    assert "1,872 characters" in result.err


def test_standard_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gptcli", "train", "-", *map(str, TINY), "--max-steps", "1"]
    result = subprocess.run(command, input=TEXT.encode(), capture_output=True, cwd=tmp_path, env=_environment())
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().split() == [str(Path("checkpoints/stdin"))]


def test_training_loads_none_of_torchs_compiler(story: Path, tmp_path: Path) -> None:
    """It takes as long to load as torch itself."""
    run = str(tmp_path / "run")
    begun = ["train", str(story), *map(str, TINY), "--no-tie-weights", "--max-steps", "5", "--out", run]
    resumed = ["train", "--resume", run, "--max-steps", "9"]
    code = (
        "import sys; from gptcli.cli import main; "
        f"assert main({begun!r}) == 0; assert main({resumed!r}) == 0; "
        "print([name for name in ('torch._dynamo', 'sympy', 'torch.distributed.tensor') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=_environment())
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_schedules_and_options_reach_the_run(gptcli: Any, story: Path) -> None:
    options = (
        "--schedule",
        "cosine",
        "--warmup-steps",
        4,
        "--learning-rate",
        1e-2,
        "--eval-every",
        1,
        "--max-steps",
        20,
    )
    more = ("--grad-clip", 1, "--tie-weights", "--init", "gpt2", "--drop-rate", 0, "--qkv-bias", "--stride", 8)
    assert gptcli("train", story, *TINY, *options, *more, "--out", "run").code == 0
    rates = [row["learning_rate"] for row in checkpoint.read_metrics(Path("run"))]
    assert rates[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert rates[-1] == pytest.approx(1e-3)
    assert all(later < earlier * (1 + 1e-9) for earlier, later in pairwise(rates[3:]))
    loaded = checkpoint.load(Path("run"))
    assert loaded.config.tie_weights
    assert loaded.config.qkv_bias
    assert loaded.training["recipe"]["grad_clip"] == 1


# Texts that are too short


def test_a_text_shorter_than_a_window_shrinks_the_window_and_says_so(gptcli: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abcdefghij", encoding="utf-8")
    result = gptcli("train", "short.txt", *TINY, "--epochs", 1, "--out", "run")
    assert result.code == 0, result.err
    assert "too few for a window of 16: windows of 8 instead" in result.err
    assert checkpoint.load(Path("run")).config.context_length == 8


def test_a_text_with_no_validation_part_trains_without(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *TINY, "--epochs", 1, "--train-share", 1, "--out", "run")
    assert result.code == 0, result.err
    assert "no validation loss" in result.err
    assert all(row["val_loss"] is None for row in checkpoint.read_metrics(Path("run")))


def test_two_tokens_train_and_one_is_an_error(gptcli: Any, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("ab", encoding="utf-8")
    assert gptcli("train", "two.txt", *TINY, "--epochs", 1, "--out", "run").code == 0
    (tmp_path / "one.txt").write_text("a", encoding="utf-8")
    gptcli("train", "one.txt", *TINY, "--out", "other").assert_user_error("1 token", "at least 2")
    assert not Path("other").exists()


# Mistakes: two lines, exit code 2, nothing written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "smal"), ("'smal'", "small")),
        (("--tokenizer", "bpe"), ("'bpe'", "bpe:4096")),
        (("--tokenizer", "bpd"), ("'bpd'", "gpt2")),
        (("--emb-dim", 18, "--n-heads", 4), ("--emb-dim 18", "--n-heads 4")),
        (("--epochs", 0), ("--epochs is 0",)),
        (("--batch-size", 0), ("--batch-size is 0",)),
        (("--context-length", 0), ("--context-length is 0",)),
        (("--learning-rate", -1), ("--learning-rate is -1",)),
        (("--learning-rate", "nan"), ("--learning-rate is nan",)),
        (("--schedule", "cosin"), ("'cosin'", "Did you mean cosine")),
        (("--init", "xavier"), ("'xavier'",)),
        (("--train-share", 0), ("--train-share is 0",)),
        (("--drop-rate", 1), ("--drop-rate is 1",)),
        (("--grad-clip", -1), ("--grad-clip is -1",)),
        (("--device", "cuda:77"), ("cuda",)),
        (("--device", "tpu"), ("'tpu'",)),
        (("--threads", 0), ("--threads is 0",)),
        (("--epochs", "many"), ("many",)),
        (("--epoch", 3), ("--epoch",)),
    ],
)
def test_a_wrong_option_is_named(gptcli: Any, story: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    arguments = options if "--tokenizer" in options else ("--tokenizer", "char", *options)
    gptcli("train", story, *arguments).assert_user_error(*words)
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("missing.txt",)),
        (b"", ("empty",)),
        (b"caf\xe9 au lait", ("0xE9", "offset 3")),
        (b"\x89PNG\r\n\x1a\n\0\0", ("PNG",)),
    ],
)
def test_a_wrong_text_is_named(gptcli: Any, tmp_path: Path, content: bytes | None, words: tuple[str, ...]) -> None:
    if content is not None:
        (tmp_path / "missing.txt").write_bytes(content)
    gptcli("train", "missing.txt", *TINY).assert_user_error(*words)
    assert not Path("checkpoints").exists()


def test_an_existing_run_is_not_overwritten_unless_forced(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *TINY, "--max-steps", 1).code == 0
    before = digest(Path("checkpoints/story"))
    gptcli("train", story, *TINY, "--max-steps", 2).assert_user_error("exists already", "--force")
    assert digest(Path("checkpoints/story")) == before
    assert gptcli("train", story, *TINY, "--max-steps", 2, "--force").code == 0
    assert digest(Path("checkpoints/story")) != before


def test_init_from_decides_the_shape(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *TINY, "--max-steps", 1, "--out", "a").code == 0
    more = ("train", story, "--init-from", "a", "--out", "b")
    gptcli(*more, "--context-length", 17).assert_user_error("--context-length 17", "16")
    gptcli(*more, "--n-layers", 3).assert_user_error("--n-layers is 3", "has 2")
    gptcli(*more, "--size", "tiny").assert_user_error("--size", "--init-from")
    gptcli("train", story, "--init-from", "nowhere", "--out", "b").assert_user_error("nowhere")
    (story.parent / "new.txt").write_text("zebra? Ω", encoding="utf-8")
    gptcli("train", "new.txt", "--init-from", "a", "--out", "b").assert_user_error("'z'")
    assert not Path("b").exists()


def test_an_output_that_cannot_be_written(gptcli: Any, story: Path) -> None:
    Path("file").write_text("in the way", encoding="utf-8")
    gptcli("train", story, *TINY, "--out", "file/run").assert_user_error("run", "is a file, not a folder")
    assert Path("file").read_text(encoding="utf-8") == "in the way"


def test_divergence_stops_and_keeps_the_last_good_checkpoint(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *TINY, "--learning-rate", 1e30, "--out", "run", "-q")
    result.assert_user_error("at step", "--learning-rate")
    assert all(checkpoint.all_finite(t) for t in checkpoint.load(Path("run")).tensors.values())


# What can go wrong while saving


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second save finds no room for the weights, nor for the moments."""
    calls = 0
    original = safetensors_file._serialize

    def refuse_later(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the run's weights at step 0, which its snapshot links, are whole
            raise OSError(28, "No space left on device")
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_file, "_serialize", refuse_later)
        result = gptcli("train", story, *TINY, "--epochs", 3, "--out", "run", "-q")
    result.assert_user_error("model.safetensors", "Free some space")
    assert calls == 3  # weights and moments are written side by side, and each is refused once
    assert not [path for path in Path("run").iterdir() if "partial" in path.name]
    assert gptcli("generate", "the", "--checkpoint", "run", "-n", 3).code == 0


def test_a_full_disk_at_the_start_leaves_nothing(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "_serialize", refuse)
    gptcli("train", story, *TINY, "--out", "runs/run", "-q").assert_user_error("model.safetensors")
    assert not list(Path("runs").iterdir())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_writes_a_checkpoint_and_says_where(story: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gptcli",
        "train",
        str(story),
        *map(str, TINY),
        "--epochs",
        "100000",
        "--out",
        "run",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Stopped by Ctrl-C" in err.decode()
    assert "run" in out.decode()
    loaded = checkpoint.load(tmp_path / "run")
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert loaded.training["step"] == rows[-1]["step"] + 1 >= 11
    assert (tmp_path / "run" / "loss.png").exists()


def test_two_epochs_see_the_windows_in_two_orders() -> None:
    from gptcli.data.dataset import shuffled

    first, second = shuffled(50, 1, 1), shuffled(50, 1, 2)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == shuffled(50, 1, 1)


def test_windows_touch_and_targets_are_one_token_on() -> None:
    from gptcli.data.dataset import Windows

    windows = Windows(torch.arange(13), 4, 4)
    assert len(windows) == 3
    inputs, targets = windows.batch([0, 2])
    assert inputs.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert targets.tolist() == [[1, 2, 3, 4], [9, 10, 11, 12]]
    assert len(Windows(torch.arange(12), 4, 4)) == 2
