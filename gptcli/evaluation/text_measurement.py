"""The perplexity of one checkpoint on texts; the number of windows is known before the measurement."""

from collections.abc import Callable, Sequence

from gptcli.checkpoints import layout
from gptcli.checkpoints.checkpoint import Checkpoint
from gptcli.config.evaluation import PerplexityConfig
from gptcli.data import text_record
from gptcli.data.documents import Document
from gptcli.device.placement import Placement
from gptcli.evaluation import log_likelihood, perplexity
from gptcli.evaluation.text_results import TextResult


class TextMeasurement:
    """A checkpoint, its model on a device, and the texts as its tokens.

    Attributes:
        protocol: how texts are cut into windows.
        bos: whether the end-of-text id is before each text.
        batch_size: windows per forward pass.
        windows: number of windows in all texts.

    Raises:
        GptcliError: context or stride do not suit the model, or its tokenizer cannot encode a character.
    """

    def __init__(
        self, loaded: Checkpoint, documents: Sequence[Document], settings: PerplexityConfig, placement: Placement
    ) -> None:
        self.loaded, self.placement = loaded, placement
        layout.require_language_model(loaded.path, loaded.config)
        tokenizer = loaded.tokenizer
        self._bits = layout.packed_bits(loaded.path, layout.read_config(loaded.path)[1])
        self.protocol = perplexity.make_protocol(
            loaded.config.context_length, settings.context, settings.stride, settings.guide
        )
        record = text_record.read(loaded.path)
        self._trained_on = record.trained_share(documents) if record is not None else None
        self._held_out = bool(self._trained_on) and text_record.has_part(loaded.path, "validation")
        self.bos = tokenizer.eot_id is not None if settings.bos is None else settings.bos
        self._runs = [perplexity.encode(document.text, tokenizer, self.bos) for document in documents]
        self.batch_size = settings.batch_size or log_likelihood.default_batch_size(self.protocol.context)
        self._model = loaded.runner(placement.device, placement.dtype)
        self.windows = sum(1 for run in self._runs for _ in perplexity.windows(len(run), self.protocol))

    def measure(self, on_windows: Callable[[int], object] = lambda count: None, *, observe: bool = False) -> TextResult:
        """Score every token.

        Args:
            on_windows: called with the number of windows scored since its last call.
            observe: collect the data of the plots: losses by position, and calibration.
        """
        measured = perplexity.measure(self._model, self._runs, self.protocol, self.batch_size, observe, on_windows)
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
            unknown=self._unknown(),
            trained_on=self._trained_on,
            held_out=self._held_out,
        )

    def _unknown(self) -> int:
        """Tokens that stand for unknown words: the last one of a word vocabulary."""
        tokenizer = self.loaded.tokenizer
        if tokenizer.kind != "word":
            return 0
        return sum(int((run == tokenizer.vocab_size - 1).sum()) for run in self._runs)
