"""Drafters by their ``--draft`` names. torch is imported only if a draft runs on it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from gptcli.checkpoints import layout
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError, SettingError
from gptcli.inference import speculative
from gptcli.inference.engine import Scorer
from gptcli.inference.open import QUANTIZATIONS, EngineChoice, choose_engine, if_it_compiles, open_scorer
from gptcli.inference.speculative import Drafter
from gptcli.tokenizers import Tokenizer

DRAFTS = ("auto", "int8", "int4", "ngram", "none")
WORTH_DRAFTING = 48  # fewest new tokens for an automatic draft; packing takes as long as about 20 tokens
BEYOND_CACHES = 2**27  # bytes of float32 weights from which on no CPU cache is assumed to hold them


def check_draft(draft: str, path: Path, bits: int) -> None:
    """Refuse a quantized draft of a quantized model: its step would cost little less than the model's.

    Args:
        draft: the value of ``--draft``.
        path: the model's checkpoint.
        bits: format of the model's weights in memory: 32, 8 or 4.

    Raises:
        GptcliError: draft and model are both quantized.
    """
    if draft in QUANTIZATIONS and bits < 32:
        raise SettingError(
            f"{{draft}} {draft} packs float32 weights for the draft, but {path} is read in int{bits} itself.",
            "Leave {quantize} out and give the float32 checkpoint, or use {draft} ngram.",
        )


def drafts_itself(
    choice: EngineChoice, config: GPTConfig, bits: int, tokens: int, report: Callable[[str], None] = lambda line: None
) -> bool:
    """Whether ``--draft auto`` uses an int8 copy of the model as the draft for ``tokens`` new tokens.

    The conditions: the CPU engine, float32 weights (``bits`` 32) of at least `BEYOND_CACHES` bytes, at least
    `WORTH_DRAFTING` tokens, free memory of twice the copy's size, and a disk cache for compiled kernels, which are
    compiled now if they are not there; ``report`` gets a line before.
    """
    from gptcli.model.cost import weight_bytes

    if (
        choice.engine != "cpu"
        or bits < 32
        or tokens < WORTH_DRAFTING
        or weight_bytes(config, "float32") < BEYOND_CACHES
    ):
        return False
    from gptcli.device import resources
    from gptcli.kernels.cpu import compile_cache, first_compilation

    fits = compile_cache.are_kept() and resources.available_memory() > 2 * weight_bytes(config, "int8")
    return fits and first_compilation.failure("int8", report) is None


def open_drafter(
    draft: str,
    scorer: Scorer,
    tokenizer: Tokenizer,
    engine: str,
    capacity: int,
    placing: dict[str, Any],
    report: Callable[[str], None],
) -> Drafter | None:
    """The drafter ``draft``: n-gram lookup, a quantized copy of the model, or another model with the same tokenizer.

    Args:
        draft: one of DRAFTS except auto, or a checkpoint.
        scorer: of the model.
        tokenizer: the model's.
        engine: the value of ``--engine``, for a draft from a checkpoint.
        capacity: tokens that the cache of such a draft holds.
        placing: keyword arguments of `open_scorer` for such a draft, among them device and dtype.
        report: called with a message on the size and packing time of a quantized copy.

    Raises:
        GptcliError: there is no such draft, its tokenizer differs, its checkpoint is damaged, or drafts would change
            texts on this engine (see `speculative.require_verification`).
    """
    if draft == "none":
        return None
    speculative.require_verification(scorer.engine)
    if draft == "ngram":
        return speculative.NgramDrafter(most=scorer.engine.at_once - 1)
    if draft in QUANTIZATIONS:
        return quantized_drafter(draft, scorer, report)
    path = find_draft(draft)
    config, ours = layout.read_language_model(path)
    its = layout.tokenizer_of(path, ours)
    layout.check_parts(path, config, its)
    if its.fingerprint != tokenizer.fingerprint:
        raise SettingError(
            f"{{draft}} {draft} has the tokens of another {its.kind} vocabulary than the model's {tokenizer.kind}.",
            "Give a draft that was trained with the same tokenizer, or {draft} ngram.",
        )
    choice = choose_engine(engine, placing["device"], placing["dtype"], config)
    choice = if_it_compiles(choice, layout.packed_bits(path, ours), engine == "auto", placing["report"])
    return speculative.ModelDrafter(open_scorer(path, choice, its, capacity=capacity, **placing))


def find_draft(draft: str) -> Path:
    """The checkpoint that a draft names which is none of `DRAFTS`; raises SettingError if there is none."""
    try:
        return layout.find(draft)
    except GptcliError as error:
        way_out = f"{{draft}} takes {', '.join(DRAFTS)}, or a checkpoint. {error.hint}"
        raise SettingError(error.message, way_out) from error


def quantized_drafter(kind: str, scorer: Scorer, report: Callable[[str], None]) -> Drafter:
    """A quantized copy of the model, ``kind`` "int8" or "int4"; ``report`` gets its size and packing time."""
    from gptcli.model import cost

    started = time.perf_counter()
    drafter = speculative.quantized_drafter(scorer, QUANTIZATIONS[kind])
    size = cost.weight_bytes(scorer.engine.config, cast(cost.WeightFormat, kind)) / 1e6
    report(f"The draft in {kind} takes {size:,.0f} MB, packed in {time.perf_counter() - started:.2f} s.")
    return drafter
