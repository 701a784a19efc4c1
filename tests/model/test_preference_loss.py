"""The loss of preferences against its formula in float64."""

import math

import pytest
import torch

from gptcli.model.loss import IGNORED, log_probabilities, preference_loss


def some(dtype: torch.dtype, frozen: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(6, 5, 8, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(13, 8, dtype=torch.float64).to(dtype).requires_grad_(not frozen)
    targets = torch.randint(13, (6, 5))
    targets[:, 0] = targets[1, 3:] = targets[4, 4:] = IGNORED
    return hidden, head, targets, torch.tensor([0.3, -1.5, 2.0])


def formula(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, reference: torch.Tensor, beta: float):  # type: ignore[no-untyped-def]
    """Rafailov et al. (2023), equation 7, term by term."""
    logs = torch.log_softmax(hidden @ head.T, -1)
    sums = [sum(logs[s, t, y] for t, y in enumerate(row) if y != IGNORED) for s, row in enumerate(targets.tolist())]
    ratios = [sums[2 * pair] - sums[2 * pair + 1] - reference[pair] for pair in range(len(reference))]
    return torch.stack([-torch.nn.functional.logsigmoid(beta * ratio) for ratio in ratios]).mean(), sums


@pytest.mark.parametrize("beta", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("frozen", [False, True])
def test_loss_and_gradients_are_the_formulas(beta: float, frozen: bool) -> None:
    exact_hidden, exact_head, targets, reference = some(torch.float64, frozen)
    expected, sums = formula(exact_hidden, exact_head, targets, reference.double(), beta)
    expected.backward()
    hidden, head, _, _ = some(torch.float32, frozen)
    found = log_probabilities(hidden, head, targets).double()
    torch.testing.assert_close(found, torch.stack(sums).detach(), rtol=1e-6, atol=1e-6)
    loss = preference_loss(hidden, head, targets, reference, beta)
    loss.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-7)
    assert hidden.grad is not None
    assert exact_hidden.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=1e-4, atol=1e-6)
    assert not hidden.grad[targets == IGNORED].any()
    if frozen:
        assert head.grad is None
    else:
        assert head.grad is not None
        assert exact_head.grad is not None
        torch.testing.assert_close(head.grad.double(), exact_head.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(preference_loss(hidden, head, targets, reference, beta), loss)


def test_a_model_that_is_its_own_reference_has_the_loss_log_2() -> None:
    hidden, head, targets, _ = some(torch.float32)
    chosen, rejected = log_probabilities(hidden, head, targets).view(-1, 2).unbind(1)
    loss = preference_loss(hidden, head, targets, chosen - rejected, 0.1)
    assert float(loss.detach()) == pytest.approx(math.log(2))
