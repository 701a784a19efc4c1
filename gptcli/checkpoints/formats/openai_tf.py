"""GPT-2 in OpenAI's format: hparams.json, a TensorFlow checkpoint and, optionally, the vocabulary in one folder."""

import re
from pathlib import Path

from gptcli.checkpoints.checkpoint import check_tensors
from gptcli.checkpoints.formats import names, tf_bundle
from gptcli.checkpoints.formats.source import Source, find_tokenizer, read_json
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError, SettingError

HPARAMS = "hparams.json"
_FIELDS = {
    "n_vocab": "vocab_size",
    "n_ctx": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
}


def is_index(path: Path) -> bool:
    """Whether the file ends with the magic number of a TensorFlow checkpoint's index."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(tf_bundle.MAGIC)))
            return file.read() == tf_bundle.MAGIC
    except OSError:
        return False


def index_of(path: Path) -> Path | None:
    """The index of the TensorFlow checkpoint that ``path`` names, as its index, a data shard, or without a suffix.

    None for other paths. A file of model.ckpt has an index even where that is missing: its absence is the error.
    """
    if is_index(path):
        return path
    prefix = re.sub(r"\.(data-\d+-of-\d+|index|meta)$", "", path.name)
    index = path.with_name(f"{prefix}.index") if prefix else path
    return index if is_index(index) or (prefix == "model.ckpt" and path.is_file()) else None


def read_directory(directory: Path, index: Path | None = None) -> Source:
    """The model in a directory with the files that OpenAI published; ``index`` is the checkpoint, None for the only.

    Raises:
        GptcliError: hparams.json, the index or a data shard is missing or damaged, or a name or shape is not GPT-2's.
    """
    file = directory / HPARAMS
    hparams = read_json(file)
    for theirs in _FIELDS:
        if type(hparams.get(theirs)) is not int:
            raise GptcliError(
                f"{file}: {theirs} is {hparams.get(theirs)!r:.60}, not a whole number.", "Download it again."
            )
    try:
        config = GPTConfig(**{ours: hparams[theirs] for theirs, ours in _FIELDS.items()})
    except GptcliError as error:
        raise GptcliError(f"{file}: {error.message}", error.hint) from error
    index = index or _find_index(directory)
    tensors = names.from_openai(tf_bundle.read_bundle(index))
    check_tensors(tensors, config, str(index))
    notes: list[str] = []
    return Source(
        "OpenAI's TensorFlow files", config, tensors, find_tokenizer(directory, config.vocab_size, notes), notes
    )


def _find_index(directory: Path) -> Path:
    usual = directory / "model.ckpt.index"
    others = [path for path in sorted(directory.glob("*.index")) if is_index(path)]
    if usual.exists() or not others:
        if not usual.exists():
            raise GptcliError(
                f"{directory} has a {HPARAMS} but no {usual.name}.",
                "The files model.ckpt.index and model.ckpt.data-… belong together; download both.",
            )
        return usual
    if len(others) > 1:
        raise SettingError(
            f"{directory} holds {len(others)} checkpoints: {', '.join(path.name for path in others[:10])}.",
            f"Name the one you want: {{source}} {others[0]}",
        )
    return others[0]
