"""The Python API as its users meet it: names, types, values, errors, silence, threads."""

import asyncio
import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model
from runs import TEXT, TINY

import gptcli as api
from gptcli import tokenizers
from gptcli.errors import GptcliError
from gptcli.inference.completion import Settings
from gptcli.inference.open import obstacle

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with story.txt and checkpoints/demo, which has learnt it, animals and rows.jsonl."""
    from gptcli.cli import main

    home = tmp_path_factory.mktemp("home")
    (home / "story.txt").write_text(TEXT, encoding="utf-8")
    steps = ("--max-steps", 300, "--epochs", 100, "--learning-rate", 1e-2, "--eval-every", 100, "--sample-every", 0)
    steps += ("--final", "last")  # those that have learnt it
    words = ["train", home / "story.txt", "--out", home / "checkpoints" / "demo", *TINY, *steps, "--quiet"]
    assert main([str(word) for word in words]) == 0
    classifier = tiny_model(vocab_size=257, labels=("cat", "dog"))
    api.save_checkpoint(home / "animals", classifier, tokenizers.build("byte"))
    rows = [{"text": f"the {animal} sat", "label": animal} for animal in ("cat", "dog")] * 2
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return home


@pytest.fixture
def home(_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(_home)
    return _home


@pytest.fixture(scope="module")
def model(_home: Path) -> api.TextModel:
    return api.load(_home / "checkpoints" / "demo", device="cpu")


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_the_import_is_light() -> None:
    heavy = "{'torch', 'numpy', 'numba', 'matplotlib', 'tiktoken', 'typer', 'rich', 'tqdm'} & set(sys.modules)"
    result = in_a_new_process(f"import sys, gptcli; dir(gptcli); gptcli.GPTConfig; print({heavy})")
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_the_compiled_kernels_generate_without_torch(home: Path) -> None:
    code = (
        "import sys, gptcli\n"
        f"model = gptcli.load({str(home / 'checkpoints' / 'demo')!r}, device='cpu')\n"
        "model.generate('the cat', max_new_tokens=3), model.batch(['the cat'], max_new_tokens=3)\n"
        "print(model.engine, 'torch' in sys.modules)"
    )
    result = in_a_new_process(code)
    assert result.stderr == ""
    assert result.stdout in ("cpu False\n", "torch True\n")


def test_every_name_is_there_and_is_shown() -> None:
    for name in api.__all__:
        assert getattr(api, name) is not None
        assert name in dir(api)
    with pytest.raises(AttributeError, match="'gptcli' has no attribute 'lod'"):
        api.lod  # type: ignore[attr-defined]  # noqa: B018


def test_documentation_and_its_examples(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every public function and class is documented, every example runs, and none of it prints."""
    flags = doctest.NORMALIZE_WHITESPACE
    examples = 0
    for module in (
        "gptcli.api",
        "gptcli.inference.text_model",
        "gptcli.inference.classifier",
        "gptcli.training.session",
        "gptcli.evaluation.classification",
        "gptcli.evaluation.scores",
    ):
        result = doctest.testmod(importlib.import_module(module), optionflags=flags)
        examples += result.attempted
        assert result.failed == 0
    assert examples > 20
    for name in api.__all__:
        value = getattr(api, name)
        if callable(value):
            assert (value.__doc__ and "Example:" in value.__doc__) or isinstance(value, type), name
    assert capfd.readouterr() == ("", "")


