"""Answers to a mistyped command line: what is wrong with it, and the command that was probably meant."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from gptcli.checkpoints import layout
from gptcli.cli import render
from gptcli.errors import GptcliError

NEAR = 0.7  # similarity of a name that is suggested

# What other programs call a command -> what stands here for it.
COMMANDS_MEANT = {
    **dict.fromkeys(("fine-tune", "tune", "teach", "sft", "instruct"), "finetune DATA --init-from CHECKPOINT"),
    **dict.fromkeys(("continue",), "train TEXT --init-from CHECKPOINT"),
    **dict.fromkeys(("resume",), "train --resume RUN"),
    **dict.fromkeys(("pretrain", "fit", "learn"), "train TEXT"),
    **dict.fromkeys(("list", "ls", "models", "runs", "show", "info"), "checkpoints"),
    **dict.fromkeys(("sample", "complete", "predict", "infer", "run", "chat", "speak"), 'generate "PROMPT"'),
    **dict.fromkeys(("eval", "test", "perplexity", "score"), "evaluate TEXT"),
    **dict.fromkeys(("encode", "tokens"), 'tokenize "TEXT"'),
    **dict.fromkeys(("params", "count", "size"), "count-params"),
    **dict.fromkeys(("convert", "import", "load"), "load-gpt2 --from PATH"),
    **dict.fromkeys(("save",), "export CHECKPOINT OUT"),
    **dict.fromkeys(("benchmark", "time"), "bench"),
    **dict.fromkeys(("man", "docs", "manual"), "guide"),
    **dict.fromkeys(("check", "status"), "doctor"),
    **dict.fromkeys(("version",), "--version"),
    **dict.fromkeys(("inspect", "attention"), 'inspect-attn "TEXT"'),
}
# What other programs call an option -> what may stand for it here; the first that the command has is meant.
OPTIONS_MEANT = {
    **dict.fromkeys(("--model", "--weights", "--ckpt", "--run"), ("--checkpoint", "--size", "--init-from")),
    **dict.fromkeys(("--steps", "--iters", "--max-iters", "--iterations", "--num-steps"), ("--max-steps",)),
    **dict.fromkeys(("--rate",), ("--learning-rate",)),
    **dict.fromkeys(("--temp",), ("--temperature",)),
    **dict.fromkeys(("--length", "--tokens", "--max-tokens", "--max-length"), ("--max-new-tokens",)),
    **dict.fromkeys(("--output", "--out-dir", "--name", "--save"), ("--out",)),
    **dict.fromkeys(("--block-size", "--seq-len", "--sequence-length"), ("--context-length",)),
    **dict.fromkeys(("--layers",), ("--n-layers",)),
    **dict.fromkeys(("--heads",), ("--n-heads",)),
    **dict.fromkeys(("--dropout",), ("--drop-rate",)),
    **dict.fromkeys(("--gpu", "--cuda", "--cpu"), ("--device",)),
    **dict.fromkeys(("--overwrite", "--yes"), ("--force",)),
    **dict.fromkeys(("--samples", "--n"), ("--num-samples",)),
    **dict.fromkeys(("--continue",), ("--resume",)),
}
TYPOGRAPHIC = "“”„‟«»‘’"
TEXT_OPTIONS = ("--text", "--texts", "--file", "--data", "--dataset", "--input", "--prompt")


def explained(error: typer.TyperException, words: Sequence[str], commands: Mapping[str, Any]) -> GptcliError:
    """A mistyped command, option or value, in our two lines.

    Args:
        error: what typer says of it.
        words: the command line.
        commands: the commands by name.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "gptcli"
    if command == "gptcli" and words and words[0] in commands:
        command = f"gptcli {words[0]}"
    format_message = getattr(error, "format_message", None)
    message = " ".join((format_message() if format_message is not None else str(error)).split()).rstrip(".")
    if message.startswith("No such command"):
        return _no_command(words, commands)
    option = getattr(error, "option_name", None)
    if message.startswith("No such option"):
        return _no_option(str(option), words, command, _options(context), commands)
    extra = re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message, re.DOTALL)
    if extra and context is not None:
        return _too_many(extra[1], words, context)
    lacking = re.fullmatch(r"Missing argument '(\w+)(?:\.\.\.)?'", message)
    if lacking and context is not None:
        places = [
            place.metavar or place.name.upper()
            for place in context.command.params
            if place.param_type_name == "argument"
        ]
        return GptcliError(f"{command} lacks its {lacking[1].lower()}.", f"In this order: {command} {' '.join(places)}")
    kind = re.search(r"Invalid value for '?(.+?)'?: Input should be a valid (integer|number)", message)
    names = getattr(getattr(error, "param", None), "opts", [])
    given = [value for name, value in pairwise(words) if name in names]
    given += [word.partition("=")[2] for word in words if word.partition("=")[0] in names and "=" in word]
    if kind and given:
        what, name = "a whole number" if kind[2] == "integer" else "a number", kind[1].split("'")[0]  # '--lr' / '-l'
        with_point = given[-1].replace(",", ".")
        is_decimal = kind[2] == "number" and re.fullmatch(r"-?\d+\.\d+", with_point)
        hint = f"With a point: {name} {with_point}" if is_decimal else f"See: {command} --help"
        return GptcliError(f"{name} is {given[-1]!r}, not {what}.", hint)
    if given and given[-1] not in message:
        message += f": {given[-1]!r}"
    return GptcliError(message if message.endswith("?") else f"{message}.", f"See: {command} --help")


