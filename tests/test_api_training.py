"""Training through the Python API: the same bytes as the command, events, stopping, threads, silence."""

import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from runs import TEXT, TINY

import gptcli as api
from gptcli.config.runtime import RuntimeConfig
from gptcli.errors import GptcliError
from gptcli.training.resume import MAY_CHANGE
from gptcli.training.session import ResumeSettings

SHAPE = api.GPTConfig(
    emb_dim=16, n_heads=2, n_layers=2, context_length=16, qkv_bias=False, tie_weights=False, drop_rate=0.1
)
RECIPE = api.RecipeConfig(max_steps=6, eval_every=2)


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "story.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def train(out: str = "run", **settings: Any) -> Path:
    return api.train("story.txt", out, **{"model": SHAPE, "tokenizer": "char", "recipe": RECIPE, **settings})


def weights(run: Path | str) -> bytes:
    return (Path(run) / "model.safetensors").read_bytes()


def step(run: Path) -> int:
    return int(api.load_checkpoint(run).training["step"])


def stop_at(number: int) -> Any:
    def stop(event: api.events.Event) -> None:
        if isinstance(event, api.events.Stepped) and event.step == number:
            raise api.StopTraining

    return stop


def test_the_same_bytes_as_the_command(gptcli: Any) -> None:
    command = ("train", "story.txt", "--out", "command", *TINY, "--max-steps", 6, "--eval-every", 2)
    assert gptcli(*command).code == 0
    assert weights(train()) == weights("command")


def test_all_events_come_in_order_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[api.events.Event] = []
    state = torch.random.get_rng_state()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert train(on_event=seen.append) == Path("run")
    assert [event.step for event in seen if isinstance(event, api.events.Stepped)] == list(range(6))
    assert [event.step for event in seen if isinstance(event, api.events.Evaluated)] == [0, 2, 4, 5]
    assert isinstance(seen[-1], api.events.Saved)
    assert capfd.readouterr() == ("", "")
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert torch.equal(state, torch.random.get_rng_state())


def test_messages_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gptcli"):
        train(recipe=api.RecipeConfig(max_steps=2, batch_size=1000))
    assert any("windows" in record.message for record in caplog.records if record.levelno == logging.WARNING)


def test_stopped_and_resumed_it_is_the_whole_run() -> None:
    seen: list[api.events.Event] = []
    stopped = train("stopped", on_event=stop_at(2))
    assert step(stopped) == 3
    assert api.resume(stopped, on_event=seen.append, keep=1) == stopped
    assert [event.step for event in seen if isinstance(event, api.events.Stepped)] == [3, 4, 5]
    assert weights(stopped) == weights(train("whole"))


def test_an_event_that_fails_is_logged_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[api.events.Event] = []

    def fails(event: api.events.Event) -> None:
        calls.append(event)
        raise ValueError("no room")

    assert step(train(on_event=fails)) == 6
    assert len(calls) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no room" in caplog.text


def test_an_interrupt_leaves_a_run_that_goes_on() -> None:
    def interrupts(event: api.events.Event) -> None:
        if isinstance(event, api.events.Stepped) and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("stopped", runtime=api.RuntimeConfig(save_every=2), on_event=interrupts)
    assert step(Path("stopped")) == 4
    assert weights(api.resume("stopped")) == weights(train("whole"))


def test_a_real_ctrl_c_in_the_main_thread() -> None:
    code = (
        "import gptcli, os, signal\n"
        "def on_event(event):\n"
        "    if isinstance(event, gptcli.events.Stepped) and event.step == 50:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "shape = gptcli.GPTConfig(emb_dim=16, n_heads=2, n_layers=2, context_length=16)\n"
        "recipe = gptcli.RecipeConfig(max_steps=100000, epochs=100000, eval_every=1000)\n"
        "try:\n"
        "    gptcli.train('story.txt', 'run', model=shape, tokenizer='char', recipe=recipe,\n"
        "                 runtime=gptcli.RuntimeConfig(save_every=10), on_event=on_event)\n"
        "except KeyboardInterrupt:\n"
        "    gptcli.resume('run', max_steps=60)\n"
        "assert gptcli.load_checkpoint('run').training['step'] == 60\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_in_a_thread_while_another_generates() -> None:
    model = api.load(train("first"))
    text = model.generate("the cat", seed=1).text
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, "second", recipe=api.RecipeConfig(max_steps=60, epochs=60))
        while not training.done():
            assert model.generate("the cat", seed=1).text == text
        assert step(training.result()) == 60
    train("third", recipe=api.RecipeConfig(max_steps=60, epochs=60))
    assert weights("second") == weights("third")


