"""What the inspect commands share: a text through a checkpoint, and four kinds of files that come out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.checkpoints import overwrite
from gptcli.cli import options, render
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.checkpoints.checkpoint import Checkpoint
    from gptcli.model.gpt import GPTModel
    from gptcli.tokenizers import Tokenizer

STDOUT = Path("-")


@dataclass(frozen=True)
class Outputs:
    """Where --png, --html, --json and --npz write.

    Raises:
        GptcliError: when made: a folder that is not there, a folder instead of a file, the same file twice, a file that
            gptcli did not make.
    """

    png: Path | None = None
    html: Path | None = None
    json: Path | None = None
    npz: Path | None = None

    def __post_init__(self) -> None:
        paths = [path for field in fields(self) if (path := getattr(self, field.name)) is not None]
        for number, path in enumerate(paths):
            if path.is_dir() or not path.parent.is_dir():
                why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
                raise GptcliError(f"Cannot write {path}: {why}.", "Name a file in a folder that exists.")
            if path in paths[:number]:
                raise GptcliError(f"{path} is named twice.", "Give every kind of output a file of its own.")
            if path == STDOUT and path != self.json:
                raise GptcliError("Only --json can write to stdout.", "Name a file for the others.")
        if self.png is not None and self.png.suffix.lower() in (".svg", ".pdf", ".jpg", ".jpeg"):
            raise GptcliError(f"--png {self.png} does not end in .png.", f"Give {self.png.with_suffix('.png')}.")
        for field in fields(self):
            path = getattr(self, field.name)
            if path is not None and path != STDOUT:
                overwrite.check_result(path, field.name)

    def write(
        self,
        png: Callable[[], bytes],
        html: Callable[[], str],
        record: Callable[[], dict[str, Any]],
        arrays: Callable[[], Mapping[str, Any]],
    ) -> bool:
        """Make and write what was asked for; True where stdout is taken by JSON."""
        if self.png is not None:
            _write(self.png, png())
        if self.html is not None:
            _write(self.html, html().encode())
        if self.npz is not None:
            import numpy

            try:
                with self.npz.open("wb") as file:
                    numpy.savez(file, allow_pickle=False, **arrays())
            except OSError as error:
                raise _cannot_write(self.npz, error) from error
            render.note(f"Wrote {self.npz}.")
        if self.json is not None and self.json != STDOUT:
            import json

            _write(self.json, (json.dumps(record(), indent=1, ensure_ascii=False) + "\n").encode())
        if self.json == STDOUT:
            render.print_json(record())
            return True
        return False


@dataclass(frozen=True)
class Subject:
    """A text on the way into a model.

    Attributes:
        checkpoint, model: which; the model is in eval mode and float32.
        ids: (T), at most the model's context.
        pieces: the tokens, printable.
    """

    checkpoint: "Checkpoint"
    model: "GPTModel"
    ids: "Tensor"
    pieces: list[str]

    @property
    def labels(self) -> list[str]:
        """The tokens with their spaces visible."""
        return [label(piece) for piece in self.pieces]

    def record(self, **more: Any) -> dict[str, Any]:
        """The start of every JSON output: what was looked at."""
        tokens = [{"id": int(i), "piece": piece} for i, piece in zip(self.ids, self.pieces, strict=True)]
        return {"checkpoint": str(self.checkpoint.path), "tokens": tokens, **more}


def open_model(
    checkpoint: Path | None, adapter: Path | None, device: str, threads: int | None
) -> tuple["Checkpoint", "GPTModel"]:
    """The checkpoint that --checkpoint and --adapter mean, and its model in float32."""
    import torch

    from gptcli.checkpoints import checkpoint as checkpoints
    from gptcli.device import placement as devices

    placement = devices.choose(device, "float32")
    devices.set_threads(threads)
    path, added = options.find_model(checkpoint, adapter)
    loaded = checkpoints.load(path, added)
    if checkpoint is None and adapter is None:
        render.note(f"Using {path}, the newest checkpoint.")
    return loaded, loaded.model(placement.device, torch.float32)


def read(text: str, checkpoint: Path | None, adapter: Path | None, device: str, threads: int | None) -> Subject:
    """``text`` as tokens of the checkpoint's model; what is beyond its context is left out, and said.

    Raises:
        GptcliError: the text is empty, or has characters that the tokenizer does not know.
    """
    import torch

    loaded, model = open_model(checkpoint, adapter, device, threads)
    ids = tokens_of(loaded.tokenizer, text)
    context = loaded.config.context_length
    if len(ids) > context:
        render.warn(
            f"The text has {len(ids):,} tokens and the model's context holds {context:,}: the rest is left out."
        )
        ids = ids[:context]
    return Subject(loaded, model, torch.tensor(ids), [loaded.tokenizer.piece(i) for i in ids])


def read_to_predict(
    text: str, checkpoint: Path | None, adapter: Path | None, device: str, threads: int | None
) -> Subject:
    """`read` for a model that predicts the next token; a classifier raises GptcliError as well."""
    from gptcli.checkpoints import adapters, layout

    layout.read_language_model(adapters.described_by(*options.find_model(checkpoint, adapter)))
    return read(text, checkpoint, adapter, device, threads)


def tokens_of(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Token ids; unknown words of a word tokenizer are said.

    Raises:
        GptcliError: there are none, or the tokenizer does not know a character.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise GptcliError("The text is empty: there is nothing to inspect.", "Give at least one token.")
    if tokenizer.kind == "word" and (unknown := ids.count(tokenizer.vocab_size - 1)):
        render.warn(f"{unknown} of {len(ids)} words are not in the vocabulary: the model sees <|unk|> there.")
    return ids


def check_range(option: str, value: int | None, count: int) -> None:
    """``value`` must be one of 0 … count - 1.

    Raises:
        GptcliError: it is not.
    """
    if value is not None and not 0 <= value < count:
        raise GptcliError(f"{option} {value} is out of range.", f"There are {count:,}: 0 to {count - 1:,}.")


def label(piece: str, width: int | None = None) -> str:
    """A token with its spaces visible, cut to ``width`` columns."""
    shown = piece.replace(" ", "·") or "∅"
    if width is None:
        return shown
    from rich.cells import cell_len, set_cell_size

    return shown if cell_len(shown) <= width else set_cell_size(shown, width - 1) + "…"


def token_name(tokenizer: "Tokenizer", token_id: int) -> str:
    """The label of any id that the model has a row for; one without text is shown as a number."""
    has_text = token_id < tokenizer.vocab_size and token_id not in tokenizer.holes
    return label(tokenizer.piece(token_id)) if has_text else f"#{token_id}"


def percent(share: float) -> str:
    """A probability as people read it; a tiny one as a power of ten."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.0e}"


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _cannot_write(path, error) from error
    render.note(f"Wrote {path}.")


def _cannot_write(path: Path, error: OSError) -> GptcliError:
    return GptcliError(f"Cannot write {path}: {error.strerror or error}.", "Name a file that can be written.")
