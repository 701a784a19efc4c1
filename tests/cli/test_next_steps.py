"""Every command that gptcli prints as the next one runs as it is printed."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_adapter, tiny_checkpoint, tiny_model
from runs import MODEL, TINY

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint, run_end, run_lock
from gptcli.cli import next_steps
from gptcli.tokenizers.none import NoTokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FEW = ("--max-steps", 2, "--sample-every", 0, "-q")


def printed(text: str) -> list[list[str]]:
    """The words, without gptcli, of every command line in what a command printed."""
    lines = [line.strip().split("  ")[0] for line in text.splitlines() if line.startswith("  gptcli ")]
    return [shlex.split(line)[1:] for line in lines]


def run_it(gptcli: Any, words: list[str]) -> Any:
    """The command as printed; training and texts are cut short."""
    short: dict[str, tuple[Any, ...]] = {"train": (*MODEL, *FEW), "generate": ("-n", 2)}
    if words[:2] == ["train", "--resume"]:
        short = {}
    result = gptcli(*words, *short.get(words[0], ()))
    assert result.code == 0, (words, result.err)
    return result


def test_download_then_train_then_generate(gptcli: Any) -> None:
    (train,) = printed(gptcli("download", "story").err)
    assert train[:2] == ["train", str(Path("data/story.txt"))]
    result = gptcli(*train, *FEW[:-1])
    assert result.code == 0, result.err
    (generate,) = printed(result.err)
    run_it(gptcli, generate)


@pytest.mark.parametrize("name", ["tokens", "my tokens", "it's $HOME"])
def test_prepare_then_train(gptcli: Any, story: Path, name: str) -> None:
    (train,) = printed(gptcli("prepare", "story.txt", "--tokenizer", "char", "--out", name).err)
    assert train == ["train", name]
    run_it(gptcli, train)


@pytest.mark.parametrize("name", ["small", "a model", "it's $HOME"])
@pytest.mark.parametrize(("kind", "text"), [("gpt2", ""), ("char", "$ab c\n"), ("word", "«ein» Wort -x"), ("byte", "")])
def test_quantize_then_generate(gptcli: Any, name: str, kind: str, text: str) -> None:
    tiny_checkpoint(Path("run"), kind=kind, text=text)
    (generate,) = printed(gptcli("quantize", "run", "--out", name).err)
    assert generate[-1] == name
    assert run_it(gptcli, generate).out.startswith(generate[1])


@pytest.mark.parametrize("name", ["half", "a model"])
@pytest.mark.parametrize(("kind", "text"), [("gpt2", ""), ("char", "$ab c\n")])
def test_export_then_generate(gptcli: Any, name: str, kind: str, text: str) -> None:
    tiny_checkpoint(Path("run"), kind=kind, text=text)
    (generate,) = printed(gptcli("export", "run", name).err)
    assert generate[-1] == name
    assert run_it(gptcli, generate).out.startswith(generate[1])


def test_merge_then_generate(gptcli: Any) -> None:
    tiny_adapter(Path("it's mine"), tiny_checkpoint(Path("base")))
    (generate,) = printed(gptcli("merge", "it's mine").err)
    assert generate[-1] == "it's mine-merged"
    run_it(gptcli, generate)


@pytest.mark.parametrize(
    ("options", "change"), [(("--learning-rate", 1e-3), "--max-steps"), (("--learning-rate", 0.5), "--learning-rate")]
)
def test_the_advice_at_the_end_of_a_run_runs(gptcli: Any, story: Path, options: tuple[Any, ...], change: str) -> None:
    words = ("train", "story.txt", *TINY, "--max-steps", 24, "--sample-every", 0, *options, "--out", "my run")
    (advice,) = re.findall(r"^What helps most: .*\. gptcli (.+)$", gptcli(*words).err, re.MULTILINE)
    assert shlex.split(advice)[-2] == change
    again = gptcli(*shlex.split(advice))
    assert again.code == 0, again.err
    assert Path("my run-2/model.safetensors").is_file()


def test_finetune_then_generate_or_classify(gptcli: Any) -> None:
    tiny_checkpoint(Path("base"), kind="byte", context_length=64)
    pairs = [{"prompt": f"it's {n}", "completion": " ab"} for n in range(4)]
    labelled = [{"text": f"it's {n}", "label": "xy"[n % 2]} for n in range(4)]
    for name, rows, command in (("pairs", pairs, "generate"), ("labels", labelled, "classify")):
        Path(f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        result = gptcli("finetune", f"{name}.json", "--init-from", "base", "--out", f"my {name}", "--max-steps", 1)
        (suggested,) = printed(result.err)
        assert suggested[0] == command
        assert run_it(gptcli, suggested).out


def test_a_gguf_file_is_for_another_program(gptcli: Any) -> None:
    pytest.importorskip("gguf")
    tiny_checkpoint(Path("run"), kind="gpt2")
    result = gptcli("export", "run", "a model", "--format", "gguf", "--dtype", "float32")
    assert shlex.split(result.err.splitlines()[-1]) == ["llama-cli", "--model", str(Path("a model/run-f32.gguf"))]


@pytest.mark.parametrize("out", [(), ("--out", "my model")])
def test_load_gpt2_then_count_or_generate(gptcli: Any, out: tuple[str, ...]) -> None:
    formats = Path(__file__).parents[1] / "checkpoints" / "formats"
    (count,) = printed(gptcli("load-gpt2", "--from", formats / "tf-gpt2-tiny", *out).err)
    assert count[0] == "count-params"  # it has no tokenizer
    run_it(gptcli, count)
    tiny_checkpoint(Path("mine"), kind="gpt2")
    (generate,) = printed(gptcli("load-gpt2", "--from", "mine", *(out or ("--out", "other")), "--force").err)
    run_it(gptcli, generate)


def give_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person reads stdout."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


CHAINS = {
    ("generate", "ab $c", "-n", 2, "--seed", 1): ["inspect-flow", "inspect-attn", "inspect-attn", "inspect-attn"],
    ("inspect-logits", "it's"): ["inspect-logits", "inspect-flow"],
    ("inspect-gradients", "a b"): ["inspect-gradients"],
    ("inspect-embeddings", "a", "b"): ["inspect-flow"],
    ("evaluate", "a text.txt"): ["evaluate"],
}
HOW = [(), ("-c", "my model"), ("--adapter", "my adapter"), ("-c", "my model", "--adapter", "my adapter")]


@pytest.mark.parametrize("words", CHAINS, ids=lambda words: words[0])
@pytest.mark.parametrize("how", HOW, ids=["newest", "named", "adapter", "both"])
def test_a_result_then_a_closer_look(
    gptcli: Any, words: tuple[Any, ...], how: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_a_terminal(monkeypatch)
    tiny_checkpoint(Path("checkpoints/my model"), kind="char", text="ab $c'its", context_length=40)
    if "--adapter" in how:
        tiny_adapter(Path("checkpoints/my adapter"), Path("checkpoints/my model"))
    Path("a text.txt").write_text("ab its cab" * 9, encoding="utf-8")
    result = gptcli(*words, *how)
    assert result.code == 0, result.err
    assert printed(gptcli(*words, *how, "--quiet").err) == []
    for expected in CHAINS[words]:
        (command,) = printed(result.err)
        assert command[0] == expected
        result = run_it(gptcli, command)
    assert Path("attention.html").exists() is (words[0] == "generate")


def test_a_picture_of_the_checkpoint_in_this_folder_has_its_name(
    gptcli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    give_a_terminal(monkeypatch)
    monkeypatch.chdir(tiny_checkpoint(tmp_path / "my run"))
    Path("text.txt").write_text("ab its cab" * 9, encoding="utf-8")
    result = gptcli("evaluate", "text.txt", "-c", ".")
    assert "my run: perplexity" in result.out
    (command,) = printed(result.err)
    run_it(gptcli, command)
    assert Path("my run.png").exists()


def test_classify_then_a_closer_look(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    give_a_terminal(monkeypatch)
    tokenizer = tokenizers.build("byte")
    checkpoint.create(Path("a b"), tiny_model(vocab_size=257, labels=("x", "y")), tokenizer, {})
    Path("rows.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', encoding="utf-8")
    for words in (("classify", "it's"), ("classify", "rows.jsonl"), ("evaluate", "rows.jsonl")):
        (command,) = printed(gptcli(*words, "-c", "a b").err)
        run_it(gptcli, command)
    assert Path("a b.png").exists()
    assert printed(gptcli("classify", "it's", "-c", "a b", "--json").err) == []


@pytest.mark.parametrize("text", ["a\nb", "-- a", "a" * 200])
def test_a_text_that_cannot_be_repeated_suggests_nothing(
    gptcli: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_a_terminal(monkeypatch)
    tiny_checkpoint(Path("run"), context_length=300)
    Path("a.txt").write_text(text, encoding="utf-8")
    result = gptcli("generate", "--file", "a.txt", "-c", "run", "-n", 2)
    assert (result.code, printed(result.err)) == (0, [])


def test_a_program_that_reads_the_result_gets_no_suggestion(gptcli: Any) -> None:
    tiny_checkpoint(Path("run"))
    assert gptcli("generate", "a", "-c", "run", "-n", 2, "--engine", "torch").err == ""
    assert gptcli("inspect-flow", "a", "-c", "run").err == ""


def test_the_command_is_hidden_by_quiet(gptcli: Any) -> None:
    assert gptcli("download", "story", "--quiet").err == ""


def test_a_prompt_is_of_the_alphabet() -> None:
    assert next_steps.known_prompt(tokenizers.build("gpt2")) == next_steps.PROMPT
    assert next_steps.known_prompt(tokenizers.build("char", "-$ é\n")) == "é"
    assert next_steps.known_prompt(tokenizers.build("char", "-$ \n")) == "$"
    assert next_steps.known_prompt(tokenizers.build("word", "-x Fähre, ab")) in ("Fähre", "ab")
    assert next_steps.known_prompt(NoTokenizer()) == ""


def test_alone_without_a_checkpoint(gptcli: Any) -> None:
    result = gptcli()
    download, train, more = printed(result.out)
    assert (result.code, result.err) == (0, "")
    assert [download, more] == [["download", "story"], ["--help"]]
    run_it(gptcli, download)
    guide = printed(gptcli().out)[0]
    assert run_it(gptcli, guide).out.startswith("# Getting started")
    assert gptcli(*train, *FEW).code == 0
    assert run_it(gptcli, more).out


def test_alone_with_a_checkpoint(gptcli: Any, story: Path) -> None:
    assert gptcli("train", "story.txt", *TINY, *FEW, "--out", "checkpoints/my run").code == 0
    result = gptcli()
    assert "my run" in result.out.splitlines()[0]
    assert [words[0] for words in printed(result.out)] == ["generate", "inspect-attn", "--help"]
    for words in printed(result.out):
        run_it(gptcli, words)


def test_alone_with_a_checkpoint_that_lies_in_this_folder(gptcli: Any, story: Path) -> None:
    assert gptcli("train", "story.txt", *TINY, *FEW, "--out", "diary").code == 0
    generate = printed(gptcli().out)[0]
    assert generate[-2:] == ["-c", "diary"]
    run_it(gptcli, generate)
    gptcli("generate", "a").assert_user_error("no checkpoint under", "newest in this folder is diary")
    assert "newest in this folder is diary" in gptcli("checkpoints").err
    tiny_checkpoint(Path("checkpoints/other"))
    assert printed(gptcli().out)[0][-1] == "other"


def test_alone_with_a_run_that_stopped(gptcli: Any) -> None:
    shutil.copytree(FIXTURES / "killed-muon", "checkpoints/killed")
    shutil.copy(FIXTURES / "story.txt", ".")
    resume, generate, _ = printed(gptcli().out)
    assert resume == ["train", "--resume", "killed"]
    run_it(gptcli, generate)
    with run_lock.held(Path("checkpoints/killed")):
        assert not run_end.is_unfinished(Path("checkpoints/killed"))
    assert gptcli("train", "story.txt", *resume[1:], "--device", "cpu").code == 0
    assert printed(gptcli().out)[0][0] == "generate"


def test_alone_with_a_fine_tuning_that_stopped(gptcli: Any) -> None:
    run = tiny_checkpoint(Path("checkpoints/tuned"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["gptcli"]["training"] = {"recipe": {"max_steps": 9}, "step": 3}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (run / "training" / "step-00000003").mkdir(parents=True)
    assert printed(gptcli().out)[0] == ["train", "--resume", "tuned"]
    (run / "config.toml").write_text('method = "sft"\n', encoding="utf-8")
    assert printed(gptcli().out)[0] == ["finetune", "--resume", "tuned"]


@pytest.mark.parametrize(
    ("name", "unfinished"), [("finished", False), ("stopped-adamw", True), ("word", False), ("gpt2", False)]
)
def test_which_runs_have_stopped(name: str, unfinished: bool) -> None:
    assert run_end.is_unfinished(FIXTURES / name) is unfinished


def test_alone_fits_80_columns(gptcli: Any) -> None:
    for name in (None, "checkpoints/story", "checkpoints/story-int8"):
        if name:
            tiny_checkpoint(Path(name), kind="gpt2")
        assert max(map(len, gptcli().out.splitlines())) <= 80


def test_a_run_for_a_fixed_time_that_has_ended_is_not_resumed(gptcli: Any) -> None:
    run = tiny_checkpoint(Path("checkpoints/run"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    recipe = {"for_time": 30.0, "max_steps": 180, "epochs": 10, "cooldown_start": None}
    config["gptcli"]["training"] = {"recipe": recipe, "step": 125}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (run / "training" / "step-00000125").mkdir(parents=True)
    (run / "config.toml").write_text("for = 30.0\n", encoding="utf-8")
    assert run_end.is_unfinished(run)
    (run / "config.toml").write_text("max_steps = 125\ncooldown_start = 71\n", encoding="utf-8")
    assert not run_end.is_unfinished(run)
    (run / "config.toml").write_text("max_steps = 140\ncooldown_start = 80\n", encoding="utf-8")
    assert run_end.is_unfinished(run)


def test_alone_a_damaged_checkpoint_is_no_error(gptcli: Any, tmp_path: Path) -> None:
    tiny_checkpoint(Path("checkpoints/run"))
    Path("checkpoints/run/config.json").write_text("{", encoding="utf-8")
    assert gptcli().code == 0


def test_a_name_that_is_also_a_folder_here_is_given_as_a_path(gptcli: Any) -> None:
    tiny_checkpoint(Path("checkpoints/run"))
    Path("run").mkdir()
    for words in printed(gptcli().out):
        run_it(gptcli, words)
