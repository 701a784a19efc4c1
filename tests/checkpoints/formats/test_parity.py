"""The ladder: logits, then greedy ids, then text, ours beside transformers' on the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from uncached import continuation

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint, formats
from gptcli.config.sampling import SamplingConfig
from gptcli.model.gpt import GPTModel, KVCache

transformers = pytest.importorskip("transformers")

NEW_TOKENS = 64
GREEDY = SamplingConfig(temperature=0)
PROMPT = "Every effort moves you — naïve 🙂"
ODD = {"vocab_size": 101, "n_positions": 96, "n_embd": 42, "n_layer": 3, "n_head": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "odd sizes": {},
    "own head": {"tie_word_embeddings": False},
    "n_inner": {"n_inner": 70},
    "gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "layer_norm_epsilon": {"layer_norm_epsilon": 1e-2},
    "no scale_attn_weights": {"scale_attn_weights": False},
    "scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
    "reorder_and_upcast_attn": {"reorder_and_upcast_attn": True},
    "GPT-2's vocabulary": {"vocab_size": 50_257},
    "everything": {
        "tie_word_embeddings": False,
        "n_inner": 35,
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-3,
        "scale_attn_by_inverse_layer_idx": True,
    },
}


def their_model(directory: Path, spread: float = 0.15, **fields: Any) -> Any:
    """A random GPT2LMHeadModel whose logits differ clearly, saved as transformers saves it."""
    torch.manual_seed(1)
    config = transformers.GPT2Config(**{**ODD, **fields}, bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    model.save_pretrained(directory)
    return model


def our_model(directory: Path) -> GPTModel:
    source = formats.read(directory)
    model = GPTModel(source.config, init=None)
    model.load_state_dict(source.tensors, assign=True)
    return model.eval()


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, GPTModel]:
    theirs = their_model(tmp_path, **CONFIGS[request.param])
    return theirs, our_model(tmp_path)


def prompts(vocab_size: int, context: int) -> list[torch.Tensor]:
    """Of one token, of a few, and of exactly the context; GPT-2's tokens of a text with an emoji."""
    generator = torch.Generator().manual_seed(2)
    random = [torch.randint(0, vocab_size, (length,), generator=generator) for length in (1, 7, context)]
    return [*random, torch.tensor(tokenizers.build("gpt2").encode(PROMPT))] if vocab_size == 50_257 else random


def cached_logits(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    """The prompt in two parts, then nothing else: what the cache holds must count as if it were read now."""
    cache = KVCache(model.config)
    parts = [model(part[None], cache)[0] for part in (ids[: len(ids) // 2], ids[len(ids) // 2 :]) if len(part)]
    return torch.cat(parts)


@torch.no_grad()
def test_logits_and_likeliest_ids(pair: tuple[Any, GPTModel]) -> None:
    theirs, ours = pair
    for ids in prompts(ours.config.vocab_size, ours.config.context_length):
        expected = theirs(ids[None]).logits[0]
        for logits in (ours(ids[None])[0], cached_logits(ours, ids)):
            assert float((logits - expected).abs().max()) <= 1e-5
            assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "gelu"},
        {"activation": "relu"},
        {"layer_norm_eps": 1e-2},
        {"scale_attn": False},
        {"scale_attn_by_layer": True},
    ],
)
@torch.no_grad()
def test_each_field_changes_what_the_model_says(tmp_path: Path, fields: dict[str, Any]) -> None:
    """So that agreeing with transformers above means something."""
    their_model(tmp_path)
    usual = our_model(tmp_path)
    changed = GPTModel(usual.config.with_changes(**fields), init=None).eval()
    changed.load_state_dict(usual.state_dict(), assign=True)
    ids = prompts(101, 20)[2][None]
    assert float((usual(ids) - changed(ids)).abs().max()) > 2e-4


@torch.no_grad()
def test_greedy_ids(pair: tuple[Any, GPTModel]) -> None:
    theirs, ours = pair
    # The long ladder where there is text to check; for each field of the config, one prompt and the cache.
    has_text = ours.config.vocab_size == 50_257
    for ids in prompts(ours.config.vocab_size, 20)[0 if has_text else 1 : None if has_text else 2]:
        expected = theirs.generate(
            ids[None], attention_mask=torch.ones_like(ids)[None], do_sample=False, max_new_tokens=NEW_TOKENS,
            eos_token_id=None, pad_token_id=0,
        )[0].tolist()  # fmt: skip
        for use_cache in (True, False) if has_text else (True,):
            tokens = continuation(
                ours, ids.tolist(), max_new_tokens=NEW_TOKENS, sampling=GREEDY, seed=0, use_cache=use_cache
            )
            assert [*ids.tolist(), *(token.id for token in tokens)] == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_files(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = their_model(tmp_path).to(dtype)
    theirs.save_pretrained(tmp_path)
    ids = prompts(101, 20)[1][None]
    expected = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids).logits
    source = formats.read(tmp_path)
    assert source.tensors["wte.weight"].dtype == dtype
    model = GPTModel(source.config, init=None).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in source.tensors.items()}, assign=True)
    assert torch.allclose(model(ids), expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_the_text_is_theirs_and_they_open_our_directory(gptcli: Any, tmp_path: Path) -> None:
    theirs = their_model(tmp_path / "gpt2", vocab_size=50_257)
    assert gptcli("load-gpt2", "--from", "gpt2").code == 0
    result = gptcli("generate", PROMPT, "-c", "checkpoints/gpt2", "--temperature", 0, "--max-new-tokens", NEW_TOKENS,
                    "--ignore-eot", "--json")  # fmt: skip
    ours = result.json["samples"][0]

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "checkpoints" / "gpt2")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "gpt2").eval()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    assert ids[0].tolist() == result.json["prompt_ids"]
    assert torch.equal(opened(ids).logits, transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")(ids).logits)
    expected = theirs.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0)
    new = expected[0, ids.size(1) :]
    assert ours["ids"] == new.tolist()
    assert ours["text"] == tokenizer.decode(new, clean_up_tokenization_spaces=False)


