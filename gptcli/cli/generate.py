"""gptcli generate: text that streams."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gptcli.cli import generation_view as view
from gptcli.cli import options, render
from gptcli.cli.generation_view import CANDIDATES
from gptcli.config.sampling import Overflow, SamplingConfig
from gptcli.errors import GptcliError


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
            help="What guesses the next tokens, for speed. It never changes the text, and is refused where it would "
            "(by the torch engine in 16 bits). int8 or int4 (the model itself, packed), ngram, a smaller checkpoint "
            "with the same tokenizer (./int8 if it has such a name), or none; auto is int8 for a long text from a "
            "large float32 model on a CPU.",
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
    view.check_counts(max_new_tokens, min_new_tokens, num_samples)
    view.check_overflow_rule(overflow)
    stops = tuple(options.check_text(text, "--stop") for text in stop or [] if text)
    if prompts is not None:
        view.check_prompts_file(prompt, file, draft, steps)
    text = "" if prompts is not None else options.read_text(prompt, file, what="prompt")

    from random import SystemRandom

    from gptcli.checkpoints import layout
    from gptcli.cli import generate_many
    from gptcli.inference import drafting, speculative, streaming
    from gptcli.inference.decode import Scheduler
    from gptcli.inference.open import check_quantization, choose_engine, open_scorer
    from gptcli.inference.sequence import Request

    bits = check_quantization(quantize)
    path = layout.find(checkpoint)
    config, ours = layout.read_config(path)
    choice = choose_engine(engine, device, dtype, config, compiled)
    tokenizer = layout.tokenizer_of(path, ours)
    layout.check_parts(path, config, tokenizer)
    first_seed = seed if seed is not None else SystemRandom().randrange(2**31)
    placing: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads, "report": render.note}
    opening = functools.partial(
        open_scorer, path, choice, tokenizer, bits=bits, contrast=contrast_layer, compiled=compiled, **placing
    )
    eot_id = None if ignore_eot else tokenizer.eot_id
    common = Request(
        (), max_new_tokens, sampling, first_seed, min_new_tokens, eot_id, cast(Overflow, overflow), stops=stops,
        n_candidates=CANDIDATES if steps else 0,
    )  # fmt: skip
    if prompts is not None:
        generate_many.generate_many(prompts, common, tokenizer, opening, batch_size, allow_special, as_json)
        return
    ids = tokenizer.encode(text, allow_special=allow_special)
    if not ids:
        raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
    view.check_overflow(overflow, len(ids), max_new_tokens, config.context_length)
    held_bits = min(bits, layout.packed_bits(path, ours))
    drafting.check_draft(draft, path, held_bits)
    scorer = opening(capacity=len(ids) + max_new_tokens)
    tally = speculative.Tally()
    if draft != "auto":
        capacity = len(ids) + max_new_tokens
        drafter = drafting.open_drafter(draft, scorer, tokenizer, engine, capacity, placing, render.detail)
    elif drafting.drafts_itself(choice, config, held_bits, max_new_tokens * num_samples):
        drafter = speculative.OnTrial(drafting.quantized_drafter("int8", scorer, render.detail), tally)
    else:
        drafter = None
    if checkpoint is None:
        render.note(f"Using {path}, the newest checkpoint.")
    render.detail(f"{path}, engine {choice.engine} ({choice.reason}), seed {first_seed}.")

    scheduler = Scheduler(scorer, drafter, tally)
    requests = [replace(common, prompt=ids, seed=first_seed + number) for number in range(num_samples)]
    samples = (streaming.stream(scheduler, request, tokenizer) for request in requests)
    records = view.show_samples(text, samples, tokenizer, as_json=as_json, steps=steps, stream=not no_stream)
    if drafter is not None and tally.proposed:
        (render.detail if draft == "auto" else render.note)(view.draft_report(tally))
    if as_json:
        render.print_json({"checkpoint": str(path), "prompt": text, "prompt_ids": ids, "samples": records})
