"""A program that uses every name of the public API, for ``mypy --strict``; tests/test_api.py runs it as well."""

from collections.abc import Iterator
from pathlib import Path

import torch

import gptcli


def speak(path: Path) -> gptcli.Completion:
    model: gptcli.TextModel = gptcli.load(path, device="cpu", dtype="float32", quantize=None, threads=1)
    completion = model.generate("the cat", max_new_tokens=5, temperature=0.5, top_k=3, stop=["."], seed=1)
    pieces: Iterator[str] = model.stream("the cat", max_new_tokens=5)
    text: str = completion.text + "".join(pieces)
    both: list[gptcli.Completion] = model.batch([text, model.tokenizer.encode("the dog")], max_new_tokens=5)
    ids: tuple[int, ...] = both[0].ids
    layers: int = model.config.n_layers
    assert len(ids) <= 5 < 5 + layers
    return completion


def look(path: Path) -> None:
    checkpoint: gptcli.Checkpoint = gptcli.load_checkpoint(path)
    model: gptcli.GPTModel = checkpoint.model()
    logits: torch.Tensor = model(torch.tensor([checkpoint.tokenizer.encode("the cat")]))
    assert logits.shape[-1] == checkpoint.config.vocab_size
    saved: Path = gptcli.save_checkpoint("user/copy", model, checkpoint.tokenizer, dtype="bfloat16", force=True)
    packed: Path = gptcli.quantize(path, "user/packed", bits=4, force=True)
    half: Path = gptcli.convert(saved, "user/half", format="hf", dtype="float16", force=True).path
    for each in (packed, half):
        loss: float = gptcli.evaluate(each, ["story.txt"], stride=8).loss
        assert loss > 0
    held_out: int = gptcli.evaluate(path, part="validation").tokens
    assert held_out > 0


def classify() -> None:
    classifier = gptcli.Classifier("animals", device="cpu", threads=1)
    for found in classifier.classify(["the cat", "the dog"]):
        assert found.probabilities[found.label] == found.probability
    scores = gptcli.evaluate_labels(classifier, ["rows.jsonl"])
    recall: float | None = scores.figures[0].recall
    assert recall is not None
    assert scores.after is None


def train() -> None:
    steps: list[int] = []

    def watch(event: gptcli.events.Event) -> None:
        if isinstance(event, gptcli.events.Stepped):
            steps.append(event.step)
            if event.step == 2:
                raise gptcli.StopTraining

    recipe = gptcli.RecipeConfig(max_steps=4, learning_rate=1e-3)
    runtime = gptcli.RuntimeConfig(device="cpu", threads=1, keep=1)
    shape = gptcli.GPTConfig(context_length=16, emb_dim=16, n_heads=2, n_layers=1)
    run: Path = gptcli.train(
        "story.txt", "user/run", model=shape, tokenizer="char", recipe=recipe, runtime=runtime, on_event=watch
    )
    assert gptcli.resume(run, on_event=watch, max_steps=5, threads=1) == run
    assert steps == [0, 1, 2, 3, 4]
    settings = gptcli.FinetuneConfig(max_steps=1, train="last:1", loss_on="all")
    taught: Path = gptcli.finetune(["story.txt"], "user/taught", init_from=run, settings=settings, runtime=runtime)
    assert gptcli.load_checkpoint(taught).training["step"] == 1
    adapter = gptcli.finetune(
        ["story.txt"], "user/adapter", init_from=run, settings=gptcli.FinetuneConfig(max_steps=1, train="lora:2")
    )
    merged: Path = gptcli.merge(adapter, "user/merged", base=run, force=True)
    assert gptcli.load(merged).config == gptcli.load(run).config


def main() -> None:
    try:
        gptcli.load("no such checkpoint")
    except gptcli.GptcliError as error:
        lines: tuple[str, str] = error.message, error.hint
    shape = gptcli.GPTConfig(vocab_size=30, context_length=16, emb_dim=16, n_heads=2, n_layers=2)
    sampling = gptcli.SamplingConfig(temperature=0.7, top_p=0.9)
    assert (shape.head_dim, sampling.top_k, len(lines)) == (8, None, 2)
    assert gptcli.__version__
    assert gptcli.GenerationConfig(min_new_tokens=1).max_new_tokens == 100
    event: gptcli.events.Event = gptcli.events.Noted("text")
    assert isinstance(event, gptcli.events.Noted)
    speak(Path("checkpoints/demo"))
    look(Path("checkpoints/demo"))
    classify()
    train()


if __name__ == "__main__":
    main()
