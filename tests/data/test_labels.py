"""Labelled rows as examples: labels, classes, splits and weights."""

from collections import Counter
from typing import Any

import pytest

from gptcli import tokenizers
from gptcli.data import labels
from gptcli.data.labels import Labelled
from gptcli.data.rows import BadRowError, Row
from gptcli.errors import GptcliError
from gptcli.model.loss import IGNORED

BYTES = tokenizers.build("byte")


def read(pairs: list[tuple[Any, Any]], context: int = 20) -> list[Labelled]:
    rows = [Row("mail.csv", n, {"text": text, "label": label}) for n, (text, label) in enumerate(pairs, 2)]

    def refuse(error: BadRowError) -> None:
        raise error

    return labels.read(rows, BYTES, context, refuse)


def of(*counts: int) -> list[Labelled]:
    """Rows of the labels a, b, … as often as ``counts`` says."""
    return read(
        [(f"{letter} {n}", letter) for letter, count in zip("abcdef", counts, strict=False) for n in range(count)]
    )


def test_an_example_has_its_class_at_the_last_token() -> None:
    (found,) = read([("spam!", "bad")])
    example = labels.example(found, ("bad", "good"))
    assert (example.ids, example.targets) == (list(b"spam!"), [IGNORED] * 4 + [0])
    (long,) = read([("spam and eggs", "good")], context=4)
    assert (long.ids, long.cut) == (list(b"spam"), True)
    assert labels.example(long, ("bad", "good")).targets == [IGNORED] * 3 + [1]


@pytest.mark.parametrize(
    ("value", "name"), [("spam", "spam"), (" spam ", "spam"), (3, "3"), (-1, "-1"), (3.0, "3"), (True, "true")]
)
def test_names_and_whole_numbers_are_labels(value: Any, name: str) -> None:
    assert read([("x", value)])[0].label == name


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [("x", 2.5, "the label 2.5 is a fraction"), ("x", "", "the label is empty"), ("x", None, "the label is empty"),
     ("x", ["a"], "is ['a'], not a name"), ("x", {"a": 1}, "not a name"), ("", "a", "field 'text' is empty"),
     ("  ", "a", "field 'text' is empty"), (7, "a", "field 'text' is 7, not a text")],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(text: Any, label: Any, message: str) -> None:
    with pytest.raises(BadRowError) as caught:
        read([("fine", "a"), (text, label)])
    assert "mail.csv, line 3" in caught.value.message
    assert message in caught.value.message
    assert "skip_bad" in caught.value.hint


def test_bad_rows_are_left_out_where_that_is_asked_for() -> None:
    rows = [Row("mail.csv", n, {"text": text, "label": "a"}) for n, text in enumerate(("x", "", "y"))]
    bad: list[BadRowError] = []
    assert [each.text for each in labels.read(rows, BYTES, 9, bad.append)] == ["x", "y"]
    assert len(bad) == 1


def test_the_labels_are_sorted_numbers_by_value() -> None:
    assert labels.labels_of(read([("x", "b"), ("y", "a"), ("z", "b"), ("w", "a")])) == ("a", "b")
    assert labels.labels_of(read([("x", 10), ("y", 9), ("z", 10), ("w", 9)])) == ("9", "10")
    assert labels.labels_of(read([("x", "10"), ("y", "9"), ("z", "x"), ("w", "x"), ("v", "9"), ("u", "10")])) == (
        "10", "9", "x",
    )  # fmt: skip


def test_one_label_alone_and_a_label_for_every_row_are_refused() -> None:
    with pytest.raises(GptcliError, match=r"mail.csv: all 3 rows have the label 'a'") as caught:
        labels.labels_of(of(3))
    assert "at least 2 labels" in caught.value.hint
    with pytest.raises(GptcliError, match=r"mail.csv: 4 rows have 4 labels, among them '10', '13'") as caught:
        labels.labels_of(read([(str(n), 10 + 3 * n) for n in range(4)]))
    assert "name ranges" in caught.value.hint


def test_a_label_that_is_not_known_is_refused() -> None:
    with pytest.raises(BadRowError, match=r"line 2: the label 'c' is none that the classifier has learned: 'a', 'b'"):
        labels.example(read([("x", "c")])[0], ("a", "b"))


def test_every_label_is_split_alike() -> None:
    found = of(100, 20, 2, 1)
    train, validation = labels.split(found, 0.9, seed=1)
    assert Counter(each.label for each in validation) == {"a": 10, "b": 2, "c": 1}
    assert Counter(each.label for each in train) == {"a": 90, "b": 18, "c": 1, "d": 1}
    assert sorted(each.row.line for each in train + validation) == [each.row.line for each in found]
    assert labels.split(found, 0.9, seed=1) == (train, validation)
    assert labels.split(found, 0.9, seed=2)[1] != validation
    assert labels.split(found, 1.0, seed=1) == (found, [])


def test_unbalanced_labels_are_weighted_by_the_inverse_of_their_frequency() -> None:
    assert labels.weights(of(30, 20), ("a", "b")) == ()
    found = of(90, 10)
    weights = labels.weights(found, ("a", "b"))
    assert weights == pytest.approx((100 / 180, 100 / 20))
    assert sum(weights["ab".index(each.label)] for each in found) == pytest.approx(len(found))
    told = labels.lines(found, ("a", "b"), weights)
    assert told[0] == "2 labels: 'a' 90, 'b' 10."
    assert "unbalanced" in told[1]
    assert "0.56 for 'a' to 5.00 for 'b'" in told[1]
    assert labels.lines(of(3, 3), ("a", "b"), ()) == ["2 labels: 'a' 3, 'b' 3."]
    numbers = read([("x", 0), ("y", 1)])
    assert labels.lines(numbers, ("0", "1"), ())[0].endswith("The labels are numbers, and taken as names.")
