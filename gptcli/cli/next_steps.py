"""What to do next: after a command, and where gptcli is called alone."""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from gptcli.checkpoints import layout
from gptcli.checkpoints.run_end import is_unfinished
from gptcli.cli import render
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer

PROMPT = "Every effort moves you"
STORY = Path("data") / "story.txt"
SHORT = 120  # characters of a text that is repeated in a command


def suggest(about: str, *words: object) -> None:
    """A line on the natural next command and the command itself, on stderr, quoted for a shell; --quiet hides both."""
    render.note(f"{about}:")
    render.note("  " + _line(*words))


def suggest_generate(checkpoint: Path, tokenizer: Tokenizer | None = None) -> None:
    """`suggest` to continue a prompt of the checkpoint's own alphabet, to classify, or to count its parameters."""
    if layout.read_config(checkpoint)[0].labels:
        suggest("Classify a text with it", "classify", "TEXT", "--checkpoint", checkpoint)
        return
    prompt = known_prompt(tokenizer or layout.load_tokenizer(checkpoint))
    if prompt:
        suggest("Generate text with it", "generate", prompt, "--checkpoint", checkpoint)
    else:
        suggest("It has no tokenizer; count its parameters", "count-params", checkpoint)


def suggest_for_text(about: str, command: str, text: str, model: Sequence[object], *options: object) -> None:
    """`suggest` of a command on ``text`` again, after a result on stdout.

    Nothing is printed where a program reads the result (stdout is no terminal), or where the text is long, has several
    lines or begins as an option does.

    Args:
        about, command, text, options: of the suggestion.
        model: as of `model_words`.
    """
    if sys.stdout.isatty() and 0 < len(text) <= SHORT and text.isprintable() and not text.startswith("-"):
        suggest(about, command, text, *options, *model)


def suggest_picture(texts: Sequence[str], model: Sequence[object]) -> None:
    """`suggest` to measure the same texts again with a picture; nothing where a program reads the result."""
    picture = Path(f"{layout.named(Path(str(model[-1]))).name}.png")
    if sys.stdout.isatty() and "-" not in texts and not picture.exists():
        suggest("Draw what was measured", "evaluate", *texts, *model, "--plot", picture)


def model_words(checkpoint: Path | None, adapter: Path | None, found: Path) -> tuple[object, ...]:
    """The options that name the model which --checkpoint and --adapter meant; ``found`` is the newest checkpoint."""
    if adapter is None:
        return "--checkpoint", checkpoint or found
    return "--adapter", adapter, *(() if checkpoint is None else ("--checkpoint", checkpoint))


def known_prompt(tokenizer: Tokenizer) -> str:
    """`PROMPT`, or a word or letter of the vocabulary if it cannot encode that; empty without a tokenizer."""
    if tokenizer.kind == "none":
        return ""
    try:
        if tokenizer.decode(tokenizer.encode(PROMPT)) == PROMPT:
            return PROMPT
    except GptcliError:
        pass
    found = ""
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.decode([token_id])
        if text.isalpha() and "\ufffd" not in text:
            return text
        if not found and text.strip() and text.isprintable() and not text.startswith(("-", "<|")):
            found = text
    return found


def show() -> None:
    """Three commands that fit what is in this folder, on stdout: no checkpoint, one, or a run that stopped."""
    about, rows = _fitting()
    width = max(len(line) for line, _ in rows)
    for text in (about, *(f"  {line:<{width}}  {what}".rstrip() for line, what in rows)):
        render.print_text(text)


def _fitting() -> tuple[str, list[tuple[str, str]]]:
    everything = (_line("--help"), "every command")
    try:
        known = layout.known_paths(layout.WEIGHTS, layout.ADAPTER_WEIGHTS)
        path = layout.find(None if known else layout.newest_here())
        labels = layout.read_config(path)[0].labels
        prompt = known_prompt(layout.load_tokenizer(path))
    except GptcliError:  # there is none; or it is damaged, and gptcli checkpoints says how
        train = (_line("train", STORY, "--size", "tiny"), "train a small model on it")
        download = (_line("download", "story"), "write a short story to train on")
        own = (_line("guide", "getting-started"), "the first ten minutes")
        return "There is no checkpoint here yet. gptcli guide lists the pages of the guide.", [
            own if STORY.exists() else download,
            train,
            everything,
        ]
    name = path if Path(path.name).exists() else path.name  # as --checkpoint finds it
    generate = (_line("generate", prompt, "-c", name), "continue a text")
    if labels:
        generate = (_line("classify", prompt, "-c", name), "classify a text")
    if not prompt:
        count = (_line("count-params", name), "count its parameters")
        return f"The newest checkpoint is {path}; it has no tokenizer.", [count, everything]
    if is_unfinished(path):
        resume = (_line(_command_of(path), "--resume", name), "resume the run")
        return f"The run {path} has stopped before its last step.", [resume, generate, everything]
    inspect = (_line("inspect-attn", prompt, "-c", name), "see its attention")
    return f"The newest checkpoint is {path}.", [generate, inspect, everything]


def _command_of(run: Path) -> str:
    """The command that began a run: a setting of fine-tuning is in its config.toml, or it is not."""
    try:
        settings = tomllib.loads((run / layout.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of an older version
        return "train"
    return "finetune" if "method" in settings else "train"


def _line(*words: object) -> str:
    return " ".join(["gptcli", *(render.quoted(str(word)) for word in words)])
