"""The perplexity of one checkpoint on texts: what is to be done is known first, then it is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptcli.checkpoints import layout
from gptcli.checkpoints.checkpoint import Checkpoint
from gptcli.data.documents import Document
from gptcli.device.placement import Placement
from gptcli.evaluation import log_likelihood, perplexity
from gptcli.evaluation.text_results import TextResult


@dataclass(frozen=True)
class WindowOptions:
    """How to measure; None for the default.

    Attributes:
        stride, context, guide: as `perplexity.make_protocol` says.
        bos: whether the end-of-text id is before each text; None if the tokenizer has one.
        batch_size: windows at once.
        observe: keep what plots need: losses by position, and calibration.
    """

    stride: int | None = None
    context: int | None = None
    guide: bool = False
    bos: bool | None = None
    batch_size: int | None = None
    observe: bool = False


class TextMeasurement:
    """A checkpoint, its model on a device, and texts as its tokens.

    Attributes:
        protocol: the windows.
        bos: whether the end-of-text id is before each text.
        batch_size: windows at once.
        windows: in all texts.

    Raises:
        GptcliError: the checkpoint has no such context, or its tokenizer does not know a character.
    """

    def __init__(
        self, loaded: Checkpoint, documents: Sequence[Document], options: WindowOptions, placement: Placement
    ) -> None:
        self.loaded, self.placement, self._observe = loaded, placement, options.observe
        tokenizer = loaded.tokenizer
        self._bits = layout.packed_bits(loaded.path, layout.read_config(loaded.path)[1])
        self.protocol = perplexity.make_protocol(
            loaded.config.context_length, options.context, options.stride, options.guide
        )
        self.bos = tokenizer.eot_id is not None if options.bos is None else options.bos
        self._runs = [perplexity.encode(document.text, tokenizer, self.bos) for document in documents]
        self.batch_size = options.batch_size or log_likelihood.default_batch_size(self.protocol.context)
        self._model = loaded.runner(placement.device, placement.dtype)
        self.windows = sum(1 for run in self._runs for _ in perplexity.windows(len(run), self.protocol))

    def measure(self, on_windows: Callable[[int], object]) -> TextResult:
        """Score every token; ``on_windows`` is called with how many windows have just been read."""
        measured = perplexity.measure(
            self._model, self._runs, self.protocol, self.batch_size, self._observe, on_windows
        )
        return TextResult(
            checkpoint=str(self.loaded.path),
            tokenizer=self.loaded.tokenizer.kind,
            fingerprint=self.loaded.tokenizer.fingerprint,
            weights=f"int{self._bits}" if self._bits < 32 else "float32",
            dtype=str(self.placement.dtype).removeprefix("torch."),
            device=str(self.placement.device),
            bos=self.bos,
            protocol=self.protocol,
            measured=measured,
            tokens=sum(len(run) for run in self._runs) - len(self._runs) * self.bos,
        )