def test_a_program_that_uses_every_name_is_typed(home: Path) -> None:
    """tests/api_user.py is checked by ``mypy --strict`` with the package (see pyproject.toml), and runs."""
    text = (ROOT / "tests" / "api_user.py").read_text(encoding="utf-8")
    for name in api.__all__:
        assert f"gptcli.{name}" in text, name
    assert '"tests/api_user.py"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "api_user"], cwd=home, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from gptcli.cli import main

    shutil.copytree(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    words = ["train", "data/story.txt", "--out", "checkpoints/demo", "--max-steps", "1", "--sample-every", "0"]
    assert main([*words, *map(str, TINY)]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    capfd.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    shown = capfd.readouterr()
    assert shown.err == ""
    assert float(shown.out.splitlines()[-1]) > 1
    assert Path("checkpoints/mine-int4/model.safetensors").exists()


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_same_text_as_the_command(home: Path, gptcli: Any, quantize: Any) -> None:
    options = ("--quantize", quantize) if quantize else ()
    shown = gptcli(
        "generate", "the cat", "-c", home / "checkpoints/demo", "-n", 30, "--seed", 7, "--top-k", 5, "--json", *options
    ).json["samples"][0]
    model = api.load(home / "checkpoints/demo", quantize=quantize)
    found = model.generate("the cat", max_new_tokens=30, seed=7, top_k=5)
    assert (found.text, list(found.ids), found.finish_reason) == (shown["text"], shown["ids"], shown["finish_reason"])
    assert "".join(model.stream("the cat", max_new_tokens=30, seed=7, top_k=5)) == found.text
    assert model.generate(model.tokenizer.encode("the cat"), max_new_tokens=30, seed=7, top_k=5) == found
    assert str(found) == found.text


def test_the_defaults_are_those_of_the_command(home: Path, gptcli: Any) -> None:
    shown = gptcli("generate", "the", "-c", home / "checkpoints/demo", "--seed", 3, "--json").json["samples"][0]
    found = api.load(home / "checkpoints/demo").generate("the", seed=3)
    assert (found.text, len(found.ids), found.seed) == (shown["text"], 100, 3)


def test_without_a_seed_there_is_one_that_repeats_the_text(model: api.TextModel) -> None:
    first, second = (model.generate("the", temperature=2.0) for _ in range(2))
    assert first.seed != second.seed
    assert model.generate("the", temperature=2.0, seed=second.seed) == second


def test_probabilities_and_candidates(model: api.TextModel) -> None:
    found = model.generate("the", max_new_tokens=5, candidates=3, seed=1, temperature=1.5)
    assert len(found.probabilities) == len(found.candidates) == 5
    for token, share, candidates in zip(found.ids, found.probabilities, found.candidates, strict=True):
        assert 0 < share <= 1
        assert len(candidates) <= 3
        assert [p for _, p in candidates] == sorted((p for _, p in candidates), reverse=True)
        assert share == pytest.approx(dict(candidates).get(token, share))
    assert model.generate("the", max_new_tokens=5, seed=1, temperature=1.5).candidates == ((),) * 5


def test_settings_have_their_effect(model: api.TextModel) -> None:
    assert model.generate("the cat", stop=" on", temperature=0).text == " sat"
    assert model.generate("the cat", stop=["zz", "at"], temperature=0).finish_reason == "stop"
    greedy = model.generate("the cat", temperature=0, max_new_tokens=20)
    assert greedy == model.generate("the cat", top_k=1, seed=greedy.seed, max_new_tokens=20, temperature=0)
    drafted = model.generate("the cat", temperature=0, max_new_tokens=20, draft="ngram", seed=greedy.seed)
    assert drafted == greedy
    assert model.generate("the cat", temperature=0, max_new_tokens=20, contrast_layer=1).ids
    assert model.generate("the cat", temperature=0, max_new_tokens=20, seed=greedy.seed) == greedy


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a name": ({"temprature": 1}, "no setting 'temprature'", "temperature"),
    "a range": ({"top_k": 0}, "top_k is 0", "top_k"),
    "another": ({"top_p": 1.5}, "top_p is 1.5", "0.9"),
    "a count": ({"max_new_tokens": 0}, "max_new_tokens is 0", "default"),
    "two counts": ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens 4", "Raise"),
    "a choice": ({"overflow": "slid"}, "'slid'", "slide"),
    "a layer": ({"contrast_layer": 2}, "contrast_layer is 2", "layer from 1 to 1"),
    "a type": ({"max_new_tokens": "5"}, "max_new_tokens is '5'", "default"),
    "a draft": ({"draft": "ngrm"}, "no checkpoint ngrm", "draft takes auto, int8, int4, ngram"),
    "too long": ({"overflow": "error"}, "context", "max_new_tokens"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("call", ["generate", "stream", "batch"])
def test_mistakes_in_settings_name_the_field(model: api.TextModel, name: str, call: str) -> None:
    settings, message, hint = MISTAKES[name]
    with pytest.raises(GptcliError) as caught:
        getattr(model, call)(["the"] if call == "batch" else "the", **settings)
    if call == "batch" and name == "a draft":
        message, hint = "no draft", "draft"
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "--" not in caught.value.message


def test_mistakes_of_opening_a_model(home: Path) -> None:
    load: Any = api.load
    packed = api.quantize("demo", "mistakes-int8", force=True)
    calls: list[tuple[Any, str, str]] = [
        (lambda: load("dem"), "no checkpoint dem", "demo"),
        (lambda: load("demo", device="cpux"), "no device 'cpux'", "cpu"),
        (lambda: load("demo", dtype="float23"), "no dtype 'float23'", "float32"),
        (lambda: load("demo", quantize="int5"), "no quantize 'int5'", "int4"),
        (lambda: load(packed, quantize="int4"), "packed in 8 bits already", "Leave quantize out"),
        (lambda: load(packed).generate("the", draft="int8"), "draft int8 packs", "Leave quantize out"),
        (lambda: load("demo", dtype="bfloat16").generate("the", draft="ngram"), "A draft would", "leave draft out"),
    ]
    for call, message, hint in calls:
        with pytest.raises(GptcliError) as caught:
            call()
        assert message in caught.value.message
        assert hint in caught.value.hint
        assert "--" not in str(caught.value)


def test_mistakes_in_prompts(model: api.TextModel) -> None:
    for prompt, words in (("", "empty"), ([], "empty"), ([999], "999"), ([-1], "-1"), ("ü", "ü")):
        with pytest.raises(GptcliError, match=words):
            model.generate(prompt)
    with pytest.raises(GptcliError, match="not a sequence"):
        model.batch("the cat")
    with pytest.raises(GptcliError, match="batch_size is 0"):
        model.batch(["the"], batch_size=0)
    assert model.batch([]) == []


def test_a_batch_is_each_alone(model: api.TextModel) -> None:
    prompts = ["the cat", "the dog sat", "on", "and the dog sat on the log", "t"]
    together = model.batch(prompts, batch_size=3, seed=11, max_new_tokens=25)
    alone = [model.generate(prompt, seed=11 + number, max_new_tokens=25) for number, prompt in enumerate(prompts)]
    if obstacle(model.config) is None:
        assert together == alone
    for one, other in zip(together, alone, strict=True):  # torch rounds a batch differently than one sequence
        assert replace(one, probabilities=()) == replace(other, probabilities=())
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-5)
    assert model.batch(prompts[:2], stop=" ", temperature=0)[0].finish_reason == "stop"


def test_a_stream_has_whole_characters_and_its_result(model: api.TextModel) -> None:
    found: list[api.Completion] = []

    def read() -> Iterator[str]:
        found.append((yield from model.stream("the cat", seed=2, max_new_tokens=12)))

    text = "".join(read())
    assert found == [model.generate("the cat", seed=2, max_new_tokens=12)]
    assert text == found[0].text


def test_streams_that_take_turns_and_streams_that_are_left(model: api.TextModel) -> None:
    one, two = (model.generate("the", seed=seed, temperature=1.5).text for seed in (1, 2))
    first, second = (model.stream("the", seed=seed, temperature=1.5) for seed in (1, 2))
    pieces: list[list[str]] = [[], []]
    for _ in range(20):
        pieces[0].append(next(first))
        pieces[1].append(next(second))
        assert model.generate("the", seed=2, temperature=1.5).text == two
    assert "".join([*pieces[0], *first]) == one
    assert "".join([*pieces[1], *second]) == two

    left = model.stream("the", max_new_tokens=10**9)
    next(left)
    left.close()
    assert model.generate("the", seed=2, temperature=1.5).text == two
    for piece in model.stream("the", max_new_tokens=10**9):
        assert piece
        break
    assert model.generate("the", seed=1, temperature=1.5).text == one


def test_an_interrupted_text_leaves_the_model_whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = api.load("checkpoints/demo")
    before = model.generate("the cat sat", seed=1, max_new_tokens=20)
    engine, reads = type(model._scorer.engine), []
    forward = engine.forward

    def interrupted(self: Any, *args: Any, **settings: Any) -> Any:
        result = forward(self, *args, **settings)
        reads.append(1)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(engine, "forward", interrupted)
    stream = model.stream("the dog", max_new_tokens=50)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        model.generate("on the mat, and", max_new_tokens=50)
    with pytest.raises(GptcliError, match="interrupted"):
        list(stream)
    assert model.generate("the cat sat", seed=1, max_new_tokens=20) == before


def seeds_and_texts(model: api.TextModel, prompt: str) -> dict[int, str]:
    return {seed: model.generate(prompt, seed=seed, temperature=1.5, max_new_tokens=25).text for seed in range(3)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_on_one_model_and_on_two(home: Path, dtype: Any) -> None:
    """Four threads on two models: every text is the one that it is alone, generated, streamed or in a batch."""
    models = [api.load("checkpoints/demo", dtype=dtype, threads=1) for _ in range(2)]
    alone = {prompt: seeds_and_texts(models[0], prompt) for prompt in ("the cat", "on the")}
    begin = threading.Barrier(4)

    def work(number: int) -> None:
        model, prompt = models[number % 2], ("the cat", "on the")[number // 2]
        begin.wait()
        for seed, text in alone[prompt].items():
            settings: Settings = {"seed": seed, "temperature": 1.5, "max_new_tokens": 25}
            assert model.generate(prompt, **settings).text == text
            assert "".join(model.stream(prompt, **settings)) == text
            assert model.batch([prompt, "the dog"], **settings)[0].text == text

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result()


def test_models_are_loaded_by_threads(home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: api.load("checkpoints/demo").generate("the", seed=1).text, range(8)))
    assert len(set(texts)) == 1


def test_as_in_a_notebook(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a thread that is not the main one, under a running event loop: no signal handler, no output, no thread left
    behind that keeps the process."""
    import signal

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def cell() -> str:
        model = api.load("checkpoints/demo")
        loop = asyncio.get_running_loop()
        pieces = list(model.stream("the cat", seed=4, max_new_tokens=20))
        text = await loop.run_in_executor(None, lambda: model.generate("the cat", seed=4, max_new_tokens=20).text)
        assert "".join(pieces) == text
        assert api.evaluate("checkpoints/demo", "story.txt").perplexity < 2
        return text

    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(lambda: asyncio.run(cell())).result()) == 20
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert capfd.readouterr() == ("", "")


def test_evaluations_are_values(home: Path, gptcli: Any) -> None:
    shown = gptcli("evaluate", home / "story.txt", "-c", home / "checkpoints/demo", "--stride", 4, "--json").json
    result, found = shown["results"][0], api.evaluate(home / "checkpoints/demo", [home / "story.txt"], stride=4)
    assert (found.tokens, found.windows, found.context) == (result["tokens_scored"], result["windows"], 16)
    assert found.loss == pytest.approx(result["per_token"]["nats"])
    assert found.standard_error == pytest.approx(result["per_token"]["standard_error"])
    assert found.perplexity == pytest.approx(result["per_token"]["perplexity"])
    assert found.word_perplexity == pytest.approx(result["per_word"]["perplexity"])
    assert found.bits_per_byte == pytest.approx(result["per_byte"]["bits"])
    shown = gptcli("evaluate", "--part", "validation", "-c", home / "checkpoints/demo", "--json").json["results"][0]
    part = api.evaluate(home / "checkpoints/demo", part="validation")
    assert (part.tokens, part.loss) == (shown["tokens_scored"], pytest.approx(shown["per_token"]["nats"]))

    (home / "items.jsonl").write_text('{"text": "the cat sat"}\n{"text": "on the mat"}\n', encoding="utf-8")
    shown = gptcli("evaluate", home / "items.jsonl", "-c", home / "checkpoints/demo", "--task", "lambada", "--json")
    task = api.evaluate(api.load(home / "checkpoints/demo"), home / "items.jsonl", task="lambada")
    assert task.items == len(task.rows) == 2
    assert task.figures["accuracy"].value == shown.json["results"][0]["accuracy"]["value"]
    assert api.evaluate(home / "checkpoints/demo", home / "items.jsonl", task="lambada", limit=1).items == 1


def test_mistakes_in_evaluations(home: Path) -> None:
    evaluate: Any = api.evaluate
    demo = "checkpoints/demo"
    calls: list[tuple[Any, str]] = [
        (lambda: evaluate(demo, "story.txt", stride=0), "stride is 0"),
        (lambda: evaluate(demo, "story.txt", context=17), "context is 17"),
        (lambda: evaluate(demo, "story.txt", bos=True), "bos: "),
        (lambda: evaluate(demo, "story.txt", batch_size=0), "batch_size is 0"),
        (lambda: evaluate(demo, "story.txt", limit=1), "limit goes with task"),
        (lambda: evaluate(demo, "story.txt", task="lambda"), "task is 'lambda'"),
        (lambda: evaluate(demo, "story.txt", task="lambada", stride=1), "stride goes with a text, not with task"),
        (lambda: evaluate(demo, ["a", "b"], task="lambada"), "one file"),
        (lambda: evaluate(demo, "story.txt", task="lambada", limit=0), "limit is 0"),
        (lambda: evaluate("dem", "story.txt"), "no checkpoint dem"),
        (lambda: evaluate(demo, "no.txt"), "no.txt"),
        (lambda: evaluate(demo), "There is nothing to measure on."),
        (lambda: evaluate(demo, "story.txt", part="train"), "part measures on the run's own data"),
        (lambda: evaluate(demo, part="test"), "part is 'test'"),
        (lambda: evaluate(demo, "story.txt", part="train", task="cloze"), "part goes with a text, not with task"),
        (lambda: evaluate(api.load(demo, quantize="int8"), "story.txt"), "packed in int8"),
    ]
    for call, message in calls:
        with pytest.raises(GptcliError) as caught:
            call()
        assert message in caught.value.message
        assert "--" not in str(caught.value)


def test_checkpoints_in_and_out(home: Path, tmp_path: Path) -> None:
    checkpoint = api.load_checkpoint("demo")
    model = checkpoint.model()
    saved = api.save_checkpoint(tmp_path / "new" / "copy", model, checkpoint.tokenizer, training={"step": 7})
    again = api.load_checkpoint(saved)
    assert again.training == {"step": 7}
    assert again.config == checkpoint.config
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())
    bits = api.quantize(saved, tmp_path / "packed", bits=4)
    assert api.load(bits).generate("the", seed=1) == api.load(saved, quantize="int4").generate("the", seed=1)
    assert api.quantize(saved).name == "copy-int8"
    half = api.convert(saved, tmp_path / "half", dtype="float16")
    assert (half.path, half.origin, half.tokenizer, half.notes) == (tmp_path / "half", "gptcli", "char", [])
    assert api.load_checkpoint(half.path).training == {"step": 7}

    convert: Any = api.convert
    save: Any = api.save_checkpoint
    calls: list[tuple[Any, str]] = [
        (lambda: convert(saved, tmp_path / "x", dtype="int8"), "no dtype 'int8'"),
        (lambda: convert(saved, tmp_path / "x", format="onnx"), "no format 'onnx'"),
        (lambda: convert("nothing", tmp_path / "x"), "nothing"),
        (lambda: convert(saved, tmp_path / "half"), "exists already"),
        (lambda: convert("hf://a b/c", tmp_path / "x"), "a b/c"),
        (lambda: api.quantize(saved, tmp_path / "x", bits=5), "bits is 5"),  # type: ignore[arg-type]
        (lambda: api.quantize(bits, tmp_path / "x"), "packed in 4 bits already"),
        (lambda: save(saved, model, checkpoint.tokenizer), "exists already"),
        (lambda: save(tmp_path / "x", model, checkpoint.tokenizer, dtype="int8"), "no dtype 'int8'"),
        (lambda: save(tmp_path / "x", model, tokenizers.build("byte")), "257 tokens"),
        (lambda: api.load_checkpoint(tmp_path), "no config.json"),
    ]
    for call, message in calls:
        with pytest.raises(GptcliError) as caught:
            call()
        assert message in caught.value.message
        assert not (tmp_path / "x").exists()
