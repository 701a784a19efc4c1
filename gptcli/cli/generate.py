"""gptcli generate: text that streams."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from gptcli.cli import options, render
from gptcli.config.sampling import Overflow, SamplingConfig
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.inference.speculative import Tally
    from gptcli.inference.streaming import Completion
    from gptcli.tokenizers import Tokenizer

CANDIDATES = 5


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Continue every line of this file at once; .jsonl may hold options for each."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="How many --prompts are under way at once.")] = 8,
    checkpoint: options.Checkpoint = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Stop after so many tokens.")] = 100,
    min_new_tokens: Annotated[int, typer.Option("--min-new-tokens", help="No end of text before so many.")] = 0,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy, 1 the model as it is.")] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Choose among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Choose among the likeliest that make up this share.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Choose among those at least this share as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1 makes repeats rarer; 1 is off.")
    ] = 1.0,
    contrast_layer: Annotated[
        int | None, typer.Option("--contrast-layer", help="Score tokens by what the last layer knows beyond this one.")
    ] = None,
    draft: Annotated[
        str,
        typer.Option(
            "--draft",
            help="What guesses the next tokens, for speed; it never changes the text: int8 or int4 (the model itself, "
            "packed), ngram, a smaller checkpoint with the same tokenizer (./int8 if it has such a name), or none; "
            "auto is int8 for a long text from a large float32 model on a CPU.",
        ),
    ] = "auto",
    num_samples: Annotated[int, typer.Option("--num-samples", help="How many texts.")] = 1,
    seed: options.Seed = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text appears; may be given several times.")
    ] = None,
    ignore_eot: Annotated[bool, typer.Option("--ignore-eot", help="Go on past the end-of-text token.")] = False,
    allow_special: Annotated[
        bool, typer.Option("--allow-special", help="Read <|endoftext|> in the prompt as the token, not as text.")
    ] = False,
    overflow: Annotated[
        str,
        typer.Option(
            "--overflow",
            help="When the context is full: slide drops the older half, crop one token a step (exact and slow), "
            "error refuses.",
        ),
    ] = "slide",
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print each text when it is whole.")] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help=f"A table of the {CANDIDATES} likeliest candidates of every token instead.")
    ] = False,
    as_json: options.Json = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Let torch.compile make the torch engine's steps (a minute, once a run).")
    ] = False,
    engine: options.Engine = "auto",
    quantize: options.Quantize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt with a checkpoint. The text goes to stdout, and nothing else does."""
    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    _check_counts(max_new_tokens, min_new_tokens, num_samples)
    if overflow not in get_args(Overflow):
        raise GptcliError(f"There is no --overflow {overflow!r}.", nearest(overflow, get_args(Overflow)))
    stops = [options.check_text(text, "--stop") for text in stop or [] if text]
    if prompts is not None:
        for name, given in (
            ("a prompt", prompt),
            ("--file", file),
            ("--draft", draft if draft not in ("auto", "none") else None),
            ("--steps", steps or None),
        ):
            if given is not None:
                raise GptcliError(f"--prompts and {name} do not go together.", "Give one of the two.")
    text = "" if prompts is not None else options.read_text(prompt, file, what="prompt")

    from random import SystemRandom

    from gptcli.checkpoints import layout
    from gptcli.cli import generate_many
    from gptcli.inference import decode, drafting, sequence, speculative, streaming
    from gptcli.inference.open import check_quantization, choose_engine, drafts_itself, open_decoder

    bits = check_quantization(quantize)
    path = layout.find(checkpoint)
    config, ours = layout.read_config(path)
    choice = choose_engine(engine, device, dtype, config, compiled)
    tokenizer = layout.tokenizer_of(path, ours)
    layout.check_parts(path, config, tokenizer)
    first_seed = seed if seed is not None else SystemRandom().randrange(2**31)
    placing: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads, "report": render.note}
    opening = functools.partial(
        open_decoder, path, choice, tokenizer, bits=bits, contrast=contrast_layer, compiled=compiled, **placing
    )
    eot_id = None if ignore_eot else tokenizer.eot_id
    if prompts is not None:
        common = sequence.Request(
            (), max_new_tokens, sampling, first_seed, min_new_tokens, eot_id, cast(Overflow, overflow)
        )
        generate_many.generate_many(prompts, common, stops, tokenizer, opening, batch_size, allow_special, as_json)
        return
    ids = tokenizer.encode(text, allow_special=allow_special)
    if not ids:
        raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
    _check_overflow(overflow, len(ids), max_new_tokens, config.context_length)
    held_bits = min(bits, layout.packed_bits(path, ours))
    drafting.check_draft(draft, path, held_bits)
    decoder = opening(capacity=len(ids) + max_new_tokens)
    tally = speculative.Tally()
    if draft != "auto":
        capacity = len(ids) + max_new_tokens
        drafter = drafting.open_drafter(draft, decoder, tokenizer, engine, capacity, placing, render.detail)
    elif drafts_itself(choice, config, held_bits, max_new_tokens * num_samples):
        drafter = speculative.OnTrial(drafting.quantized_drafter("int8", decoder, render.detail), tally)
    else:
        drafter = None
    if checkpoint is None:
        render.note(f"Using {path}, the newest checkpoint.")
    render.detail(f"{path}, engine {choice.engine} ({choice.reason}), seed {first_seed}.")

    records = []
    for number in range(num_samples):
        request = sequence.Request(
            ids, max_new_tokens, sampling, first_seed + number, min_new_tokens, eot_id, cast(Overflow, overflow),
            n_candidates=CANDIDATES if steps else 0,
        )  # fmt: skip
        if drafter is None:
            tokens = decode.decode(decoder, request)
        else:
            tokens = speculative.decode(decoder, drafter, request, tally)
        result = streaming.Completion(tokens, tokenizer, max_new_tokens, stops)
        if as_json or steps:
            for _ in result:
                pass
        else:
            _print_text(text, result, first=number == 0, stream=not no_stream)
        if as_json:
            records.append(_record(result, first_seed + number, tokenizer, steps))
        elif steps:
            _print_steps(result, tokenizer)
    if drafter is not None and tally.proposed:
        (render.detail if draft == "auto" else render.note)(_brought(tally))
    if as_json:
        render.print_json({"checkpoint": str(path), "prompt": text, "prompt_ids": ids, "samples": records})


