"""gptcli finetune: a checkpoint and examples in, a checkpoint that has learned them out."""

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import mistakes, options, render, settings_command, training_view
from gptcli.cli.train import OF_THIS_PROCESS, callbacks, go_on, run_name, world
from gptcli.config.finetune import FINETUNE_RUNTIME, FinetuneConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.errors import GptcliError


def finetune(
    context: typer.Context,
    settings: FinetuneConfig,
    runtime: RuntimeConfig = FINETUNE_RUNTIME,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...",
            help="Rows (.jsonl, .json, .csv, .tsv) or running text (.txt, .md): files, folders, globs, - for stdin.",
        ),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="The checkpoint to fine-tune; it is never changed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's directory; checkpoints/<name of the data> by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    resume: options.Resume = None,
    texts_sha256: Annotated[
        str | None, typer.Option("--texts-sha256", hidden=True, help="Of the examples of a run's config.toml.")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Fine-tune a checkpoint on your texts, pairs, chats or labels, in a run of its own.

    A row has text; prompt, completion; instruction, input, output; messages (role, content); text, label, which makes
    a classifier; or prompt, chosen, rejected, for --method dpo. Prints the run's directory on stdout. Ctrl-C and
    SIGTERM write a checkpoint and stop; --resume RUN goes on with it.
    """
    given = settings_command.by_flag(context)
    options.check_text(runtime.sample_prompt, "--sample-prompt")
    if resume is not None:
        given = {name: value for name, value in given.items() if name not in OF_THIS_PROCESS}
        if "early_stop" in given:
            given["early_stop"] = given["early_stop"] or None
        go_on(resume, given, settings_command.by_file_or_variable(context))
        return
    if not texts:
        raise GptcliError(
            "There are no examples to train on.", "Give a file of them; see gptcli finetune --help for its forms."
        )
    mistakes.refuse_option_names(texts, context)
    if init_from is None:
        raise GptcliError(
            "There is no checkpoint to fine-tune.",
            "Name one with --init-from CHECKPOINT; gptcli checkpoints lists them, gptcli load-gpt2 fetches GPT-2's.",
        )

    from gptcli.checkpoints import layout
    from gptcli.training.finetune import new_finetuning

    run = new_finetuning(
        out or layout.ROOT / run_name(texts), texts, settings, runtime,
        init_from=init_from, force=force, world=world(), callbacks=callbacks(),
    )  # fmt: skip
    if texts_sha256 not in (None, run.source["sha256"]) and "texts" not in given:
        render.warn(f"The examples ({', '.join(texts)}) are not what they were: the run will differ.")
    training_view.show(run)
