"""The model against the plain equations, its cache against no cache, its drawing of weights against the recipe."""

import math

import oracle
import pytest
import torch
from models import tiny_config, tiny_model
from torch.nn import functional as F

from gptcli.config.model import PRESETS, GPTConfig
from gptcli.model.gpt import GPTModel, KVCache, attention_weights, fused_attention

VARIANTS = [
    {"tie_weights": tie, "qkv_bias": bias, "n_heads": heads}
    for tie in (True, False)
    for bias in (True, False)
    for heads in (1, 3, 7)
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_equal_the_plain_formulas(variant: dict[str, int]) -> None:
    model = tiny_model(**variant)
    ids = torch.randint(0, model.config.vocab_size, (2, 13))
    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = torch.stack([oracle.logits(row, plain, model.config.n_layers, model.config.n_heads) for row in ids])
    actual = model(ids)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    targets = torch.randint(0, model.config.vocab_size, (2, 13))
    F.cross_entropy(actual.flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, plain[name].grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_changes_nothing(variant: dict[str, int]) -> None:
    model = tiny_model(**variant)
    ids = torch.randint(0, model.config.vocab_size, (2, 20))
    with torch.inference_mode():
        whole = model(ids)
        cache = KVCache(model.config, batch_size=2)
        parts = [model(part, cache) for part in ids.split([5, 1, 1, 7, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.next_logits(ids), whole[:, -1], atol=1e-5, rtol=1e-5)


def test_a_cropped_cache_is_as_if_the_tokens_had_never_been() -> None:
    model = tiny_model()
    ids = torch.randint(0, 61, (1, 12))
    cache = KVCache(model.config)
    with torch.inference_mode():
        model(ids, cache)
        cache.crop(7)
        again = model(ids[:, 7:], cache)
        torch.testing.assert_close(again, model(ids)[:, 7:], atol=1e-5, rtol=1e-5)


def test_attention_weights_sum_to_one_see_no_future_and_explain_the_fused_path() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    for queries in (q, q[..., -3:, :], q[..., -1:, :]):
        weights = attention_weights(queries, k)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        future = torch.ones(9, 9, dtype=torch.bool).triu(1)[-queries.size(-2) :]
        assert (weights[..., future] == 0).all()
        torch.testing.assert_close(weights @ v, fused_attention(queries, k, v), atol=1e-6, rtol=1e-5)


def test_a_token_cannot_see_what_comes_after_it() -> None:
    model = tiny_model()
    ids = torch.randint(0, 61, (1, 10))
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 61
    with torch.inference_mode():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_gpt2s_initialisation_has_its_spreads() -> None:
    torch.manual_seed(0)
    config = PRESETS["tiny"].with_changes(n_layers=8)
    model = GPTModel(config, "gpt2")
    for name, parameter in model.named_parameters():
        if ".ln_" in name or name.startswith("ln_f"):
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            std = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


def test_the_courses_initialisation_is_torchs_own() -> None:
    torch.manual_seed(0)
    config = PRESETS["tiny"].with_changes(tie_weights=False, qkv_bias=True)
    model = GPTModel(config, "course")
    linear = torch.nn.Linear(config.emb_dim, 3 * config.emb_dim)
    c_attn = model.h[0].attn.c_attn
    for mine, theirs in (
        (c_attn.weight, linear.weight),
        (c_attn.bias, linear.bias),
        (model.lm_head.weight, linear.weight),
    ):
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
        assert mine.abs().max().item() <= 1 / math.sqrt(config.emb_dim)
    assert model.wte.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert (model.ln_f.weight == 1).all()


def test_a_seed_draws_the_courses_own_numbers() -> None:
    """Embeddings, block by block query, key, value, output, feed-forward, then the head: torch's modules in turn."""
    config = tiny_config(emb_dim=48, n_heads=3, vocab_size=64, context_length=32, qkv_bias=False, tie_weights=False)
    torch.manual_seed(123)
    state = GPTModel(config, "course").state_dict()
    torch.manual_seed(123)
    c = config.emb_dim
    assert torch.equal(state["wte.weight"], torch.nn.Embedding(64, c).weight)
    assert torch.equal(state["wpe.weight"], torch.nn.Embedding(32, c).weight)
    for n in range(config.n_layers):
        qkv = [torch.nn.Linear(c, c, bias=False).weight for _ in range(3)]
        assert torch.allclose(state[f"h.{n}.attn.c_attn.weight"], torch.cat(qkv).T, rtol=1e-6)
        for name, sizes in (("attn.c_proj", (c, c)), ("mlp.c_fc", (c, 4 * c)), ("mlp.c_proj", (4 * c, c))):
            linear = torch.nn.Linear(*sizes)
            assert torch.allclose(state[f"h.{n}.{name}.weight"], linear.weight.T, rtol=1e-6)
            assert torch.allclose(state[f"h.{n}.{name}.bias"], linear.bias, rtol=1e-6)
    assert torch.allclose(state["lm_head.weight"], torch.nn.Linear(c, 64, bias=False).weight, rtol=1e-6)


@pytest.mark.parametrize("size", list(PRESETS))
def test_parameters_have_openais_names_and_shapes(size: str) -> None:
    config = PRESETS[size]
    with torch.device("meta"):
        state = GPTModel(config, init=None).state_dict()
    c = config.emb_dim
    assert state["wte.weight"].shape == (50257, c)
    assert state[f"h.{config.n_layers - 1}.attn.c_attn.weight"].shape == (c, 3 * c)
    assert state["h.0.mlp.c_proj.weight"].shape == (4 * c, c)
    assert "lm_head.weight" not in state
    assert len(state) == 2 + 12 * config.n_layers + 2


def test_a_model_of_one_layer_one_head_one_token_works() -> None:
    model = GPTModel(GPTConfig(vocab_size=2, context_length=1, emb_dim=1, n_heads=1, n_layers=1)).eval()
    assert model(torch.zeros(1, 1, dtype=torch.int64)).shape == (1, 1, 2)
    assert tiny_config().head_dim == 14
