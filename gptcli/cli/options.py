"""Options that several commands share: one name, one meaning, one default everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import render


def _set_quiet(value: bool) -> bool:
    render.verbosity.quiet = value
    return value


def _set_verbose(value: bool) -> bool:
    render.verbosity.verbose = value
    return value


def _set_debug(value: bool) -> bool:
    render.verbosity.debug = value
    return value


Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", "-c", help="A checkpoint directory, or its name under checkpoints/ (default: the newest there)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the random numbers: same seed, same result.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads (default: the physical cores).")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_set_quiet, help="Nothing on stderr but warnings and errors.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Say more on stderr.")]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show a traceback when something fails.")
]

MAKE, SPEAK, LOOK, MEASURE, WEIGHTS = "Make", "Speak", "Look inside", "Measure", "Weights"