def refuse_option_names(texts: Sequence[str], context: typer.Context) -> None:
    """Raise GptcliError for a text that is an option's name without its dashes, and no file."""
    known = _options(context)
    for word, value in zip(texts, [*texts[1:], ""], strict=True):
        if f"--{word}" in known and not Path(word).exists():
            raise GptcliError(
                f"{word} is an option, and there is no file of that name.",
                f"With its dashes: --{word}{f' {render.quoted(value)}' if value else ''}",
            )


def _no_command(words: Sequence[str], commands: Mapping[str, Any]) -> GptcliError:
    word = next(word for word in words if not word.startswith("-") and word not in commands)
    rest = [each for each in words[words.index(word) + 1 :] if each in commands]
    if len(word.split()) > 1:
        return GptcliError(
            f"There is no command {_short(word)!r}.",
            f"Did you mean to continue it? gptcli generate {render.quoted(word)}",
        )
    if Path(word).exists() and word.lower() not in COMMANDS_MEANT:
        named = render.quoted(word)
        return GptcliError(f"{word} is a file or folder, not a command.", f"To train on it: gptcli train {named}")
    if word.lower() == "help":
        return GptcliError(
            "help is an option, not a command.", f"Did you mean gptcli {rest[0] + ' ' if rest else ''}--help?"
        )
    meant = COMMANDS_MEANT.get(word.lower()) or _close(word.lower(), commands)
    listed = f"Did you mean gptcli {meant}? gptcli --help lists the commands." if meant else "See: gptcli --help"
    return GptcliError(f"There is no command {_short(word)!r}.", listed)


def _no_option(
    option: str, words: Sequence[str], command: str, known: Sequence[str], commands: Mapping[str, Any]
) -> GptcliError:
    see = f"See: {command} --help"
    later = next((word for word in words if word in commands), None)
    if command == "gptcli" and later is not None:
        return GptcliError(
            f"{option} stands before the command {later}.", f"Options follow their command: gptcli {later} {option} …"
        )
    for word in (word.partition("=")[0] for word in words if word.startswith(option)):
        if not option.startswith("--") and f"-{word}" in known:
            return GptcliError(f"{command} has no option {word}.", f"Did you mean -{word}? {see}")
    wrong = f"{command} has no option {option}."
    value = next((value for name, value in pairwise(words) if name == option), None)
    takes_text = command.split()[-1] in ("train", "evaluate", "prepare", "generate", "tokenize", "train-tokenizer")
    if option in TEXT_OPTIONS and (takes_text or "inspect" in command):
        what = "PROMPT" if command.endswith("generate") else "TEXT"
        shown = render.quoted(value) if value is not None and not value.startswith("-") else what
        return GptcliError(wrong, f"The {what.lower()} follows the command without an option: {command} {shown}")
    meant = [name for name in OPTIONS_MEANT.get(option, ()) if name in known]
    if option == "--model" and command == "gptcli train":
        return GptcliError(
            wrong, "--size names the size of a new model; --init-from CHECKPOINT starts from another model's weights."
        )
    close = meant[0] if meant else _close(option, known)
    return GptcliError(wrong, f"Did you mean {close}? {see}" if close else see)


