"""gptcli generate: text that streams."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.cli import generation_view as view
from gptcli.cli import next_steps, options, render
from gptcli.cli.generation_view import CANDIDATES
from gptcli.cli.settings import RARELY_USED
from gptcli.config.compute import ComputeConfig, EngineConfig
from gptcli.config.fields import as_dict
from gptcli.config.generation import GenerationConfig
from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError

DRAWN = SamplingConfig(temperature=0.8)


def generate(
    generation: GenerationConfig,
    compute: ComputeConfig,
    engine: EngineConfig,
    sampling: SamplingConfig = DRAWN,
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; - reads stdin.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from this file."), RARELY_USED
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="Continue every line of this file, several at once; .jsonl may hold options for each."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="How many of the --prompts are continued at once."), RARELY_USED
    ] = 8,
    checkpoint: options.Checkpoint = None,
    adapter: options.Adapter = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text appears; may be given several times.")
    ] = None,
    allow_special: Annotated[
        bool,
        typer.Option("--allow-special", help="Read <|endoftext|> in the prompt as the token, not as text."),
        RARELY_USED,
    ] = False,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print each text when it is complete."), RARELY_USED
    ] = False,
    last: Annotated[
        bool, typer.Option("--last", help="Use the last weights of a run, not those of its best evaluation.")
    ] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help=f"Print a table with the {CANDIDATES} likeliest candidates for every token.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Continue a prompt with a checkpoint. The text goes to stdout, and nothing else does."""
    draft, max_new_tokens = generation.draft, generation.max_new_tokens
    stops = tuple(options.check_text(text, "--stop") for text in stop or [] if text)
    if prompts is not None:
        view.check_prompts_file(prompt, file, draft, steps)
    text = "" if prompts is not None else options.read_text(prompt, file, what="prompt")

    from gptcli.checkpoints import adapters, layout
    from gptcli.inference import open as opening

    bits = opening.check_quantization(engine.quantize)
    path, added = options.find_model(checkpoint, adapter)
    path = layout.last(path) if last else path
    about = adapters.described_by(path, added)
    config, ours = layout.read_language_model(about)
    held_bits = min(bits, layout.packed_bits(path, ours))
    place: dict[str, Any] = {"engine": engine.engine, "device": compute.device, "dtype": compute.dtype}
    packed = opening.pack_early(
        path, added, config, held_bits, compiled=engine.compile, threads=compute.threads, **place
    )

    from random import SystemRandom

    from gptcli.cli import generate_many
    from gptcli.inference import drafting, speculative, streaming
    from gptcli.inference.decode import Scheduler
    from gptcli.inference.prompting import Prompting
    from gptcli.inference.sequence import Request

    choice = opening.choose_engine(config=config, compiled=engine.compile, **place)
    tokenizer = layout.tokenizer_of(about, ours)
    layout.check_parts(about, config, tokenizer)
    first_seed = generation.seed if generation.seed is not None else SystemRandom().randrange(2**31)
    dtype = opening.generation_dtype(compute.dtype, choice, compute.device, draft != "auto")
    placing: dict[str, Any] = as_dict(compute) | {"dtype": dtype, "report": render.note}
    eot_id = None if generation.ignore_eot else tokenizer.eot_id
    ignore_eot = generation.ignore_eot
    prompting = Prompting(tokenizer, raw=generation.raw, allow_special=allow_special, ignore_eot=ignore_eot)
    common = Request(
        (), max_new_tokens, sampling, first_seed, generation.min_new_tokens, eot_id, generation.overflow,
        stops=stops + prompting.stops,
        n_candidates=CANDIDATES if steps else 0,
    )  # fmt: skip
    if prompts is not None:
        asked = generate_many.read_requests(prompts, common, prompting, batch_size)
        capacity = max(len(request.prompt) + request.max_new_tokens for _, request in asked)
        slots = min(batch_size, len(asked), 128)
    else:
        ids = prompting.encode(text)
        if not ids:
            raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
        view.check_overflow(generation.overflow, len(ids), max_new_tokens, config.context_length)
        drafting.check_draft(draft, path, held_bits)
        capacity, slots = len(ids) + max_new_tokens, 1
    choice = opening.if_it_compiles(choice, held_bits, engine.engine == "auto", render.note)
    scorer = opening.open_scorer(
        path, choice, tokenizer,
        slots=slots, bits=bits, capacity=capacity, contrast=generation.contrast_layer, compiled=engine.compile,
        adapter=added, packed=packed, **placing,
    )  # fmt: skip
    if prompts is not None:
        view.name_engine(choice)
        generate_many.generate_many(asked, scorer, prompting, as_json)
        return
    tally = speculative.Tally()
    if draft != "auto":
        drafter = drafting.open_drafter(draft, scorer, tokenizer, engine.engine, capacity, placing, render.detail)
    elif drafting.drafts_itself(choice, config, held_bits, max_new_tokens * generation.num_samples, render.note):
        drafter = speculative.OnTrial(drafting.quantized_drafter("int8", scorer, render.detail), tally)
    else:
        drafter = None
    view.name_engine(choice)
    if checkpoint is None and adapter is None:
        render.note(f"Using {path}, the newest checkpoint.")
    render.detail(f"{path}, engine {choice.engine} ({choice.reason}), {dtype}, seed {first_seed}.")

    scheduler = Scheduler(scorer, drafter, tally)
    requests = [replace(common, prompt=ids, seed=first_seed + number) for number in range(generation.num_samples)]
    samples = (streaming.stream(scheduler, request, tokenizer) for request in requests)
    shown = text if prompting.template is None else ""  # an answer stands alone
    records = view.show_samples(shown, samples, tokenizer, as_json=as_json, steps=steps, stream=not no_stream)
    if drafter is not None and tally.proposed:
        (render.detail if draft == "auto" else render.note)(view.draft_report(tally))
    if as_json:
        render.print_json({"checkpoint": str(path), "prompt": text, "prompt_ids": ids, "samples": records})
    else:
        model = next_steps.model_words(checkpoint, adapter, path)
        next_steps.suggest_for_text("See how the model chose the first token", "inspect-flow", text, model)
