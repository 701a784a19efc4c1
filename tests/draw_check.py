"""What the GPU draws beside what sampling.py draws; for the GPU, and for Triton's interpreter."""

from typing import Any

import numpy as np
import torch
from models import tiny_model

from gptcli.config.sampling import SamplingConfig
from gptcli.inference.sampling import Drawable, distribution, draw, draw_key, keep_drawable
from gptcli.kernels.gpu.launches import run_all


def check_draws(place: str) -> None:
    """Ids and shares that kernels on the device ``place`` draw are those of sampling.py, over a real vocabulary."""
    from gptcli.inference.device_draws import DeviceDraws

    rows, vocab = 3, 50_257
    torch.manual_seed(0)
    logits = torch.randn(rows, vocab) * 3
    logits[1, 5], logits[1, 50_000] = 20.0, 20.0  # the first of equals

    class Step:
        config = tiny_model().config.with_changes(vocab_size=vocab)
        store = torch.zeros(1, 2, rows, 1, 1, 1, device=place)
        ids = torch.zeros(rows, 8, dtype=torch.int64, device=place)
        places = torch.zeros(rows, dtype=torch.int64, device=place)
        padding, dependent = 99, False

        def launches(self, count: int) -> list[Any]:
            return []

    step: Any = Step()
    step.logits = logits.to(place)
    for temperatures in ((0.8, 0.0, 1.3), (2.0, 1e-20, 0.0)):
        device = DeviceDraws(step)
        for count in (1, 40):
            step.places.fill_(3)
            device.temperatures[:] = torch.tensor(temperatures)
            device.seeds[:] = torch.tensor([7, 123456789, -5])
            device.counts.fill_(count)
            device.least.fill_(2)
            device.eots[:] = torch.tensor([9, 5, -1])
            run_all(device.launches(None))
            held = logits.clone()
            if count < 2:
                held[0, 9] = held[1, 5] = -torch.inf
            for row, temperature in enumerate(temperatures):
                probabilities = distribution(held[row : row + 1], SamplingConfig(temperature))
                seed = (7, 123456789, -5 % 2**64)[row]
                expected = int(draw(probabilities, [draw_key(seed, count)])[0])
                found, bits, broken = device.out[row].tolist()
                assert (found, broken) == (expected, 0), (temperature, count, row)
                share = float(np.array([bits], np.int32).view(np.float32)[0])
                assert abs(share - float(probabilities[0, expected])) < 1e-4 * share
                assert (int(step.ids[row, 0]), int(step.places[row]), int(device.counts[row])) == (found, 4, count + 1)
    masked = DeviceDraws(step, Drawable(50_000, (5,)))  # whose likeliest ids have no text
    masked.temperatures[:] = torch.tensor([0.8, 0.0, 1.3])
    run_all(masked.launches(None))
    held = keep_drawable(logits.clone(), masked.drawable)
    for row, temperature in enumerate((0.8, 0.0, 1.3)):
        probabilities = distribution(held[row : row + 1], SamplingConfig(temperature))
        assert int(masked.out[row, 0]) == int(draw(probabilities, [draw_key(0, 0)])[0])
    step.logits[0, 17], step.logits[2, 40_000] = torch.nan, -torch.inf
    run_all(device.launches(None))
    assert device.out[:, 2].tolist() == [1, 0, 0]
