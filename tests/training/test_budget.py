"""What a run for a fixed time trains: the rules, and what has been set by hand."""

import math
from typing import Any

import pytest
import torch

from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.data.dataset import Corpus, make_corpus
from gptcli.errors import SettingError
from gptcli.model.cost import parameter_count
from gptcli.tokenizers.byte import ByteTokenizer
from gptcli.training import budget
from gptcli.training.budget import Budget

TEXT = "".join(f"{number} is a number, and {number * number} is its square.\n" for number in range(400))


SHAPE = ("emb_dim", "n_layers", "n_heads", "drop_rate", "tie_weights")


class Machine:
    """A clock, and a step whose duration is that of a given number of operations a second."""

    def __init__(self, rate: float) -> None:
        self.rate, self.now = rate, 100.0

    def perf_counter(self) -> float:
        return self.now

    def stepper(self, model: Any, recipe: RecipeConfig, runtime: RuntimeConfig) -> Any:
        machine = self

        class Stepper:
            def step(self, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> None:
                machine.now += 6 * parameter_count(model.config) * inputs.numel() / machine.rate

        return Stepper()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(20e9)
    monkeypatch.setattr(budget, "time", made)
    monkeypatch.setattr(budget, "Stepper", made.stepper)
    return made


def chosen(
    machine: Machine,
    seconds: float = 60,
    given: frozenset[str] = frozenset(),
    tokens: int = 10_000,
    shard: bool = False,
    **settings: Any,
) -> tuple[GPTConfig, RecipeConfig, RuntimeConfig, list[str]]:
    lines: list[str] = []
    corpus = Corpus(torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens // 9, dtype=torch.int32), tokens, tokens)
    shape = {name: settings.pop(name) for name in list(settings) if name in SHAPE}
    made = Budget(seconds, machine.now, given, lines.append).choose(
        corpus, ByteTokenizer(), GPTConfig(**shape), RecipeConfig(**settings), RuntimeConfig(threads=1, shard=shard)
    )
    return (*made, lines)


def test_more_time_trains_a_larger_model_on_larger_steps(machine: Machine) -> None:
    short, recipe, _, _ = chosen(machine, 60, tokens=1_000_000)
    long, longer, _, _ = chosen(machine, 3600, tokens=1_000_000)
    assert parameter_count(long) > 2 * parameter_count(short)
    assert longer.batch_size > recipe.batch_size
    assert longer.eval_every > recipe.eval_every or longer.batch_size > 4 * recipe.batch_size


def test_a_text_that_is_seen_often_is_regularised(machine: Machine) -> None:
    once, recipe, _, _ = chosen(machine, tokens=3_000_000)
    often, regular, _, _ = chosen(machine, tokens=5_000)
    assert once.drop_rate == often.drop_rate == 0
    assert recipe.weight_decay < 1 < regular.weight_decay
    assert parameter_count(often) <= budget.PARAMETERS * math.sqrt(5_000)


def test_what_is_set_is_not_chosen(machine: Machine) -> None:
    given = frozenset({"emb_dim", "n_layers", "n_heads", "drop_rate", "learning_rate", "batch_size", "context_length",
                       "optimizer", "weight_decay", "eval_every", "warmup_steps", "tie_weights", "stride"})  # fmt: skip
    model, recipe, _, _ = chosen(
        machine, given=given, emb_dim=48, n_layers=2, n_heads=3, drop_rate=0.25, tie_weights=False, learning_rate=1e-3,
        batch_size=5, context_length=32, optimizer="adamw", weight_decay=0.0, eval_every=7, warmup_steps=3, stride=16,
    )  # fmt: skip
    assert (model.emb_dim, model.n_layers, model.n_heads, model.drop_rate) == (48, 2, 3, 0.25)
    assert not model.tie_weights
    assert (recipe.learning_rate, recipe.batch_size, recipe.context_length, recipe.stride) == (1e-3, 5, 32, 16)
    assert (recipe.optimizer, recipe.weight_decay, recipe.eval_every, recipe.warmup_steps) == ("adamw", 0.0, 7, 3)
    assert (recipe.schedule, recipe.for_time, recipe.cooldown_start) == ("wsd", 60, None)


def test_weights_are_averaged_unless_that_is_set_or_they_are_shards(machine: Machine) -> None:
    _, recipe, _, lines = chosen(machine)
    assert recipe.average_share == budget.AVERAGE == 0.1
    assert lines[-1].endswith("in the last 29%, and weights are averaged over the last 10%.")
    for share in (0.0, 0.3):
        _, recipe, _, lines = chosen(machine, given=frozenset({"average_share"}), average_share=share)
        assert recipe.average_share == share
        assert ("averaged over the last 30%" in lines[-1]) == (share > 0) == ("averaged" in lines[-1])
    assert chosen(machine, shard=True)[1].average_share == 0


def test_the_plan_is_some_lines(machine: Machine) -> None:
    *_, lines = chosen(machine)
    assert len(lines) == 3
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize(("size", "vocabulary"), [(100, 512), (19_000, 1024), (1_000_000, 4096), (10**9, 32_768)])
def test_the_vocabulary_grows_with_the_text(size: int, vocabulary: int) -> None:
    assert budget.vocabulary_size(size) == vocabulary


def test_the_tokenizer_is_the_text_s_own() -> None:
    lines: list[str] = []
    tokenizer = Budget(60, 0.0, (), lines.append).tokenizer([TEXT], len(TEXT))
    assert tokenizer.kind == "bpe"
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    corpus = make_corpus([TEXT], tokenizer, 0.9)
    assert corpus.tokens < len(TEXT) / 2
    assert "0% of its lines repeat" in lines[0]
    assert budget.repetition("a\nb\n\na\na\n") == 0.5


@pytest.mark.parametrize("documents", [1, 100])
def test_windows_are_as_long_as_documents_allow(documents: int) -> None:
    assert budget.context_length(300_000, documents) == 128
    assert budget.context_length(3_000, documents) == (64 if documents == 1 else 32)
    assert budget.context_length(100, 1) == 16


def test_too_little_time_is_left(machine: Machine) -> None:
    corpus = Corpus(torch.zeros(500, dtype=torch.int32), torch.zeros(9, dtype=torch.int32), 500, 500)
    late = Budget(30, machine.now - 25, (), print)
    with pytest.raises(SettingError, match="for_time"):
        late.choose(corpus, ByteTokenizer(), GPTConfig(), RecipeConfig(), RuntimeConfig())


def test_a_shape_that_is_far_too_slow_is_not_measured_long(machine: Machine) -> None:
    machine.rate = 1e6
    model, recipe, _, _ = chosen(machine, 60)
    assert machine.now < 100 + 3600
    assert recipe.max_steps is not None
    assert parameter_count(model) < 200_000


def test_the_measured_steps_take_the_kernels_that_a_run_takes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    monkeypatch.setattr(budget.train_kernels, "open_kernels", lambda report: "opened")
    monkeypatch.setattr(budget.train_kernels, "for_step", lambda *step: used.append(step))
    given = frozenset({"emb_dim", "n_layers", "n_heads", "batch_size", "context_length"})
    chosen(machine, given=given, emb_dim=96, n_layers=1, n_heads=3, batch_size=9, context_length=128, dtype="bfloat16")
    assert used == [(torch.device("cpu"), "bfloat16", 9 * 128, 96)]
