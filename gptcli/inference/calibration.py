"""How far a classifier's probabilities can be trusted, and the temperature that makes them fit."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be trusted at one temperature.

    Attributes:
        temperature: what the logits were divided by.
        error: the expected calibration error (Guo et al., 2017): mean |confidence - accuracy| over `BINS` equal bins.
        nats: mean negative log-likelihood of the actual labels.
        bins: mean probability of the likeliest label, share of rows where it was right, and rows, of every bin that has
            some.
    """

    temperature: float
    error: float
    nats: float
    bins: list[tuple[float, float, int]]


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in float64, (n, labels)."""
    return (logits.double() / temperature).softmax(dim=-1)


def fitted_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature with the smallest mean negative log-likelihood (Guo et al., 2017).

    The targets are Platt's (1999), a little less than certain, so that the temperature of a classifier that is right
    on all n texts does not fall to 0: 1 - ε for the actual label and ε / (labels - 1) for each other one, ε being
    1 / (n + 2).

    Args:
        logits: (n, labels).
        targets: (n) int64.
    """
    z, count = logits.double(), len(logits)
    doubt = 1 / (count + 2)
    wanted = torch.full_like(z, doubt / (z.size(1) - 1)).scatter_(1, targets[:, None], 1 - doubt)
    low, high = -7.0, 7.0  # of the logarithm of 1 / temperature, in which the slope changes its sign once
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((z * math.exp(middle)).softmax(dim=-1) - wanted).mul(z).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-low)


def calibration(logits: Tensor, actual: Tensor, temperature: float) -> Calibration:
    """How far softmax(logits (n, labels) / temperature) can be trusted, by the actual labels (n) int64."""
    shares = probabilities(logits, temperature)
    sure, likeliest = shares.max(dim=-1)
    right = (likeliest == actual).double()
    places = (sure * BINS).long().clamp(max=BINS - 1)
    counts, hits, confidence = (
        torch.zeros(BINS, dtype=torch.float64).index_add_(0, places, values)
        for values in (torch.ones_like(sure), right, sure)
    )
    nats = -shares.gather(1, actual[:, None]).log().mean()
    bins = [
        (float(confidence[n] / counts[n]), float(hits[n] / counts[n]), int(counts[n])) for n in range(BINS) if counts[n]
    ]
    return Calibration(temperature, float((confidence - hits).abs().sum() / len(actual)), float(nats), bins)
