"""What packing keeps, and what it may lose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.model.quantization import GROUP, Bits, dequantize, from_bfloat16, quantize, to_bfloat16


def weights(inputs: int, outputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((inputs, outputs), dtype=np.float32) * 0.02


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("outputs", [1, 15, 600])
def test_int8_is_never_further_off_than_half_a_step_of_its_output(inputs: int, outputs: int) -> None:
    weight = weights(inputs, outputs)
    packed = quantize(weight, 8, threads=2)
    assert packed.values.dtype == np.int8
    assert packed.values.shape == weight.shape
    step = np.abs(weight).max(axis=0) / 127
    assert (np.abs(dequantize(packed) - weight) <= step / 2 * 1.001).all()


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("outputs", [1, 15, 600])
def test_int4_is_never_further_off_than_a_step_of_its_group(inputs: int, outputs: int) -> None:
    weight = weights(inputs, outputs)
    packed = quantize(weight, 4, threads=2)
    groups = -(-inputs // GROUP)
    assert packed.values.shape == (groups * GROUP // 2, outputs)
    assert packed.scale.shape == (groups, outputs)
    restored = dequantize(packed)
    assert restored.shape == weight.shape
    for group in range(groups):
        rows = slice(group * GROUP, (group + 1) * GROUP)
        step = np.abs(weight[rows]).max(axis=0) / 7
        assert (np.abs(restored[rows] - weight[rows]) <= step).all()


def test_int4_of_normal_weights_errs_by_a_tenth_of_their_spread_at_most() -> None:
    weight = weights(768, 512)
    error = dequantize(quantize(weight, 4)) - weight
    assert np.sqrt((error**2).mean() / (weight**2).mean()) < 0.1


@pytest.mark.parametrize(("bits", "least", "most"), [(8, -127, 127), (4, -8, 7)])
def test_what_can_be_said_exactly_is_kept_exactly(bits: Bits, least: int, most: int) -> None:
    whole = np.random.default_rng(0).integers(least, most + 1, (64, 20))
    whole[::GROUP] = least  # every output and every group has the largest value
    weight = (whole * 2.0**-9).astype(np.float32)
    np.testing.assert_array_equal(dequantize(quantize(weight, bits)), weight)


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits: Bits) -> None:
    assert not dequantize(quantize(np.zeros((40, 20), np.float32), bits)).any()


@settings(deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_bfloat16_rounds_to_the_nearest(value: float) -> None:
    import torch

    expected = torch.tensor([value]).to(torch.bfloat16).float().item()
    assert from_bfloat16(to_bfloat16(np.array([value], np.float32)))[0] == expected
