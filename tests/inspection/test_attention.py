"""Scores, names, links and rollout of attention, on maps whose answer is known."""

import math
from itertools import pairwise

import pytest
import torch
from models import tiny_model
from torch import Tensor

from gptcli.inspection import attention, html, plots
from gptcli.inspection.capture import capture


def heads_that(ids: Tensor) -> Tensor:
    """(1, 5, T, T): heads that look at the first token, the previous, by induction, at themselves, and everywhere."""
    length = ids.size(0)
    maps = torch.zeros(5, length, length)
    for i in range(length):
        maps[0, i, 0] = 1
        maps[1, i, max(0, i - 1)] = 1
        followed = [j for j in range(1, i) if ids[j - 1] == ids[i]]
        maps[2, i, followed[-1] if followed else 0] = 1
        maps[3, i, i] = 1
        maps[4, i, : i + 1] = 1 / (i + 1)
    return maps[None]


IDS = torch.tensor([7, 3, 9, 4, 8, 7, 3, 9, 4, 8])


def test_heads_are_named_by_what_they_do() -> None:
    scores = attention.head_scores(heads_that(IDS), IDS)
    names = [attention.role(scores, 0, head) for head in range(5)]
    assert names == ["first token", "previous token", "induction", "itself", "spread evenly"]


def test_scores_are_what_their_names_say() -> None:
    scores = attention.head_scores(heads_that(IDS), IDS)
    for name, head in (("first token", 0), ("previous token", 1), ("induction", 2), ("itself", 3)):
        assert scores.shares[name][0, head] == 1
        assert scores.lifts[name][0, 4].abs() < 1e-6, "even attention has no lift"
    assert torch.equal(scores.entropy[0, :4], torch.zeros(4))
    assert scores.entropy[0, 4] == pytest.approx(sum(math.log2(n) for n in range(2, 11)) / 9)
    assert scores.evenness[0, 4] == pytest.approx(1)
    assert scores.distance[0].tolist() == pytest.approx([5, 1, scores.distance[0, 2].item(), 0, 2.5])


def test_without_a_repeated_token_there_is_no_induction_score() -> None:
    ids = torch.arange(6)
    scores = attention.head_scores(heads_that(ids), ids)
    assert scores.shares["induction"].isnan().all()
    assert attention.role(scores, 0, 0) == "first token"


def test_a_head_without_a_clear_score_has_no_name() -> None:
    maps = 0.5 * heads_that(IDS)[:, [0]] + 0.5 * heads_that(IDS)[:, [3]]
    scores = attention.head_scores(maps, IDS)
    assert attention.role(scores, 0, 0) == ""


def test_one_token_has_neither_scores_nor_names() -> None:
    scores = attention.head_scores(torch.ones(1, 2, 1, 1), torch.tensor([5]))
    assert attention.role(scores, 0, 1) == ""
    assert attention.most_telling(scores, 5) == [(0, 0), (0, 1)]


def test_the_most_telling_heads_hold_the_best_of_each_kind() -> None:
    many_first = heads_that(IDS)[:, [0, 0, 0, 0, 2, 4]]
    weaker = 0.8 * many_first + 0.2 * heads_that(IDS)[:, [4]]
    weaker[:, :4] = many_first[:, :4]
    assert (0, 4) in attention.most_telling(attention.head_scores(weaker, IDS), 3)


def test_the_strongest_links_come_in_order_and_leave_zeros_out() -> None:
    assert attention.strongest(torch.tensor([0.25, 0.0, 0.75, 0.0]), 3) == [(2, 0.75), (0, 0.25)]


def test_rollout_multiplies_the_layers_through() -> None:
    weights = capture(tiny_model(n_layers=3), torch.arange(9)).weights
    rollout = attention.rollout(weights)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(3, 9))
    assert torch.equal(rollout, rollout.tril())
    step = [0.5 * (torch.eye(9) + maps.mean(0)) for maps in weights]
    torch.testing.assert_close(rollout[-1], step[2] @ step[1] @ step[0])


def test_pooling_keeps_all_of_the_attention() -> None:
    weights = capture(tiny_model(), torch.arange(17)).weights
    small = attention.pooled(weights, 5)
    assert small.shape == (2, 3, 5, 5)
    torch.testing.assert_close(small.sum(-1), torch.ones(2, 3, 5))
    assert torch.equal(small, small.tril())
    torch.testing.assert_close(attention.pooled(weights, 99), weights)


@pytest.mark.parametrize("length", [12, 64, 300])
def test_token_labels_do_not_overlap(length: int) -> None:
    """Every label of the picture, measured: neither axis has two that touch."""
    drawn: list[tuple[object, object]] = []
    original = plots._png

    def keep(figure: object) -> bytes:
        from matplotlib.figure import Figure

        assert isinstance(figure, Figure)
        figure.canvas.draw()
        axes = figure.axes[0]
        for labels, start, end in ((axes.get_xticklabels(), "x0", "x1"), (axes.get_yticklabels(), "y0", "y1")):
            boxes = sorted(
                (getattr(b, start), getattr(b, end)) for b in (label.get_window_extent() for label in labels)
            )
            drawn.extend(pairwise(boxes))
            assert all(a[1] <= b[0] + 0.5 for a, b in pairwise(boxes)), (start, boxes[:3])
        return original(figure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_png", keep)
        weights = torch.full((length, length), 1 / length).numpy()
        picture = plots.attention_map(weights, ["·journeying$x_1$"] * length, "$title")
    assert picture.startswith(b"\x89PNG")
    assert len(drawn) >= 2 * (min(length, 50) - 1)


def test_a_page_of_sixty_four_tokens_of_gpt2_small_is_small() -> None:
    length = 64
    maps = torch.rand(12, 12, length, length).tril()
    maps = maps / maps.sum(-1, keepdim=True)
    ids = torch.arange(length)
    page = html.attention_page(["·journey"] * length, maps, attention.head_scores(maps, ids), "small")
    assert len(page.encode()) < 2_000_000
