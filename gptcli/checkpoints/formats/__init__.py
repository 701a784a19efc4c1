"""Readers of GPT-2 weights in foreign formats; each returns a `Source` of checked tensors by our names."""

from pathlib import Path

from gptcli.checkpoints.formats import course, hf, llm_c, nanogpt, openai_tf
from gptcli.checkpoints.formats.source import Source, read_pickle
from gptcli.errors import GptcliError, SettingError, quoted


def read(path: Path) -> Source:
    """The model at ``path``; the format is detected, mainly from the content of the files.

    ``path`` is a Hugging Face directory or a file of it; OpenAI's TensorFlow files: their directory, any file of it, or
    the path without a suffix that TensorFlow calls the checkpoint; a nanoGPT checkpoint (its file, or its directory);
    the course's model.pth (likewise); or a .bin file of llm.c's.

    Raises:
        GptcliError: ``path`` does not exist, its format is unknown, or it is damaged, hostile or not a GPT-2.
    """
    if path.is_dir():
        return _read_directory(path)
    index = openai_tf.index_of(path)
    if index is not None:
        return openai_tf.read_directory(path.parent, index)
    if not path.is_file():
        raise GptcliError(f"There is no {path}.", "Give a directory with a GPT-2 in it, or a file of weights.")
    if path.suffix != ".safetensors":
        if llm_c.is_file(path):
            return llm_c.read(path)
        if hf.is_pickle(path):
            values = read_pickle(path)
            if nanogpt.is_checkpoint(values):
                return nanogpt.read(path, values)
            if course.is_state(values):
                return course.read(path, values)
    if path.name.endswith(".index.json") or (path.parent / hf.CONFIG).is_file():
        return hf.read_directory(path.parent, path)
    if _is_text(path):
        raise GptcliError(f"{path} holds text, and no weights.", f"To train on it: gptcli train {quoted(str(path))}")
    return hf.read_lone_file(path)


def _is_text(path: Path) -> bool:
    """Whether the file begins as a text does; a safetensors file has zeros in its first 8 bytes."""
    with path.open("rb") as opened:
        start = opened.read(8)
    return len(start) == 8 and all(byte >= 0x20 or byte in b"\t\n\r" for byte in start)


def _read_directory(directory: Path) -> Source:
    if (directory / hf.CONFIG).exists():
        return hf.read_directory(directory)
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    if (directory / openai_tf.HPARAMS).exists() or any(openai_tf.is_index(path) for path in files):
        return openai_tf.read_directory(directory)
    for path in files:
        if path.suffix in (".pt", ".pth") and hf.is_pickle(path):
            return read(path)
    if any(path.suffix in (".safetensors", ".bin") for path in files):
        raise SettingError(
            f"{directory} has weights but no {hf.CONFIG}.",
            "Put the model's config.json beside them, or name the one .safetensors file: {source} FILE.",
        )
    below = sorted(path for path in directory.iterdir() if path.is_dir() and (path / openai_tf.HPARAMS).exists())
    hint = (
        f"Is it this? {{source}} {below[0]}" if below else "Give the directory that holds config.json or hparams.json."
    )
    raise SettingError(f"{directory} holds no GPT-2: neither {hf.CONFIG} nor {openai_tf.HPARAMS}.", hint)