def _too_many(extra: str, words: Sequence[str], context: Any) -> GptcliError:
    """More words than arguments: most often a text without quotes."""
    command, places = context.command_path, [p for p in context.command.params if p.param_type_name == "argument"]
    takes_text = len(places) == 1 and places[0].name in ("prompt", "text")
    first = context.params.get(places[0].name) if takes_text else None
    if not isinstance(first, str):
        meant = _weights_meant(extra) if command == "gptcli load-gpt2" else None
        hint = f"Did you mean {command} {meant}?" if meant else f"See: {command} --help"
        return GptcliError(f"{command} does not take so many words: {extra}.", hint)
    what = places[0].name
    option, value = _option_before(extra, words)
    name = f"{value} {extra}"
    if value is not None and (len(first.split()) > 1 or layout.is_there(name)):
        line = " ".join(["gptcli", *map(render.quoted, _in_quotes(words, value, extra))])
        return GptcliError(f"{extra} follows {option} {value}, which takes one word.", f"Put a name in quotes: {line}")
    if layout.is_there(extra) and "--checkpoint" in _options(context):
        line = " ".join(["gptcli", *map(render.quoted, _as_an_option(words, extra, "--checkpoint"))])
        return GptcliError(f"{command} takes one {what}, and {extra} is a second.", f"To use the checkpoint: {line}")
    plain = f"{first} {extra}".strip(TYPOGRAPHIC)
    if plain != f"{first} {extra}":
        line = " ".join(
            ["gptcli", *(render.quoted(word.strip(TYPOGRAPHIC)) for word in _in_quotes(words, first, extra))]
        )
        return GptcliError(
            f"The quotes around the {what} are typographic, and a shell does not know them.",
            f"Straight ones: {line}",
        )
    line = " ".join(["gptcli", *map(render.quoted, _in_quotes(words, first, extra))])
    return GptcliError(
        f"The {what} has several words and no quotes around them: {first} {extra}.", f"Put the {what} in quotes: {line}"
    )


def _weights_meant(word: str) -> str | None:
    """The option of load-gpt2 that ``word`` was meant for."""
    if Path(word).exists():
        return f"--from {render.quoted(word)}"
    size = layout.gpt2_size(word)
    return f"--size {size}" if size else None


def _option_before(extra: str, words: Sequence[str]) -> tuple[str, str | None]:
    """The option, and its value, that ``extra`` follows."""
    for option, value, word in zip(words, words[1:], words[2:], strict=False):
        if option.startswith("-") and not value.startswith("-") and extra.split()[0] == word and "=" not in option:
            return option, value
    return "", None


def _as_an_option(words: Sequence[str], extra: str, option: str) -> list[str]:
    """``words`` with ``option`` before ``extra``, as one word."""
    count = 1 if extra in words else len(extra.split())
    first = words.index(extra if count == 1 else extra.split()[0])
    return [*words[:first], option, extra, *words[first + count :]]


def _in_quotes(words: Sequence[str], first: str, extra: str) -> Iterator[str]:
    """``words`` with those of a text, ``first`` and then those of ``extra``, as one word."""
    rest, seen = extra, False
    for word in words:
        if not seen and word == first:
            seen = True
            yield f"{first} {extra}"
        elif seen and rest and (rest == word or rest.startswith(f"{word} ")):
            rest = rest[len(word) :].lstrip(" ")
        else:
            yield word


def _options(context: Any) -> list[str]:
    params = context.command.params if context is not None else []
    return [name for param in params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]


def _close(word: str, names: Any) -> str | None:
    return next(iter(get_close_matches(word, list(names), n=1, cutoff=NEAR)), None)


def _short(word: str) -> str:
    return word if len(word) <= 60 else word[:59] + "…"
