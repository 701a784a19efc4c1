"""Settings come from flag, variable, file or default, in this order; files do what a command line does."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from runs import TEXT

from gptcli.cli import group
from gptcli.config.sources import Option, toml_value

COMMANDS = {
    "train": ["story.txt"],
    "generate": ["Once"],
    "evaluate": ["story.txt"],
    "prepare": ["story.txt"],
    "bench": [],
}
TINY = ("--tokenizer", "char", "--emb-dim", 8, "--n-heads", 2, "--n-layers", 1, "--context-length", 8)
SHORT = (
    "--max-steps",
    3,
    "--eval-every",
    2,
    "--eval-batches",
    1,
    "--sample-every",
    0,
    "--device",
    "cpu",
    "--threads",
    1,
)
CHOICES = {
    "schedule": ("constant", "cosine", "linear"),
    "optimizer": ("sgd", "adam", "muon"),
    "init": ("gpt2", "course", "gpt2"),
    "activation": ("gelu_new", "gelu", "relu"),
    "dtype": ("float32", "bfloat16", "float16"),
    "for": ("31s", "32s", "33s"),
    "final": ("best", "last", "best"),
    "part": ("validation", "train", "validation"),
    "log": ("none", "tensorboard", "none"),
    "errors": ("strict", "replace", "ignore"),
    "overflow": ("slide", "crop", "error"),
    "engine": ("cpu", "torch", "cpu"),
    "quantize": ("int8", "int4", "int8"),
    "convention": ("openai", "raw", "openai"),
    "task": ("lambada", "choices", "cloze"),
    "against": ("transformers", "ctranslate2", "transformers"),
}


def options_of(command: str) -> list[Option]:
    return [option for option in group.commands[command].load().options if option.stored]


def values(option: Option) -> tuple[Any, Any, Any]:
    """Three values of an option, one after the other different."""
    if option.key in CHOICES:
        return CHOICES[option.key]
    kind = option.kinds[0]
    three: tuple[Any, Any, Any] = {bool: (True, False, True), int: (2, 3, 4), float: (0.1, 0.2, 0.3)}.get(
        kind, ("one", "two", "three")
    )
    return tuple([each] for each in three) if option.several else three  # type: ignore[return-value]


def shown(option: Option, value: Any, folder: Path) -> Any:
    """``value`` as a printed file has it."""
    if isinstance(value, list):
        return [shown(option, each, folder) for each in value]
    return str(folder / value) if option.path == "path" else value


def flags(option: Option, value: Any) -> list[str]:
    flag = "--" + option.key.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [word for each in (value if isinstance(value, list) else [value]) for word in (flag, str(each))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_comes_from_flag_variable_file_or_default(
    gptcli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    options = options_of(command)
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "run.toml"
    file.write_text(
        "".join(f"{option.key} = {toml_value(values(option)[2])}\n" for option in options), encoding="utf-8"
    )
    optional = [option for option in options if option.has_variable]

    def printed(*words: object) -> dict[str, Any]:
        result = gptcli(command, *words, "--print-config")
        assert result.code == 0, result.err
        return tomllib.loads(result.out)

    found = printed(*COMMANDS[command])
    for option in optional:
        if option.default is None or option.default == []:
            assert option.key not in found
        elif option.shown:
            assert found[option.key] == (int(option.default) if option.key == "batch_size" else option.default)
    found = printed("--config", file)
    for option in options:
        assert found[option.key] == shown(option, values(option)[2], file.parent), option.key
    for option in optional:
        value = values(option)[1]
        monkeypatch.setenv(option.variable, "\n".join(value) if option.several else str(value))
    found = printed("--config", file)
    for option in optional:
        if option.shown or values(option)[1]:
            assert found[option.key] == shown(option, values(option)[1], tmp_path), option.key
    found = printed(*(word for option in optional for word in flags(option, values(option)[0])), "--config", file)
    for option in optional:
        assert found[option.key] == shown(option, values(option)[0], tmp_path), option.key


def test_a_setting_may_be_called_as_its_class_is_in_the_function() -> None:
    assert {"engine", "quantize", "compile"} <= {option.key for option in options_of("generate")}


@pytest.mark.parametrize("command", sorted(group.commands))
def test_what_a_file_and_a_variable_may_never_say(command: str) -> None:
    options = group.commands[command].load().options
    for option in options:
        assert option.stored == (option.key not in {"force", "resume", "config", "print_config", "help_all"})
        assert option.stored or not option.has_variable
        assert option.variable not in ("GPTCLI_DATA_URL", "GPTCLI_TEST_DATA", "GPTCLI_TEST_CHROMIUM", "GPTCLI_COMPLETE")
    assert len(options) <= 10 or any(option.key == "config" for option in options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("There is no file run.toml",)),
        (b"epochs = \n", ("run.toml is not TOML", "line 1, column 10")),
        (b"\xff\xfe", ("run.toml is not UTF-8", "0xFF", "offset 0")),
        (b"epoch = 3\n", ("run.toml has epoch, which is no option of gptcli train", "Did you mean epochs?")),
        (b"batch-size = 3\n", ("has batch-size", "Did you mean batch_size?")),
        (b"temperature = 1.0\n", ("an option of gptcli generate and not of train",)),
        (b'epochs = "many"\n', ("epochs in run.toml is 'many', but it must be a whole number", "epochs = 10")),
        (b"epochs = 2.5\n", ("epochs in run.toml is 2.5",)),
        (b"epochs = true\n", ("epochs in run.toml is True",)),
        (b"recompute = 1\n", ("recompute in run.toml is 1, but it must be true or false",)),
        (b'texts = "a.txt"\n', ("texts in run.toml is 'a.txt'", "a list")),
        (b"epochs = 0\n", ("epochs in run.toml is 0, but it must be at least 1",)),
        (b'schedule = "cosin"\n', ("schedule in run.toml is 'cosin'", "Did you mean cosine?")),
        (b'batch_size = "some"\n', ("batch_size in run.toml is 'some'", "auto:64")),
        (b'max_time = "5 days"\n', ("max_time in run.toml is '5 days'", "Give 90s")),
        (b"[train]\nepochs = 3\n", ("run.toml has the table [train]", "no tables")),
        (b"epochs = 3\nepochs = 4\n", ("run.toml gives epochs twice, in line 2",)),
        (b"force = true\n", ("force, which is never read from a file", "--force")),
        (b'resume = "run"\n', ("resume, which is never read from a file",)),
        (b'config = "b.toml"\n', ("config, which is never read from a file",)),
        (b"print_config = true\n", ("print_config, which is never read from a file",)),
        (b"help = true\n", ("run.toml has help",)),
    ],
)
def test_a_wrong_file_is_told_in_two_lines(
    gptcli: Any, story: Path, content: bytes | None, words: tuple[str, ...]
) -> None:
    if content is not None:
        Path("run.toml").write_bytes(content)
    gptcli("train", story, "--config", "run.toml", "--out", "run").assert_user_error(*words)
    assert not Path("run").exists()


def test_a_folder_is_no_file_and_a_byte_order_mark_no_setting(gptcli: Any, story: Path) -> None:
    Path("here").mkdir()
    gptcli("train", story, "--config", "here").assert_user_error("here cannot be read")
    Path("run.toml").write_bytes(b"\xef\xbb\xbfepochs = 3\n")
    assert "epochs = 3\n" in gptcli("train", story, "--config", "run.toml", "--print-config").out


def test_a_wrong_variable_is_named(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, words in (
        ("many", ("GPTCLI_EPOCHS is 'many', but it must be a whole number", "unset GPTCLI_EPOCHS")),
        ("0", ("GPTCLI_EPOCHS is 0, but it must be at least 1",)),
    ):
        monkeypatch.setenv("GPTCLI_EPOCHS", text)
        gptcli("train", story, "--out", "run").assert_user_error(*words)
    monkeypatch.setenv("GPTCLI_EPOCHS", "")
    assert "epochs = 10\n" in gptcli("train", story, "--print-config").out


def test_a_variable_never_forces_or_resumes(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gptcli("train", story, *TINY, *SHORT, "--out", "run").code == 0
    monkeypatch.setenv("GPTCLI_FORCE", "true")
    monkeypatch.setenv("GPTCLI_RESUME", "run")
    Path("run.toml").write_text('out = "run"\n', encoding="utf-8")
    gptcli("train", story, *TINY, *SHORT, "--config", "run.toml").assert_user_error("run", "--force")


def test_a_printed_file_and_a_runs_own_give_the_same_weights(
    gptcli: Any, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("train", story.name, *TINY, *SHORT, "--batch-size", "auto:3", "--optimizer", "muon", "--lr", 1e-2)
    monkeypatch.chdir(story.parent)
    printed = gptcli(*line, "--print-config")
    assert printed.code == 0
    assert not Path("a").exists()
    assert gptcli(*line, "--out", "a").code == 0
    there = tmp_path / "elsewhere" / "deep"
    there.mkdir(parents=True)
    monkeypatch.chdir(there)
    Path("a.toml").write_text(printed.out, encoding="utf-8")
    assert gptcli("train", "--config", "a.toml", "--out", "b").code == 0
    result = gptcli("train", "--config", story.parent / "a/config.toml", "--out", "c")
    assert (result.code, "will differ" in result.err) == (0, False)
    first = (story.parent / "a/model.safetensors").read_bytes()
    assert first == Path("b/model.safetensors").read_bytes() == Path("c/model.safetensors").read_bytes()
    settings = tomllib.loads((story.parent / "a/config.toml").read_text(encoding="utf-8"))
    assert (settings["batch_size"], settings["accumulate"], settings["dtype"], settings["threads"]) == (
        3,
        1,
        "float32",
        1,
    )
    assert settings["texts"] == [f"../{story.name}"]
    assert "out" not in settings
    story.write_text(TEXT + "More.", encoding="utf-8")
    result = gptcli("train", "--config", story.parent / "a/config.toml", "--out", "d")
    assert "are not what they were: the run will differ" in result.err
    assert "will differ" not in gptcli("train", story, "--config", story.parent / "a/config.toml", "--out", "e").err


def test_a_run_from_a_checkpoint_is_repeated_from_its_config(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *TINY, *SHORT, "--out", "first").code == 0
    assert gptcli("train", story, *SHORT, "--init-from", "first", "--out", "a").code == 0
    assert gptcli("train", "--config", "a/config.toml", "--out", "b").code == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_a_run_that_a_clock_ended_says_its_steps(gptcli: Any, story: Path) -> None:
    line = (story, *TINY, *SHORT, "--max-steps", 10**6, "--early-stop", 1, "--lr", 0.5)
    assert gptcli("train", *line, "--out", "a").code == 0
    settings = tomllib.loads(Path("a/config.toml").read_text(encoding="utf-8"))
    assert settings["max_steps"] < 10**6
    assert "early_stop" not in settings
    assert gptcli("train", "--config", "a/config.toml", "--out", "b").code == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_resuming_takes_from_a_file_and_variables_what_may_change(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gptcli("train", story, *TINY, *SHORT, "--out", "run").code == 0
    Path("more.toml").write_text("max_steps = 5\nlearning_rate = 0.5\nkeep = 1\n", encoding="utf-8")
    monkeypatch.setenv("GPTCLI_EMB_DIM", "64")
    monkeypatch.setenv("GPTCLI_MAX_STEPS", "4")
    result = gptcli("train", "--resume", "run", "--config", "more.toml")
    assert result.code == 0, result.err
    assert "are ignored for emb_dim, learning_rate." in result.err
    settings = tomllib.loads(Path("run/config.toml").read_text(encoding="utf-8"))
    assert (settings["max_steps"], settings["keep"], settings["learning_rate"]) == (4, 1, 5e-4)
    monkeypatch.delenv("GPTCLI_EMB_DIM")
    gptcli("train", "--resume", "run", "--lr", 0.5).assert_user_error("--learning-rate is 0.5")
    gptcli("train", "--resume", "run", "--print-config").assert_user_error("--print-config", "config.toml")


def test_help_shows_what_people_use_and_help_all_the_rest(gptcli: Any) -> None:
    short, whole = gptcli("train", "--help").out, gptcli("train", "--help-all").out
    assert "--help-all shows" in short
    assert "--weight-decay" in whole
    assert "--weight-decay" not in short
    assert "<bool>" not in whole
    for name in ("--size", "--epochs", "--batch-size", "--learning-rate", "--out", "--resume", "--config"):
        assert name in short
    assert sum(line.startswith("│ --") for line in short.splitlines()) <= 20


def test_a_preset_has_a_rate_that_suits_it(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(*options: object) -> float:
        return float(tomllib.loads(gptcli("train", story, *options, "--print-config").out)["learning_rate"])

    assert rate() == 5e-4
    assert rate("--size", "tiny") == 2e-3
    assert rate("--size", "tiny", "--lr", 0.01) == 0.01
    Path("rate.toml").write_text('learning_rate = 0.003\nsize = "xl"\n', encoding="utf-8")
    assert rate("--config", "rate.toml") == 0.003
    Path("size.toml").write_text('size = "xl"\n', encoding="utf-8")
    assert rate("--config", "size.toml") == 2e-4
    monkeypatch.setenv("GPTCLI_LEARNING_RATE", "0.004")
    assert rate("--size", "tiny") == 0.004
    monkeypatch.delenv("GPTCLI_LEARNING_RATE")
    assert gptcli("train", story, "--size", "tiny", *TINY, *SHORT, "--out", "run").code == 0
    assert tomllib.loads(Path("run/config.toml").read_text(encoding="utf-8"))["learning_rate"] == 2e-3