def test_ctranslate2_converts_our_directory(gptcli: Any, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    their_model(tmp_path / "gpt2", vocab_size=50_257)
    assert gptcli("load-gpt2", "--from", "gpt2").code == 0
    result = gptcli("generate", "Every effort", "-c", "checkpoints/gpt2", "--temperature", 0, "--max-new-tokens",
                    NEW_TOKENS, "--ignore-eot", "--json")  # fmt: skip
    ctranslate2.converters.TransformersConverter("checkpoints/gpt2").convert("converted")
    generator = ctranslate2.Generator("converted", compute_type="float32")
    vocabulary = json.loads(Path("checkpoints/gpt2/vocab.json").read_text(encoding="utf-8"))
    pieces = {number: piece for piece, number in vocabulary.items()}
    prompt = [pieces[number] for number in result.json["prompt_ids"]]
    found = generator.generate_batch(
        [prompt], max_length=NEW_TOKENS, min_length=NEW_TOKENS, sampling_topk=1, include_prompt_in_result=False
    )
    assert found[0].sequences_ids[0] == result.json["samples"][0]["ids"]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium", "large", "xl"])
@torch.no_grad()
def test_real_sizes(size: str, tmp_path: Path, record_property: Any) -> None:
    """Random weights of GPT-2's own scale. About 7 GB of memory and of disk at xl."""
    from gptcli.config.model import PRESETS

    shape = PRESETS[size]
    torch.manual_seed(3)
    config = transformers.GPT2Config(n_embd=shape.emb_dim, n_layer=shape.n_layers, n_head=shape.n_heads)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    # Both map the one file, so that the weights are in memory once.
    theirs, ours = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval(), our_model(tmp_path)
    generator = torch.Generator().manual_seed(4)
    for length in (1, 33, 1024):
        ids = torch.randint(0, 50_257, (1, length), generator=generator)
        expected, logits = theirs(ids).logits, ours(ids)
        largest = float((logits - expected).abs().max())
        record_property(f"largest difference, {length} tokens", largest)
        assert largest <= 1e-4
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    prompt = torch.tensor([tokenizers.build("gpt2").encode(PROMPT)])
    expected = theirs.generate(prompt, do_sample=False, max_new_tokens=16, eos_token_id=None, pad_token_id=0)
    tokens = continuation(ours, prompt[0].tolist(), max_new_tokens=16, sampling=GREEDY, seed=0)
    assert [token.id for token in tokens] == expected[0, prompt.size(1) :].tolist()


@torch.no_grad()
def test_a_loaded_checkpoint_is_the_model(gptcli: Any, tmp_path: Path) -> None:
    theirs = their_model(tmp_path / "other", tie_word_embeddings=False, n_inner=50, activation_function="relu")
    assert gptcli("load-gpt2", "--from", "other").code == 0
    ids = prompts(101, 20)[1][None]
    model = checkpoint.load(Path("checkpoints/other")).model()
    assert torch.allclose(model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-4)
