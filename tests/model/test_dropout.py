"""The hand-written backward passes against autograd on the plain formula."""

import pytest
import torch
from torch.nn import functional as F

from gptcli.model import dropout as autograd
from gptcli.model.dropout import dropout, dropout_attention, split_heads
from gptcli.model.dropout_mask import keep_mask, step_seeds, threshold
from gptcli.model.gpt import attention_weights
from gptcli.model.loss import chunked_cross_entropy


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 17 * 5, 2**26])
def test_chunked_cross_entropy_equals_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr("gptcli.model.loss.CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 7, 11), torch.randn(17, 11)
    targets = torch.randint(0, 17, (3, 7))
    grads = []
    for loss_of in (
        lambda h, w: chunked_cross_entropy(h, w, targets),
        lambda h, w: F.cross_entropy((h @ w.T).flatten(0, 1), targets.flatten()),
    ):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = loss_of(h, w)
        (3 * loss).backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, head, targets = torch.randn(9, 4), torch.randn(5, 4, requires_grad=True), torch.randint(0, 5, (9,))
    with torch.no_grad():
        torch.testing.assert_close(
            chunked_cross_entropy(hidden, head, targets), F.cross_entropy(hidden @ head.T, targets)
        )


@pytest.mark.parametrize(("group_bytes", "queries"), [(1, 128), (4 * 13 * 13 * 2, 5), (2**22, 6), (2**22, 128)])
def test_dropout_attention_equals_dropping_the_plain_weights(
    monkeypatch: pytest.MonkeyPatch, group_bytes: int, queries: int
) -> None:
    monkeypatch.setattr(autograd, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr(autograd, "QUERIES", queries)
    inputs, upstream = torch.randn(2, 13, 3 * 5 * 8), torch.randn(2, 13, 5 * 8)
    seeds, results = step_seeds(1, 2, 3, 2, 0)[0, 0], []
    for fast in (True, False):
        qkv = inputs.clone().requires_grad_()
        if fast:
            out = dropout_attention(qkv, 5, 0.25, 0.5 / 8**0.5, seeds)
        else:
            q, k, v = split_heads(qkv, 5)
            dropped, factor = threshold(0.25)
            mask = keep_mask(seeds, 5, 13, 13, dropped, True)
            out = ((attention_weights(q / 2, k) * mask * factor) @ v).transpose(1, 2).flatten(2)
        out.backward(upstream)
        results.append((out.detach(), qkv.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_dropout_zeroes_its_share_keeps_the_mean_and_drops_the_same_gradients() -> None:
    torch.manual_seed(0)
    x = torch.ones(10, 100, 1001, requires_grad=True)
    y = dropout(x, 0.1, training=True)
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(0.1, abs=5 * (0.09 / x.numel()) ** 0.5)  # five standard errors
    assert y.mean().item() == pytest.approx(1.0, abs=2e-3)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert dropout(x, 0.1, training=False) is x
    assert dropout(x, 0.0, training=True) is x
