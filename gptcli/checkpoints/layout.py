"""The path of a checkpoint and the content of its config.json, read without importing torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from gptcli import __version__, tokenizers
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError, SettingError, nearest, quoted
from gptcli.tokenizers import Tokenizer, vocabulary

ROOT = Path("checkpoints")
MAKE_ONE = "Make one: gptcli download story, then gptcli train data/story.txt --size tiny"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
TOKENIZER_FILES = (vocabulary.FILE, "vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json")
METRICS = "metrics.jsonl"
LOSS_PICTURE = "loss.png"
TEXTS = "texts.json"  # what a run was trained on
SETTINGS = "config.toml"  # of the training run
EVENT_FILES = "tensorboard"
SNAPSHOTS, OPTIMIZER, STATE = "training", "optimizer.safetensors", "state.json"
BEST_WEIGHTS = "best.safetensors"  # in a snapshot: those of the best evaluation, where they are not its own
# OpenAI's sizes -> what follows "gpt2" in other names of them: parameters as they are counted now, and as they were.
GPT2_NAMES = {
    "small": ("", "124m", "117m"),
    "medium": ("355m", "345m"),
    "large": ("774m", "762m"),
    "xl": ("1558m", "1542m", "1.5b"),
}
FORMAT = 1  # version of a checkpoint's layout; from version 2 on, config.json has it under "gptcli"


def find(name: Path | str | None = None) -> Path:
    """The directory that ``--checkpoint`` names: a path, a name under checkpoints/, or (None) the newest there.

    Raises:
        GptcliError: there is no such checkpoint.
    """
    known = sorted(known_paths(WEIGHTS, ADAPTER_WEIGHTS), key=lambda path: weights_file(path).stat().st_mtime)
    if name is None:
        if not known:
            here = newest_here()
            raise GptcliError(
                f"There is no checkpoint under {ROOT}{os.sep} yet.",
                MAKE_ONE if here is None else f"The newest in this folder is {here}: give its name.",
            )
        return known[-1]
    path = Path(name)
    if path.exists():
        return path
    if (ROOT / path).exists():
        return ROOT / path
    names = [p.name for p in known]
    hint, size = nearest(path.name, names) if known else MAKE_ONE, gpt2_size(path.name)
    if size is not None and f"gpt2-{size}" not in names:
        hint = f"Load OpenAI's weights first: gptcli load-gpt2 --size {size}"
    elif size is not None:
        hint = f"Did you mean gpt2-{size}?"
    if weights_file(Path(path.name)).is_file():
        hint = f"Did you mean {path.name}?"
    raise GptcliError(f"There is no checkpoint {name}, and none of that name under {ROOT}{os.sep}.", hint)


def is_there(name: str) -> bool:
    """Whether there is a checkpoint of that name, here or under checkpoints/."""
    try:
        return any(weights_file(folder / name).is_file() for folder in (Path(), ROOT))
    except (OSError, ValueError):  # no name that a file can have
        return False


def gpt2_size(name: str) -> str | None:
    """The size of OpenAI's that a name means: small, gpt2, gpt2-small, openai-community/gpt2, 124M; or None."""
    word = name.rpartition("/")[2].lower().removeprefix("gpt2").strip("-_ ()")
    return next((size for size, names in GPT2_NAMES.items() if word in (size, *names)), None)


def known_paths(*names: str) -> set[Path]:
    """The directories under checkpoints/ that hold one of these files."""
    found = {file.parent for name in names for file in ROOT.glob(f"*/{name}")}
    return {path for path in found if not path.name.startswith(".")}


def newest_here() -> Path | None:
    """The newest checkpoint that lies in this folder and not under checkpoints/, as --out NAME makes it."""
    found = {path.parent for name in (WEIGHTS, ADAPTER_WEIGHTS) for path in Path().glob(f"*/{name}")}
    return max(found, key=lambda path: weights_file(path).stat().st_mtime, default=None)


def named(path: Path) -> Path:
    """``path``, or where that is ``.`` or ends in ``..``, the same directory by its name."""
    return path if path.name not in ("", "..") else path.resolve()


def beside(path: Path, ending: str) -> Path:
    """The directory beside ``path`` with the same name and ``ending``."""
    return named(path).with_name(named(path).name + ending)


def is_adapter(path: Path) -> bool:
    """Whether the directory holds a low-rank adapter, and not the weights of a whole model."""
    return (path / ADAPTER_CONFIG).is_file()


def weights_file(path: Path) -> Path:
    """The file with the weights of a checkpoint, or with those of an adapter."""
    return path / (ADAPTER_WEIGHTS if is_adapter(path) else WEIGHTS)


def last(path: Path) -> Path:
    """The checkpoint with the last weights of the run ``path``: its newest snapshot, or itself if it holds the last.

    Raises:
        SettingError: ``path`` holds the best weights, and its last ones are not there.
    """
    training = read_config(path)[1].get("training") or {}
    found = sorted(folder for folder in (path / SNAPSHOTS).glob("step-*") if weights_file(folder).exists())
    if found:
        return found[-1]
    if training.get("weights") == "best":
        raise SettingError(
            f"{path} holds the weights of its best evaluation, and it has no snapshots any more.",
            "Leave {last} out, or use the run that it was copied from.",
        )
    return path


