"""Examples: padded batches count as their examples one by one, and only targets have a loss."""

import random

import pytest
import torch

from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.data.examples import POOL, Example, Examples, ExampleSet
from gptcli.model.gpt import GPTModel
from gptcli.model.loss import IGNORED, chunked_cross_entropy
from gptcli.training import trainer
from gptcli.training.events import Evaluated, Stepped
from gptcli.training.losses import MeanLoss
from gptcli.training.step import Stepper

CONFIG = GPTConfig(vocab_size=19, context_length=12, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.0)


def some_examples(count: int, seed: int = 1, longest: int = 12) -> list[Example]:
    draw, made = random.Random(seed), []
    for _ in range(count):
        length = draw.randint(2, longest)
        ids = [draw.randrange(19) for _ in range(length + 1)]
        asked = draw.randrange(length)
        made.append(Example(ids[:-1], [IGNORED] * asked + ids[asked + 1 :]))
    return made


def model() -> GPTModel:
    torch.manual_seed(3)
    return GPTModel(CONFIG)


def gradients(of: GPTModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


def test_a_batch_is_padded_on_the_right_and_padding_has_no_target() -> None:
    examples = Examples([Example([1, 2, 3], [IGNORED, 3, 4]), Example([5], [6])], 2)
    inputs, targets = examples.batch([0, 1])
    assert inputs.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert targets.tolist() == [[IGNORED, 3, 4], [6, IGNORED, IGNORED]]
    assert (examples.weight(targets), examples.tokens, examples.context_length, examples.rest()) == (3.0, 4, 3, None)


def test_a_share_of_a_step_is_as_wide_as_the_whole_step_and_knows_its_weight() -> None:
    examples = Examples([Example([1, 2, 3], [IGNORED, 3, 4]), Example([5], [6])], 2)
    inputs, _, total = examples.step([0, 1], slice(1, 2))
    assert (inputs.tolist(), total) == ([[5, 0, 0]], 3.0)


@pytest.mark.parametrize("count", [1, 7, 8, 61, 700])
def test_an_epoch_has_every_example_once_and_neighbours_of_similar_length(count: int) -> None:
    examples = Examples(some_examples(count), 4)
    order = examples.order(7, 3)
    assert sorted(order) == list(range(count))
    assert order == examples.order(7, 3)
    if count > 60:
        assert order != examples.order(7, 4)
        spans = [
            max(examples.lengths[n] for n in order[start : start + 4])
            - min(examples.lengths[n] for n in order[start : start + 4])
            for start in range(0, count // 4 * 4, 4)
        ]
        assert sum(spans) / len(spans) < 3  # of 11, where examples are not sorted
    assert POOL * 4 < 700


def test_a_padded_batch_has_the_loss_and_the_gradients_of_its_examples_one_by_one() -> None:
    examples = Examples(some_examples(6), 6)
    together, alone = model(), model()
    loss = MeanLoss(together, has_ignored=True)(*examples.batch(range(6)))
    loss.backward()
    total, found = sum(examples.counts), 0.0
    for number in range(6):
        inputs, targets = examples.batch([number])
        one = MeanLoss(alone, has_ignored=True)(inputs, targets) * examples.counts[number] / total
        one.backward()
        found += float(one.detach())
    assert found == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, gradient in gradients(together).items():
        torch.testing.assert_close(gradient, gradients(alone)[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_loss_is_torchs_and_logits_without_target_get_no_gradient(frozen: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 4, 8, requires_grad=True)
    head = torch.randn(11, 8, requires_grad=not frozen)
    targets = torch.randint(11, (3, 4))
    targets[0, :3] = targets[2] = IGNORED
    logits = torch.nn.functional.linear(hidden, head)
    logits.retain_grad()
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 11), targets.view(-1), ignore_index=IGNORED)
    expected.backward()
    assert logits.grad is not None
    assert hidden.grad is not None
    assert not logits.grad[targets == IGNORED].any()
    of_hidden, of_head = hidden.grad.clone(), None if head.grad is None else head.grad.clone()
    hidden.grad = head.grad = None
    loss = chunked_cross_entropy(hidden, head, targets, has_ignored=True)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, of_hidden)
    assert not hidden.grad[targets == IGNORED].any()
    if of_head is None:
        assert head.grad is None
    else:
        torch.testing.assert_close(head.grad, of_head)
    with torch.no_grad():
        torch.testing.assert_close(chunked_cross_entropy(hidden, head, targets, has_ignored=True), expected)


@pytest.mark.parametrize("drop_rate", [0.0, 0.1])
def test_parts_of_a_step_move_rounding_only(drop_rate: float) -> None:
    examples = Examples(some_examples(8), 8)
    found = []
    for parts in (1, 3, 8):
        torch.manual_seed(3)
        trained = GPTModel(CONFIG.with_changes(drop_rate=drop_rate))
        recipe = RecipeConfig(batch_size=8, optimizer="sgd", dtype="float32")
        stepper = Stepper(trained, recipe, RuntimeConfig(accumulate=parts), loss=MeanLoss(trained, True))
        inputs, targets, total = examples.step(range(8), slice(0, 8))
        losses = [stepper.launch(inputs, targets, 0.1, number, total).outcome().loss for number in range(5)]
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_a_run_on_examples_learns_them_and_its_mean_loss_counts_targets() -> None:
    train, held_out = Examples(some_examples(20), 4), Examples(some_examples(6, seed=2), 4)
    examples = ExampleSet(train, held_out, characters=100)
    recipe = RecipeConfig(
        batch_size=4, epochs=30, eval_every=5, eval_all=True, learning_rate=1e-2, dtype="float32", context_length=12
    )
    trained = model()
    events = list(trainer.train(trained, examples, recipe))
    assert len([event for event in events if isinstance(event, Stepped)]) == 150
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert evaluations[-1].train_loss < evaluations[0].train_loss / 2
    trained.eval()
    loss = MeanLoss(trained, has_ignored=True)
    with torch.no_grad():
        each = [float(loss(*held_out.batch([number]))) * held_out.counts[number] for number in range(6)]
    assert evaluations[-1].val_loss == pytest.approx(sum(each) / sum(held_out.counts), rel=1e-5)


def test_a_frozen_parameter_stays_as_it_is_and_has_no_state() -> None:
    examples = Examples(some_examples(4), 4)
    trained = model()
    for name, parameter in trained.named_parameters():
        parameter.requires_grad = name.startswith("h.1.")
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    recipe = RecipeConfig(batch_size=4, dtype="float32")
    stepper = Stepper(trained, recipe, RuntimeConfig(), loss=MeanLoss(trained, True))
    inputs, targets, total = examples.step(range(4), slice(0, 4))
    stepper.launch(inputs, targets, 1e-2, 0, total).outcome()
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.startswith("h.1.")), name
    assert {name.split("/")[0] for name in stepper.state()} == {n for n in before if n.startswith("h.1.")}
