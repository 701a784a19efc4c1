"""What `gptcli generate --draft` names, made ready, and what it brought."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gptcli.cli import render
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.inference.decode import SlotDecoder
    from gptcli.inference.speculative import Drafter, Tally
    from gptcli.tokenizers import Tokenizer

DRAFTS = ("auto", "int8", "int4", "ngram", "none")


def check_twin(draft: str, path: Path, bits: int) -> None:
    """Refuse to pack for a draft what is packed already: a step of the one costs little less than of the other."""
    if draft in ("int8", "int4") and bits < 32:
        raise GptcliError(
            f"--draft {draft} packs float32 weights for the draft, but {path} is read in int{bits} itself.",
            "Leave --quantize out and give the float32 checkpoint, or use --draft ngram.",
        )


def drafter(
    draft: str,
    decoder: "SlotDecoder",
    tokenizer: "Tokenizer",
    engine: str,
    capacity: int,
    placing: dict[str, Any],
) -> "Drafter | None":
    """What ``--draft`` names: the n-gram lookup, the model itself in fewer bits, or one that speaks the same tokens."""
    if draft == "none":
        return None
    from gptcli.checkpoints import layout
    from gptcli.inference import speculative
    from gptcli.inference.open import QUANTIZATIONS, choose_engine, open_decoder

    if draft == "ngram":
        return speculative.NgramDrafter(most=decoder.engine.at_once - 1)
    if draft in QUANTIZATIONS:
        return twin(draft, decoder)
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


def twin(kind: str, decoder: "SlotDecoder") -> "Drafter":
    """The model itself as its draft, packed as ``kind`` says."""
    from gptcli.inference import speculative
    from gptcli.inference.open import QUANTIZATIONS
    from gptcli.model import cost

    started = time.perf_counter()
    drafter = speculative.twin_drafter(decoder, QUANTIZATIONS[kind])
    size = cost.weight_bytes(decoder.config, cast(cost.WeightFormat, kind)) / 1e6
    render.detail(f"The draft in {kind} takes {size:,.0f} MB, packed in {time.perf_counter() - started:.2f} s.")
    return drafter


def brought(tally: "Tally") -> str:
    """What a draft brought, in one line."""
    share = f" ({tally.taken / tally.proposed:.0%})" if tally.proposed else ""
    line = (
        f"Draft: {tally.taken} of {tally.proposed} proposed tokens taken{share}; "
        f"{tally.tokens / tally.readings:.2f} tokens for each reading of the model"
    )
    faster = tally.speed_up()
    return (
        f"{line}." if faster is None else f"{line}, {faster:.1f} × the speed of this run's own steps without a draft."
    )