def train_on_from(run: Path) -> str:
    """The command that trains on from the weights of ``run`` as a new run: of fine-tuning where it is a classifier."""
    source = quoted(str(run))
    try:
        is_classifier = bool(read_config(run)[0].labels)
    except GptcliError:  # told where it is opened
        is_classifier = False
    if is_classifier:
        return f"gptcli finetune DATA --init-from {source} --out ANOTHER"
    return f"gptcli train TEXT --init-from {source} --out ANOTHER"


def read_config(path: Path) -> tuple[GPTConfig, dict[str, Any]]:
    """The model's shape and the "gptcli" section of config.json.

    Raises:
        GptcliError: the file is missing, not JSON, without a valid "gptcli" section, or of a format above FORMAT.
    """
    file = path / CONFIG
    if not path.is_dir():
        raise GptcliError(f"{path} is not a directory.", "A checkpoint is a directory with a config.json in it.")
    if not file.exists() and is_adapter(path):
        raise GptcliError(
            f"{path} is an adapter that does not say which checkpoint it changes.",
            f"Name that too: gptcli generate PROMPT -c CHECKPOINT --adapter {path}",
        )
    if not file.exists():
        empty = not any(path.iterdir())
        raise GptcliError(
            f"{path} {'is empty' if empty else f'has no {CONFIG}'}: it is not a checkpoint.",
            f"A checkpoint holds {CONFIG} and {WEIGHTS}; gptcli train makes one.",
        )
    try:
        everything = json.loads(file.read_text(encoding="utf-8"))
        ours = everything["gptcli"]
        _check_format(file, ours)
        names = {field.name for field in fields(GPTConfig)}
        shape = {name: value for name, value in ours["config"].items() if name in names}
    except OSError as error:
        raise GptcliError(
            f"{file} cannot be read: {error.strerror or error}.", "Check that you may read it."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GptcliError(
            f"{file} is not a gptcli checkpoint's: {_one_line(error)}.",
            f"Import other programs' weights: gptcli load-gpt2 --from {path}",
        ) from error
    try:
        return GPTConfig(**shape), ours
    except GptcliError as error:
        raise GptcliError(f"{file}: {error.message}", "Copy the checkpoint again, or train again.") from error


def read_language_model(path: Path) -> tuple[GPTConfig, dict[str, Any]]:
    """`read_config`; raises GptcliError for a classifier as well."""
    config, ours = read_config(path)
    require_language_model(path, config)
    return config, ours


def require_language_model(path: Path, config: GPTConfig) -> None:
    """Raise GptcliError if the model at ``path`` is a classifier, which does not predict the next token."""
    if config.labels:
        raise GptcliError(
            f"{path} is a classifier of {len(config.labels)} labels, not a language model.",
            f"Classify a text with it: gptcli classify TEXT --checkpoint {path}",
        )


def check_format(path: Path) -> None:
    """Raise GptcliError if config.json in ``path`` has an invalid or newer format; other faults are ignored."""
    file = path / CONFIG
    try:
        ours = json.loads(file.read_text(encoding="utf-8"))["gptcli"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if isinstance(ours, dict):
        _check_format(file, ours)


def _check_format(file: Path, ours: Mapping[str, Any]) -> None:
    found = ours.get("format", 1)
    if type(found) is not int or found < 1:
        raise GptcliError(f"{file}: format is {found!r}, but formats are numbered from 1.", "Copy it again.")
    if found > FORMAT:
        raise GptcliError(
            f"{file} is of format {found}, but gptcli {__version__} reads formats up to {FORMAT} only.",
            "Update gptcli, or open it with the version that wrote it.",
        )


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the checkpoint ``path``, verified by its fingerprint."""
    return tokenizer_of(path, read_config(path)[1])


def tokenizer_of(path: Path, ours: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the "gptcli" section ``ours`` of config.json names, read from its files in ``path``.

    Raises:
        GptcliError: no tokenizer is named, its files are missing or damaged, or the fingerprint differs.
    """
    try:
        kind, fingerprint = ours["tokenizer"]["kind"], ours["tokenizer"]["fingerprint"]
        if not isinstance(kind, str) or not isinstance(fingerprint, str):
            raise TypeError
    except (KeyError, TypeError) as error:
        raise GptcliError(
            f"{path / CONFIG} does not name its tokenizer.", "Copy the checkpoint again, or train again."
        ) from error
    return tokenizers.load(path, kind, fingerprint)


def packed_bits(path: Path, ours: Mapping[str, Any]) -> int:
    """Bits per weight in the file: 32, or 8 or 4 after ``gptcli quantize``.

    Raises:
        GptcliError: any other number.
    """
    bits = ours.get("bits", 32)
    if bits not in (32, 8, 4):
        raise GptcliError(f"{path / CONFIG}: bits is {bits!r}, but weights have 32, 8 or 4.", "Quantise it again.")
    return int(bits)


def check_parts(path: Path, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Raise GptcliError if the weights are missing, or the tokenizer has more tokens than the model's vocab_size."""
    if tokenizer.vocab_size > config.vocab_size:
        raise GptcliError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, but config.json says vocab_size "
            f"{config.vocab_size}.",
            "Its files come from two models; copy the checkpoint again, or train again.",
        )
    file = weights_file(path)
    if not file.exists():
        raise GptcliError(f"{path} has no {file.name}.", "The checkpoint is incomplete; copy it again, or train again.")


def _one_line(error: Exception) -> str:
    words = "it has no " + str(error) if isinstance(error, KeyError) else str(error)
    return " ".join(words.split()).rstrip(".")
