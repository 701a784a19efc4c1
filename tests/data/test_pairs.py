"""Pairs of answers: in one batch side by side, numbered, never divided."""

from gptcli.data.examples import Example, Pairs
from gptcli.model.loss import IGNORED


def test_a_batch_has_both_answers_and_the_number_of_each_pair() -> None:
    one = Example([1, 2, 3], [IGNORED, 3, 4]), Example([1, 2], [IGNORED, 9])
    two = Example([5], [6]), Example([5], [7])
    pairs = Pairs([one, two], 2, first=10)
    inputs, targets = pairs.batch([1, 0])
    assert inputs.tolist() == [[[5, 0, 0], [5, 0, 0]], [[1, 2, 3], [1, 2, 0]]]
    assert targets[:, :, :3].tolist() == [
        [[6, IGNORED, IGNORED], [7, IGNORED, IGNORED]],
        [[IGNORED, 3, 4], [IGNORED, 9, IGNORED]],
    ]
    assert targets[:, :, 3].tolist() == [[11, 11], [10, 10]]
    assert (pairs.weight(targets), pairs.tokens, pairs.context_length, len(pairs), pairs.rest()) == (2.0, 7, 6, 2, None)
    share, _, total = pairs.step([1, 0], slice(0, 1))
    assert (share.shape, total) == ((1, 2, 3), None)
    assert pairs.identity != Pairs([one, (two[1], two[0])], 2).identity


def test_an_epoch_has_every_pair_once() -> None:
    pairs = Pairs([(Example([n] * (n % 5 + 1), [1] * (n % 5 + 1)), Example([n], [2])) for n in range(23)], 4)
    assert sorted(pairs.order(1, 1)) == list(range(23))
    assert pairs.order(1, 1) == pairs.order(1, 1)
    assert pairs.order(1, 1) != pairs.order(1, 2)
    assert sorted(pairs.by_length()) == list(range(23))