def _check_counts(max_new_tokens: int, min_new_tokens: int, num_samples: int) -> None:
    for name, value, least in (
        ("--max-new-tokens", max_new_tokens, 1),
        ("--min-new-tokens", min_new_tokens, 0),
        ("--num-samples", num_samples, 1),
    ):
        if value < least:
            raise GptcliError(f"{name} is {value}, but it must be at least {least}.", "Leave it out for the default.")
    if min_new_tokens > max_new_tokens:
        raise GptcliError(
            f"--min-new-tokens {min_new_tokens} is more than --max-new-tokens {max_new_tokens}.",
            "Raise the one or lower the other.",
        )


def _check_overflow(overflow: str, prompt_length: int, max_new_tokens: int, context_length: int) -> None:
    """Refuse before the first token what would be refused later, and say when a prompt is cut."""
    if overflow == "error" and prompt_length + max_new_tokens > context_length + 1:
        raise GptcliError(
            f"{prompt_length} prompt tokens and {max_new_tokens} new ones are more than the model's context of "
            f"{context_length}.",
            "Shorten the prompt, lower --max-new-tokens, or let --overflow slide drop the oldest tokens.",
        )
    if prompt_length > context_length:
        render.warn(
            f"The prompt has {prompt_length} tokens and the model's context holds {context_length}: "
            f"the first {prompt_length - context_length} are dropped."
        )


def _print_text(prompt: str, result: "Completion", first: bool, stream: bool) -> None:
    """The prompt and its continuation; several texts are separated by an empty line."""
    before = ("" if first else "\n") + prompt
    if not stream:
        render.print_text(before + "".join(result))
        return
    pieces = iter(result)
    render.print_text(before + next(pieces, ""), end="")  # where the first token is refused, nothing is printed
    try:
        for piece in pieces:
            render.print_text(piece, end="")
    finally:
        render.print_text("")


def _brought(tally: "Tally") -> str:
    """What a draft brought, in one line."""
    share = f" ({tally.accepted / tally.proposed:.0%})" if tally.proposed else ""
    line = (
        f"Draft: {tally.accepted} of {tally.proposed} proposed tokens accepted{share}; "
        f"{tally.tokens / tally.forward_passes:.2f} tokens for each forward pass of the model"
    )
    faster = tally.speed_up()
    return (
        f"{line}." if faster is None else f"{line}, {faster:.1f} × the speed of this run's own steps without a draft."
    )


def _record(result: "Completion", seed: int, tokenizer: "Tokenizer", steps: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "seed": seed,
        "text": result.text,
        "ids": [token.id for token in result.tokens],
        "finish_reason": result.finish_reason,
    }
    if steps:
        record["steps"] = [
            {
                "id": token.id,
                "piece": tokenizer.piece(token.id),
                "probability": token.probability,
                "candidates": [{"id": i, "piece": tokenizer.piece(i), "probability": p} for i, p in token.candidates],
            }
            for token in result.tokens
        ]
    return record


def _print_steps(result: "Completion", tokenizer: "Tokenizer") -> None:
    """The course's step-by-step view: what could have come next, and what came."""

    def quoted(token_id: int) -> str:
        return repr(tokenizer.piece(token_id)).replace("\\\\", "\\")  # the piece has its escapes already

    rows = []
    for number, token in enumerate(result.tokens, start=1):
        cells = [f"{quoted(i)} {p:.1%}" for i, p in token.candidates]
        cells += [""] * (CANDIDATES - len(cells))
        rows.append([str(number), quoted(token.id), f"{token.probability:.1%}", *cells])
    ranks = ["likeliest", "second", "third", "fourth", "fifth"]
    columns = [("step", "right"), ("drawn", "left"), ("its share", "right"), *((rank, "left") for rank in ranks)]
    render.print_table("What could have come next, and what came", columns, rows)
