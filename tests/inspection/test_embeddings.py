"""Vectors compared."""

import pytest
import torch
from models import tiny_model

from gptcli.inspection import embeddings
from gptcli.inspection.capture import capture


def test_nearest_neighbours_are_sorted_and_leave_the_word_out() -> None:
    table = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    found = embeddings.nearest(table[0], table, 3, leave_out=[0])
    assert [i for i, _ in found] == [1, 2, 4] or [i for i, _ in found] == [1, 4, 2]
    assert found[0][1] == pytest.approx(2 / (4 + 0.01) ** 0.5)
    assert len(embeddings.nearest(table[0], table, 99, leave_out=[0, 3])) == 3


def test_an_analogy_is_found_where_there_is_one() -> None:
    man, woman, crown = torch.eye(3)
    table = torch.stack([man, woman, man + crown, woman + crown, crown])
    assert embeddings.nearest(table[2] - table[0] + table[1], table, 1, [0, 1, 2])[0][0] == 3


def test_two_dimensions_keep_the_distances_of_a_plane() -> None:
    torch.manual_seed(0)
    flat = torch.randn(9, 2) @ torch.linalg.qr(torch.randn(7, 2)).Q.T + torch.randn(7)
    points, shares = embeddings.two_dimensions(flat)
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(flat, flat), atol=1e-4, rtol=1e-4)
    assert sum(shares) == pytest.approx(1)
    assert shares[0] >= shares[1]


@pytest.mark.parametrize("count", [1, 2])
def test_two_dimensions_of_hardly_any_vectors(count: int) -> None:
    points, _ = embeddings.two_dimensions(torch.arange(count * 5.0).reshape(count, 5))
    assert points.shape == (count, 2)
    assert points.isfinite().all()


def test_occurrences_of_a_word_in_any_of_its_spellings() -> None:
    assert embeddings.occurrences([1, 2, 3, 1, 2, 4, 3], [[1, 2], [4]]) == [1, 4, 5]


def test_a_word_in_two_places_is_the_same_at_first_and_not_later() -> None:
    captured = capture(tiny_model(), torch.tensor([5, 6, 7, 5]), weights=False)
    stages = dict(embeddings.similarity_by_layer(captured, 0, 3))
    assert list(stages) == ["token vector", "with its position", "after layer 0", "after layer 1"]
    assert stages["token vector"] == pytest.approx(1)
    assert stages["with its position"] < 0.999
