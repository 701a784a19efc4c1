"""What test_decode_kernels.py runs in a process of its own, where Triton's interpreter is on: cases by their names."""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import interpreted  # noqa: F401  (before anything imports triton)
import numpy as np
import torch
from decoding import ids_of, read, step
from decoding import together as in_slots
from draw_check import check_draws
from models import tiny_model

from gptcli.config.sampling import SamplingConfig
from gptcli.inference import speculative, step_launches, torch_engine
from gptcli.inference.sequence import Request
from gptcli.inference.torch_engine import TorchEngine
from gptcli.kernels.gpu.launches import run_all
from gptcli.model.gpt import GPTModel
from gptcli.model.quantized import PackedModel

step_launches.PROGRAMS, step_launches.OUTPUTS = 1, 128  # the interpreter takes its time for each program
SHAPES: dict[str, dict[str, Any]] = {
    "odd": {},
    "even": {"emb_dim": 32, "n_heads": 2},
    "other": {
        "emb_dim": 48,
        "n_heads": 3,
        "activation": "gelu",
        "qkv_bias": False,
        "tie_weights": False,
        "scale_attn_by_layer": True,
    },
    "relu": {"emb_dim": 32, "n_heads": 4, "activation": "relu", "scale_attn": False},
}


def model_of(shape: str, bits: int, dtype: torch.dtype = torch.float32) -> GPTModel:
    model = tiny_model(context_length=24, n_layers=1, **SHAPES[shape]).to(dtype)
    if bits == 32:
        return model
    return PackedModel(model.config, {n: t.float().numpy() for n, t in model.state_dict().items()}, bits, "cpu", dtype)


def engine_of(model: GPTModel, slots: int = 1) -> TorchEngine:
    """An engine whose steps are the kernels', on the CPU."""
    torch_engine.triton_reason = lambda device: None
    engine = TorchEngine(model, slots=slots)
    assert engine._kernels is not None
    return engine


def steps() -> None:
    """Logits of the kernels' step equal the plain model's, for every kind of weights and of model, one row and more."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (3, 6)))
    for shape in SHAPES:
        for bits in (32, 8, 4) if shape in ("odd", "even") else (32,):
            for slots, count in ((1, 1), (1, 3), (3, 1)) if shape == "odd" else ((1, 1), (2, 1)):
                model = model_of(shape, bits)
                with torch.no_grad():
                    expected = model(ids[:slots])
                engine = engine_of(model, slots)
                step = engine._kernels
                assert step is not None
                launches = step.launches(count)
                for at in range(0, 2 * count, count):
                    engine._ids[:, :count] = ids[:slots, at : at + count]
                    engine._places[:] = at
                    run_all(launches)
                    found = step.logits[: slots * count].view(slots, count, -1)
                    torch.testing.assert_close(found, expected[:, at : at + count], atol=2e-5, rtol=2e-5)


def half() -> None:
    """As `steps`, in 16 bits; the interpreter multiplies no blocks of bfloat16."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (2, 4)))
    for dtype, slots in ((torch.bfloat16, 1), (torch.float16, 2)):
        for bits in (32, 8, 4):
            model = model_of("even", bits, dtype)
            with torch.no_grad():
                expected = model(ids[:slots]).float()
            engine = engine_of(model, slots)
            for at in range(2):
                found = step(engine, ids[:slots, at].tolist(), [at] * slots, range(slots))
                worst = (found - expected[:, at]).abs().max() / expected.abs().max()
                assert worst < (2e-2 if dtype == torch.bfloat16 else 3e-3), (dtype, bits, worst)


def long_texts() -> None:
    """Attention in several parts, over several blocks, and with a row that takes no part."""
    step_launches.BLOCK = 16
    torch_engine.SPAN = 16
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (2, 70)))
    for slots in (1, 2):
        model = tiny_model(context_length=72, n_layers=1, emb_dim=32, n_heads=2)
        engine = TorchEngine(model, slots=slots, span=16, kernels=False)
        for slot in range(slots):
            read(engine, slot, ids[slot, :64].tolist(), 0)
        torch_engine.triton_reason = lambda device: None
        step_launches.SPLITS = 2 if slots == 1 else 8
        engine._open_kernels()
        with torch.no_grad():
            expected = model(ids[:slots])
        for at in range(64, 70):
            found = step(engine, ids[:slots, at].tolist(), [at] * slots, range(slots))
            torch.testing.assert_close(found, expected[:, at], atol=2e-5, rtol=2e-5)
        if slots == 2:
            found = step(engine, [int(ids[1, 69])], [69], [1])
            torch.testing.assert_close(found, expected[1:, 69], atol=2e-5, rtol=2e-5)


def draws() -> None:
    check_draws("cpu")


def texts() -> None:
    """Texts drawn on the device are those drawn on the host: greedy, sampled, filtered, ended, past the context."""
    samplings = (
        SamplingConfig(0),
        SamplingConfig(0.9),
        SamplingConfig(1.1, top_k=9),
        SamplingConfig(0.9, top_p=0.8, repetition_penalty=1.3),
    )
    model = model_of("even", 32)
    for number, sampling in enumerate(samplings):
        request = Request([1, 2, 3], 9, sampling, seed=number, eot_id=4, min_new_tokens=6)
        if number == 1:
            request = Request(list(range(20)), 9, sampling, seed=1)
        expected = ids_of(TorchEngine(model, kernels=False), request)
        assert ids_of(engine_of(model), request) == expected, sampling


def together() -> None:
    """Rows of several texts are each what it would be alone, drafts change nothing, and a fork goes its own way."""
    model = model_of("even", 32)
    common = list(range(18))
    requests = [
        Request([*common, n][n * 6 :], 4 + n, SamplingConfig(0.5 * n), seed=n, eot_id=7 if n == 2 else None)
        for n in range(4)
    ]
    plain = TorchEngine(model, kernels=False)
    expected = [ids_of(plain, request) for request in requests]
    assert in_slots(engine_of(model, 2), requests) == expected
    drafter = speculative.NgramDrafter(shortest=1, most=3)
    request = Request([1, 2, 1, 2, 1], 6, SamplingConfig(0), seed=0)
    assert ids_of(engine_of(model), request, drafter) == ids_of(plain, request)


def prompts() -> None:
    """A prompt read at once leaves the logits and the cache that the plain model leaves, in any slot and dtype."""
    ids = np.random.default_rng(0).integers(0, 61, 21).tolist()
    for shape in SHAPES:
        kinds = product((32, 8, 4), (torch.float32, torch.float16))
        for bits, dtype in kinds if shape == "odd" else ((32, torch.float32),):
            model = model_of(shape, bits, dtype)
            with torch.no_grad():
                expected = model(torch.tensor([[*ids, 5]]))[0].float()
            engine = engine_of(model, slots=2)
            found = torch.cat([read(engine, 1, ids, 0).clone(), step(engine, [5], [21], [1])])
            worst = (found - expected[-2:]).abs().max() / expected.abs().max()
            assert worst < (2e-5 if dtype == torch.float32 else 4e-3), (shape, bits, dtype, worst)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for name in sys.argv[1:]:
        globals()[name]()
