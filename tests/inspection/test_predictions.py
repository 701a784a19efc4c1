"""Predictions, the logit lens and a token's walk, held against the model's own logits."""

import math

import pytest
import torch
from models import tiny_model
from torch.nn import functional as F

from gptcli.inspection import predictions
from gptcli.inspection.capture import capture

IDS = torch.randint(61, (17,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rows_at_once", [3, 128])
def test_predictions_are_the_models(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(predictions, "ROWS_AT_ONCE", rows_at_once)
    model = tiny_model()
    found = predictions.predictions(model, capture(model, IDS, weights=False).final, IDS, 5)
    with torch.no_grad():
        logits = model(IDS[None])[0]
    top = logits.softmax(-1).topk(5)
    assert torch.equal(found.top_ids, top.indices)
    torch.testing.assert_close(found.top_probabilities, top.values)
    loss = F.cross_entropy(logits[:-1], IDS[1:]).item()
    assert found.total_bits == pytest.approx(16 * loss / math.log(2), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert found.bits[0].isnan()
    for n in range(1, 17):
        order = logits[n - 1].argsort(descending=True).tolist()
        assert found.ranks[n] == order.index(int(IDS[n])) + 1


def test_one_token_has_no_surprise() -> None:
    model = tiny_model()
    found = predictions.predictions(model, capture(model, IDS[:1], weights=False).final, IDS[:1], 100)
    assert found.top_ids.shape == (1, 61)
    assert math.isnan(found.perplexity)


def test_the_lens_ends_in_the_models_own_prediction() -> None:
    model = tiny_model(tie_weights=False)
    captured = capture(model, IDS, weights=False)
    stages = predictions.lens(model, captured)
    assert len(stages) == 3
    own = predictions.predictions(model, captured.final, IDS, 1)
    assert torch.equal(stages[-1].top_ids, own.top_ids)
    torch.testing.assert_close(stages[-1].bits[1:], own.bits[1:])
    with torch.no_grad():
        first = F.linear(model.ln_f(model.wte(IDS) + model.wpe.weight[:17]), model.head)
    assert torch.equal(stages[0].top_ids[:, 0], first.argmax(-1))


@pytest.mark.parametrize("position", [0, 9, 16])
@pytest.mark.parametrize("changes", [{}, {"tie_weights": False, "qkv_bias": False}])
def test_the_votes_add_up_to_the_logit(position: int, changes: dict[str, object]) -> None:
    model = tiny_model(**changes)
    walk = predictions.walk(model, capture(model, IDS, weights=False), position)
    with torch.no_grad():
        logits = model(IDS[None])[0, position]
    torch.testing.assert_close(walk.logits, logits, atol=1e-4, rtol=1e-4)
    assert walk.chosen == int(logits.argmax())
    assert float(walk.votes.sum()) + walk.bias_vote == pytest.approx(float(logits[walk.chosen]), abs=1e-3)
    assert len(walk.stages) == 2 + 2 * model.config.n_layers
