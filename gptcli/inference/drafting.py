"""What `--draft` names, made ready. Nothing here imports torch before it must."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from gptcli.checkpoints import layout
from gptcli.errors import GptcliError
from gptcli.inference import speculative
from gptcli.inference.decode import SlotDecoder
from gptcli.inference.open import QUANTIZATIONS, choose_engine, open_decoder
from gptcli.inference.speculative import Drafter
from gptcli.tokenizers import Tokenizer

DRAFTS = ("auto", "int8", "int4", "ngram", "none")


def check_draft(draft: str, path: Path, bits: int) -> None:
    """Refuse to pack for a draft what is packed already: a step of the one costs little less than of the other.

    Args:
        draft: as ``--draft`` names it.
        path: the model's checkpoint, whose weights are held in ``bits`` bits.

    Raises:
        GptcliError: the draft would be packed, and the model is.
    """
    if draft in QUANTIZATIONS and bits < 32:
        raise GptcliError(
            f"--draft {draft} packs float32 weights for the draft, but {path} is read in int{bits} itself.",
            "Leave --quantize out and give the float32 checkpoint, or use --draft ngram.",
        )


def open_drafter(
    draft: str,
    decoder: SlotDecoder,
    tokenizer: Tokenizer,
    engine: str,
    capacity: int,
    placing: dict[str, Any],
    report: Callable[[str], None],
) -> Drafter | None:
    """What ``draft`` names: the n-gram lookup, a quantized copy of the model, or a smaller model of the same tokens.

    Args:
        draft: one of DRAFTS but auto, or a checkpoint.
        decoder: of the model whose text is drafted.
        tokenizer: the model's.
        engine: as ``--engine`` names it, for a draft from a checkpoint.
        capacity: tokens such a draft makes room for.
        placing: what `open_decoder` is told of its device.
        report: called with a line on what a quantized copy takes.

    Raises:
        GptcliError: there is no such draft, it has another tokenizer, or its checkpoint is damaged.
    """
    if draft == "none":
        return None
    if draft == "ngram":
        return speculative.NgramDrafter(most=decoder.engine.at_once - 1)
    if draft in QUANTIZATIONS:
        return quantized_drafter(draft, decoder, report)
    try:
        path = layout.find(draft)
    except GptcliError as error:
        raise GptcliError(error.message, f"--draft takes {', '.join(DRAFTS)}, or a checkpoint. {error.hint}") from error
    config, ours = layout.read_config(path)
    its = layout.tokenizer_of(path, ours)
    layout.check_parts(path, config, its)
    if its.fingerprint != tokenizer.fingerprint:
        raise GptcliError(
            f"--draft {draft} speaks the tokens of another {its.kind} vocabulary than the model's {tokenizer.kind}.",
            "Give a draft that was trained with the same tokenizer, or --draft ngram.",
        )
    choice = choose_engine(engine, placing["device"], placing["dtype"], config)
    return speculative.ModelDrafter(open_decoder(path, choice, its, capacity=capacity, **placing))


def quantized_drafter(kind: str, decoder: SlotDecoder, report: Callable[[str], None]) -> Drafter:
    """The model itself as its draft, packed as ``kind`` ("int8" or "int4") says; ``report`` is told what it takes."""
    from gptcli.model import cost

    started = time.perf_counter()
    drafter = speculative.quantized_drafter(decoder, QUANTIZATIONS[kind])
    size = cost.weight_bytes(decoder.config, cast(cost.WeightFormat, kind)) / 1e6
    report(f"The draft in {kind} takes {size:,.0f} MB, packed in {time.perf_counter() - started:.2f} s.")
    return drafter