def test_one_run_at_a_time() -> None:
    began, refused = threading.Event(), threading.Event()

    def waits(event: api.events.Event) -> None:
        began.set()
        refused.wait(60)

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, "first", on_event=waits)
        began.wait(60)
        with pytest.raises(GptcliError, match="Another run"):
            train("second")
        refused.set()
        training.result()
    assert not Path("second").exists()
    train("second")


def test_going_on_from_weights_and_from_prepared_tokens(gptcli: Any) -> None:
    first = train("first")
    second = train("second", model=None, tokenizer=None, init_from=first, recipe=api.RecipeConfig(max_steps=1))
    assert api.load_checkpoint(second).config == api.load_checkpoint(first).config
    shorter = api.RecipeConfig(max_steps=1, context_length=8)
    third = train("third", model=None, tokenizer=None, init_from="first", recipe=shorter)
    assert api.load_checkpoint(third).config.context_length == 16
    assert gptcli("prepare", "story.txt", "--out", "tokens", "--tokenizer", "byte").code == 0
    run = api.train(Path("tokens"), "fourth", model=SHAPE, recipe=RECIPE)
    assert api.load_checkpoint(run).tokenizer.kind == "byte"


def test_the_windows_are_no_longer_than_the_model_or_the_recipe_says() -> None:
    for context, windows, expected in ((16, 256, 16), (64, 8, 8)):
        shape = SHAPE.with_changes(context_length=context)
        run = train(f"run-{context}", model=shape, recipe=api.RecipeConfig(max_steps=1, context_length=windows))
        assert api.load_checkpoint(run).config.context_length == expected


def test_what_may_change_on_resuming_is_what_its_type_says() -> None:
    types, hints = get_type_hints(ResumeSettings), get_type_hints(RuntimeConfig) | get_type_hints(api.RecipeConfig)
    assert set(types) == set(MAY_CHANGE) >= {field.name for field in fields(RuntimeConfig)}
    assert types == {name: hints[name] for name in types}


def test_mistakes() -> None:
    run = train()
    calls: list[tuple[Any, str, str]] = [
        (lambda: train(), "run exists already", ""),
        (lambda: train("other", recipe=api.RecipeConfig(batch_size=0)), "batch_size is 0", "default, 4"),
        (lambda: train("other", tokenizer="chars"), "'chars'", "char"),
        (lambda: train("other", init_from=run), "model cannot be combined with init_from", "Leave"),
        (lambda: train("other", runtime=api.RuntimeConfig(accumulate=9)), "accumulate is 9", "batch_size"),
        (lambda: api.train("stroy.txt", "other"), "stroy.txt", "story.txt"),
        (lambda: api.resume("rum"), "rum", ""),
        (lambda: api.resume(run), "has ended", ""),
        (lambda: api.resume(run, learning_rate=1), "'learning_rate'", "epochs"),  # type: ignore[call-arg]
        (lambda: api.resume(run, keep=0), "keep is 0", "default"),
    ]
    for call, message, hint in calls:
        with pytest.raises(GptcliError) as caught:
            call()
        assert message in caught.value.message
        assert hint in caught.value.hint
        assert "--" not in caught.value.message
        assert not Path("other").exists()


def test_the_run_keeps_a_config_that_the_command_repeats_it_from(gptcli: Any) -> None:
    run = train(
        runtime=api.RuntimeConfig(accumulate=2, threads=1), recipe=api.RecipeConfig(max_steps=5, schedule="cosine")
    )
    assert gptcli("train", "--config", run / "config.toml", "--out", "again").code == 0
    assert weights("again") == weights(run)


def test_a_time_is_enough_to_train(story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.training import budget, session, trainer

    class Ticking:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 0.1
            return self.now

    clock = Ticking()
    for module in (budget, session, trainer):
        monkeypatch.setattr(module, "time", clock)
    recipe = api.RecipeConfig(for_time=30, learning_rate=0.02, batch_size=2)
    run = api.train(story, tmp_path / "run", recipe=recipe, runtime=api.RuntimeConfig(threads=1))
    assert clock.now == pytest.approx(30, abs=4)
    found = api.load_checkpoint(run)
    assert found.tokenizer.kind == "bpe"
    used = found.training["recipe"]
    assert (used["learning_rate"], used["batch_size"], used["schedule"]) == (0.02, 2, "wsd")
    shape = api.GPTConfig(emb_dim=16, n_heads=2, n_layers=1, context_length=16)
    run = api.train(story, tmp_path / "small", model=shape, tokenizer="char", recipe=recipe)
    small = api.load_checkpoint(run)
    assert (small.config.emb_dim, small.config.n_layers, small.tokenizer.kind) == (16, 1, "char")
    with pytest.raises(api.GptcliError, match="for_time cannot be combined with max_steps"):
        api.train(story, tmp_path / "other", recipe=api.RecipeConfig(for_time=30, max_steps=3))
