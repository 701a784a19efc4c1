"""The public API as functions; `gptcli` finds them here. Nothing is printed: messages go to the logger "gptcli".

Paths are a str or an os.PathLike. A checkpoint is named by its directory, or by its name under checkpoints/. A mistake
raises `GptcliError`, whose first line says what is wrong and whose second line says what to do.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptcli.errors import GptcliError
from gptcli.training import events as events

if TYPE_CHECKING:
    from gptcli.checkpoints.checkpoint import Checkpoint
    from gptcli.checkpoints.formats.convert import Converted, FileDtype, Format
    from gptcli.inference.text_model import TextModel
    from gptcli.model.gpt import GPTModel
    from gptcli.tokenizers import Tokenizer

AnyPath = str | os.PathLike[str]
Dtype = Literal["float32", "bfloat16", "float16"]

LOG = logging.getLogger("gptcli")
LOG.addHandler(logging.NullHandler())  # silent, unless the program that uses gptcli configures logging


def load(
    path: AnyPath,
    *,
    device: str = "auto",
    dtype: Dtype = "float32",
    quantize: Literal["int8", "int4"] | None = None,
    threads: int | None = None,
    last: bool = False,
) -> "TextModel":
    """Open a checkpoint to generate text with it.

    Args:
        path: the checkpoint.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:N" or "mps".
        dtype: of weights and activations. float32 on a CPU runs on the compiled kernels, everything else on torch.
        quantize: pack the matrices in memory; None leaves them as they are in the checkpoint.
        threads: CPU threads; None for the physical cores.
        last: take the last weights of a run, and not those of its best evaluation.

    Raises:
        GptcliError: there is no such checkpoint, device, dtype or format; the checkpoint is damaged; or it is packed in
            another format already.

    Example:
        >>> import gptcli
        >>> model = gptcli.load("checkpoints/demo", device="cpu")
        >>> model  # doctest: +ELLIPSIS
        TextModel('checkpoints/demo': 2 layers, 2 heads, 16 wide, context 16, char tokenizer, engine ...)
        >>> model.config.context_length, model.tokenizer.encode("cat")[:3] == model.tokenizer.encode("cat")
        (16, True)
        >>> gptcli.load("checkpoints/dem")
        Traceback (most recent call last):
        gptcli.errors.GptcliError: There is no checkpoint checkpoints/dem, and none of that name under checkpoints/.
        Did you mean demo? There are: demo.
    """
    from gptcli.checkpoints import layout
    from gptcli.inference.text_model import TextModel

    found = layout.find(os.fspath(path))
    found = layout.last(found) if last else found
    return TextModel(found, device=device, dtype=dtype, quantize=quantize, threads=threads, report=LOG.info)


def quantize(path: AnyPath, out: AnyPath | None = None, *, bits: Literal[8, 4] = 8, force: bool = False) -> Path:
    """Write a copy of a float32 checkpoint whose matrices are packed in 8 or 4 bits.

    Args:
        path: the checkpoint.
        out: the new directory; None for the old name with -int8 or -int4.
        bits: bits of a weight; the scales of 4-bit weights are bfloat16, of 8-bit weights float32.
        force: whether a checkpoint at ``out`` may be replaced.

    Returns:
        the new directory.

    Raises:
        GptcliError: ``bits`` is another number, the checkpoint is packed already, or ``out`` exists or cannot be
            written.

    Example:
        >>> import gptcli
        >>> gptcli.quantize("checkpoints/demo", "demo-int8").name
        'demo-int8'
    """
    from gptcli.checkpoints import derived, layout, overwrite
    from gptcli.model.quantization import check_bits

    count, source = check_bits(bits), layout.find(os.fspath(path))
    target = Path(out) if out is not None else layout.beside(source, f"-int{count}")
    overwrite.check_output(target, force=force, inputs=[source])
    derived.create_packed(target, source, count, force)
    return target


def merge(adapter: AnyPath, out: AnyPath | None = None, *, base: AnyPath | None = None, force: bool = False) -> Path:
    """Write a low-rank adapter and the checkpoint that it changes as one float32 checkpoint, which needs neither.

    Args:
        adapter: a run of ``finetune`` with ``FinetuneConfig(train="lora")``, or an adapter that PEFT wrote.
        out: the new directory; None for the old name with -merged.
        base: the checkpoint that it changes; None for the one that it names.
        force: whether a checkpoint at ``out`` may be replaced.

    Returns:
        the new directory.

    Raises:
        GptcliError: ``adapter`` is no adapter, or one that is more than plain LoRA; its base is missing or has other
            weights; or ``out`` exists or cannot be written.

    Example:
        >>> import gptcli
        >>> settings = gptcli.FinetuneConfig(train="lora:2", max_steps=1)
        >>> run = gptcli.finetune("story.txt", "adapter", init_from="checkpoints/demo", settings=settings)
        >>> gptcli.merge(run).name
        'adapter-merged'
    """
    from gptcli.checkpoints import derived, layout

    source = layout.find(os.fspath(adapter))
    target = Path(out) if out is not None else layout.beside(source, "-merged")
    derived.create_merged(target, source, None if base is None else layout.find(os.fspath(base)), force)
    return target


def convert(
    source: AnyPath,
    out: AnyPath,
    *,
    format: "Format" = "hf",  # noqa: A002
    dtype: "FileDtype" = "float32",
    force: bool = False,
) -> "Converted":
    """Convert a model from any format that gptcli reads to one that it writes, and compare what was written.

    Args:
        source: a checkpoint of gptcli's; a directory or file of transformers, OpenAI's TensorFlow files or nanoGPT's
            ckpt.pt; or "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION" for a repository on the Hugging Face hub.
        out: the new directory; with "gguf" the folder of the new file, or a file whose name ends in .gguf.
        format: "hf", a checkpoint directory that transformers opens as well, or "gguf", one file for llama.cpp.
        dtype: of the weights in the file. In GGUF, vectors (biases, norms) stay float32.
        force: whether ``out`` may be replaced.

    Returns:
        a `Converted`: ``path`` is the new directory or file, ``config`` the model's shape.

    Raises:
        GptcliError: ``source`` is missing, damaged, hostile or no GPT-2; the hub cannot be reached; a weight does not
            fit float16; llama.cpp does not know such a model; ``out`` exists or cannot be written.

    Example:
        >>> import gptcli
        >>> gptcli.convert("checkpoints/demo", "half", dtype="float16").path.name
        'half'
    """
    from gptcli.checkpoints.formats import convert as formats

    def downloading(name: str, size: int) -> None:
        LOG.info("Downloading %s, %d bytes", name, size)

    done = formats.convert(os.fspath(source), Path(out), format, dtype, force=force, on_download=downloading)
    for line in done.notes:
        LOG.info(line)
    return done


def load_checkpoint(path: AnyPath) -> "Checkpoint":
    """Read a checkpoint for PyTorch: its shape, its tokenizer, and its weights by OpenAI's parameter names.

    Args:
        path: the checkpoint.

    Returns:
        a `Checkpoint`; its ``model(device, dtype)`` is a `GPTModel` in eval mode, a torch module that maps token ids
        (B, T) int64 to logits (B, T, V).

    Raises:
        GptcliError: a file is missing, damaged or contradicts another; a tensor has a wrong shape or is not finite.

    Example:
        >>> import gptcli, torch
        >>> checkpoint = gptcli.load_checkpoint("checkpoints/demo")
        >>> model = checkpoint.model()
        >>> ids = torch.tensor([checkpoint.tokenizer.encode("the cat")])
        >>> tuple(model(ids).shape) == (1, 7, checkpoint.config.vocab_size)
        True
    """
    from gptcli.checkpoints import checkpoint

    return checkpoint.load(checkpoint.find(os.fspath(path)))


def save_checkpoint(
    path: AnyPath,
    model: "GPTModel",
    tokenizer: "Tokenizer",
    *,
    training: Mapping[str, Any] | None = None,
    dtype: "FileDtype" = "float32",
    force: bool = False,
) -> Path:
    """Write a new checkpoint, which every command, `load` and transformers open. It appears whole or not at all.

    Args:
        path: the new directory.
        model: on any device, in any dtype.
        tokenizer: the one of the model's tokens.
        training: facts about the training to keep in config.json, as JSON values.
        dtype: of the weights in the file.
        force: whether a checkpoint at ``path`` may be replaced.

    Returns:
        the directory.

    Raises:
        GptcliError: there is no such dtype; ``path`` exists or cannot be written; the tokenizer has more tokens than
            the model.

    Example:
        >>> import gptcli
        >>> checkpoint = gptcli.load_checkpoint("checkpoints/demo")
        >>> gptcli.save_checkpoint("copy", checkpoint.model(), checkpoint.tokenizer).name
        'copy'
    """
    import torch

    from gptcli.checkpoints import checkpoint
    from gptcli.checkpoints.formats.convert import check_dtype

    check_dtype(dtype)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise GptcliError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, but the model only {model.config.vocab_size}.",
            "Give the tokenizer of the model's tokens.",
        )
    where, weights = Path(path), checkpoint.to_file(model)
    checkpoint.create_from(
        where, model.config, weights, tokenizer, training or {}, dtype=getattr(torch, dtype), force=force
    )
    return where
