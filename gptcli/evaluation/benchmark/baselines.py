"""Other libraries in `gptcli bench`: each does the works (timed workloads) of our engines, with the same weights."""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gptcli.checkpoints.checkpoint import in_file_form
from gptcli.config.model import HUGGING_FACE_FIELDS
from gptcli.evaluation.benchmark.engines import DECODING, LEARNING_RATE, Contender, Setting, Task, bytes_read
from gptcli.model import cost

SPINNING = 0.25  # seconds; idle threads of CTranslate2's OpenMP (Intel's) spin for 200 ms by default


def transformers(setting: Setting) -> list[Contender]:
    """Hugging Face's transformers, on the device and in the dtype of ``setting``."""
    size = cost.parameter_count(setting.config) * setting.dtype.itemsize
    ready = partial(_transformers, setting)
    return [Contender(f"transformers {setting.place}", DECODING | {"train"}, ready, size, peer=True)]


def ctranslate2(setting: Setting) -> list[Contender]:
    """CTranslate2 on the CPU in float32 and int8; `Row.beside` compares with the faster of the two."""
    names: tuple[Literal["float32", "int8"], ...] = ("float32", "int8")
    return [
        Contender(
            f"ctranslate2 {name}", DECODING - {"prefill"}, partial(_ctranslate2, setting, name),
            cost.weight_bytes(setting.config, name), peer=True, cooldown=SPINNING,
        )
        for name in names
    ]  # fmt: skip


def _transformers(setting: Setting, work: str) -> Task:
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    config = setting.config
    fields: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in HUGGING_FACE_FIELDS.items()}
    fields |= {"embd_pdrop": config.drop_rate, "attn_pdrop": config.drop_rate}
    model: Any = GPT2LMHeadModel(GPT2Config(**fields, bos_token_id=None, eos_token_id=None))
    tensors = in_file_form(config, setting.tensors(torch.float32 if work == "train" else setting.dtype))
    named = {f"{'' if name == 'lm_head.weight' else 'transformer.'}{name}": t for name, t in tensors.items()}
    model.load_state_dict(named, strict=False, assign=True)
    model.tie_weights()
    model.to(setting.device).eval()
    if work == "train":
        return Task(_training(model, setting))
    prompt, first = (torch.tensor(ids, device=setting.device) for ids in (setting.prompt_ids(), setting.first_ids()))

    def generate(ids: Tensor, count: int) -> Any:
        prompt = {"inputs": ids[:, None], "attention_mask": torch.ones_like(ids)[:, None]}
        return model.generate(**prompt, max_new_tokens=count, do_sample=False, pad_token_id=0)[:, 1:].tolist()

    def prefill() -> None:
        with torch.inference_mode():
            model(prompt[None], logits_to_keep=1)

    runs: dict[str, Callable[[], Any]] = {
        "prefill": prefill,
        "decode": lambda: generate(first[:1], setting.tokens),
        "batch": lambda: generate(first, setting.batch_steps),
    }
    return Task(runs[work], bytes_read(config, "bfloat16" if setting.dtype.itemsize == 2 else "float32"))


def _training(model: Any, setting: Setting) -> Callable[[], Any]:
    """A plain PyTorch training step: forward, backward, clip, fused AdamW."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=True)
    x = setting.windows()

    def step() -> None:
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            loss = model(x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _ctranslate2(setting: Setting, name: Literal["float32", "int8"], work: str) -> Task:
    library: Any = importlib.import_module("ctranslate2")
    words = [f"t{i}" for i in range(setting.config.vocab_size)]
    with tempfile.TemporaryDirectory() as folder:
        spec = _specification(library.specs, setting, words)
        spec.validate()
        spec.optimize(quantization=None if name == "float32" else name)
        spec.save(folder)
        del spec
        generator = library.Generator(folder, compute_type=name, intra_threads=setting.threads, inter_threads=1)
    count, rows = (setting.tokens, 1) if work == "decode" else (setting.batch_steps, setting.batch)
    starts = [[words[first]] for first in setting.first_ids()[:rows]]

    def generate() -> list[list[int]]:
        results = generator.generate_batch(
            starts, max_length=count, min_length=count, sampling_topk=1, end_token=[], include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]

    return Task(generate, bytes_read(setting.config, name))


def _specification(specs: Any, setting: Setting, words: Sequence[str]) -> Any:
    """The model specification that CTranslate2's converter makes for a GPT-2."""
    config = setting.config
    tensors = in_file_form(config, setting.tensors(torch.float32))
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    kinds = {"gelu_new": "GELUTanh", "gelu": "GELU", "relu": "RELU"}
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.n_layers, config.n_heads, pre_norm=True, activation=specs.Activation[kinds[config.activation]]
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = arrays["wte.weight"]
    decoder.position_encodings.encodings = arrays["wpe.weight"]
    decoder.projection.weight = arrays["wte.weight" if config.tie_weights else "lm_head.weight"]
    norms = [(decoder.layer_norm, "ln_f")]
    for number, layer in enumerate(decoder.layer):
        block = f"h.{number}"
        norms += [(layer.self_attention.layer_norm, f"{block}.ln_1"), (layer.ffn.layer_norm, f"{block}.ln_2")]
        for linear, name in (
            (layer.self_attention.linear[0], "attn.c_attn"),
            (layer.self_attention.linear[1], "attn.c_proj"),
            (layer.ffn.linear_0, "mlp.c_fc"),
            (layer.ffn.linear_1, "mlp.c_proj"),
        ):
            linear.weight = np.ascontiguousarray(arrays[f"{block}.{name}.weight"].T)
            linear.bias = arrays[f"{block}.{name}.bias"]
    for norm, name in norms:
        norm.gamma, norm.beta = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
    spec.register_vocabulary(words)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = words[-1]
    return spec
