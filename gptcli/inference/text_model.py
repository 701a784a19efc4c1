"""A checkpoint that generates text: the object that `gptcli.load` returns."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from gptcli.checkpoints import layout
from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError, SettingError
from gptcli.inference import drafting, speculative, streaming
from gptcli.inference.batch import completions
from gptcli.inference.completion import Completion, Prompt, Settings, completion_of, stop_texts, with_defaults
from gptcli.inference.decode import SlotDecoder, decode
from gptcli.inference.open import check_quantization, choose_engine, drafts_itself, open_decoder
from gptcli.inference.sequence import Request, Token
from gptcli.tokenizers import Tokenizer

_TORCH = threading.RLock()  # while a CUDA graph is captured, no other thread may use the device


class TextModel:
    """A model with its tokenizer, ready to generate; made by `gptcli.load`.

    One model may be used by several threads: it generates one text (or one batch) at a time, and the others wait. Two
    models on the compiled kernels work at the same time; models on the torch engine take turns. Nothing is printed.

    Args:
        path: a checkpoint directory.
        device, dtype, quantize, threads: as for `gptcli.load`.
        report: called with a message before a long operation.

    Attributes:
        path: the checkpoint's directory.
        config: the model's shape.
        tokenizer: text to ids and back: ``encode``, ``decode``, ``vocab_size``, ``eot_id``.
        engine: "cpu" (compiled kernels, float32) or "torch".

    Raises:
        GptcliError: as for `gptcli.load`.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        quantize: str | None = None,
        threads: int | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        bits = check_quantization(quantize)
        self.path, self.quantize, self.device, self.dtype = path, quantize, device, dtype
        self.config, ours = layout.read_config(path)
        self.tokenizer = layout.tokenizer_of(path, ours)
        layout.check_parts(path, self.config, self.tokenizer)
        self._choice = choose_engine("auto", device, dtype, self.config)
        self._bits = min(bits, layout.packed_bits(path, ours))
        self._placing: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads, "report": report}
        self._open = partial(open_decoder, path, self._choice, self.tokenizer, bits=bits, **self._placing)
        self._report = report
        self._decoder = self._open()
        self._lock = threading.RLock() if self._choice.engine == "cpu" else _TORCH
        self._active: _Text | None = None
        self.engine = self._choice.engine

    def __repr__(self) -> str:
        c = self.config
        shape = f"{c.n_layers} layers, {c.n_heads} heads, {c.emb_dim} wide, context {c.context_length}"
        return f"TextModel({str(self.path)!r}: {shape}, {self.tokenizer.kind} tokenizer, engine {self.engine})"

    def generate(self, prompt: Prompt, **settings: Unpack[Settings]) -> Completion:
        """Continue a prompt.

        Args:
            prompt: a text, or token ids; at least one token. What exceeds the context is dropped from its beginning.
            settings: see `Settings`.

        Raises:
            GptcliError: there is no such setting, or its value is out of range; the prompt is empty or has a character
                that the tokenizer cannot encode; "error" is given for ``overflow`` and the context is full.

        Example:
            >>> import gptcli
            >>> model = gptcli.load("checkpoints/demo")
            >>> completion = model.generate("the cat", max_new_tokens=8, temperature=0)
            >>> completion.text
            ' sat on '
            >>> completion.finish_reason, len(completion.ids), completion.probabilities[0]
            ('length', 8, 1.0)
            >>> again = model.generate("the cat", max_new_tokens=8, seed=5)
            >>> again == model.generate("the cat", max_new_tokens=8, seed=5), again.seed
            (True, 5)
        """
        pieces = self._text(prompt, settings)
        with self._lock:
            self._take_over(pieces)
            pieces.finish()
        return pieces.completion()

    def stream(self, prompt: Prompt, **settings: Unpack[Settings]) -> Generator[str, None, Completion]:
        """Continue a prompt, piece by piece: the pieces, joined, are the text of `generate` with the same seed.

        A piece is at least one whole character. Between two pieces other calls may use the model; the first of them
        generates the rest of this text, which waits for its reader. ``close()`` ends a stream that is not read to its
        end.

        Args:
            prompt, settings: as for `generate`; checked before the first piece.

        Returns:
            an iterator of pieces; as a generator its value is the `Completion`.

        Raises:
            GptcliError: as for `generate`.

        Example:
            >>> import gptcli
            >>> model = gptcli.load("checkpoints/demo")
            >>> "|".join(model.stream("the cat", max_new_tokens=6, temperature=0))
            ' |s|a|t| |o'
        """
        return self._streamed(self._text(prompt, settings))

    def batch(
        self, prompts: Sequence[Prompt], *, batch_size: int = 8, **settings: Unpack[Settings]
    ) -> list[Completion]:
        """Continue many prompts, several at a time; each gets the text that it gets alone.

        Args:
            prompts: texts or token ids; the seed of the n-th, from 0, is ``seed`` + n.
            batch_size: how many are decoded together; the cache of each takes
                2 · n_layers · context_length · emb_dim · 4 bytes.
            settings: as for `generate`, without a draft; ``candidates`` as well.

        Returns:
            the completions in the order of the prompts.

        Raises:
            GptcliError: as for `generate`; ``batch_size`` is less than 1; a draft is given.

        Example:
            >>> import gptcli
            >>> model = gptcli.load("checkpoints/demo")
            >>> [c.text for c in model.batch(["the cat", "the dog"], max_new_tokens=7, temperature=0)]
            [' sat on', ' sat on']
        """
        if batch_size < 1:
            raise SettingError(f"{{batch_size}} is {batch_size}, but it must be at least 1.", "Leave it out for 8.")
        if settings.get("draft", "auto") not in ("auto", "none"):
            raise GptcliError("A batch takes no draft.", "Leave draft out, or generate the prompts one by one.")
        if isinstance(prompts, str):
            raise GptcliError("prompts is one text, not a sequence of texts.", "Give [prompt], or call generate.")
        if not prompts:
            return []
        values = with_defaults(settings)
        stops = [stop_texts(values)] * len(prompts)
        requests = [
            replace(request, seed=request.seed + number)
            for number, request in enumerate(self._request(prompt, values) for prompt in prompts)
        ]
        layer = self._checked_layer(values)
        with self._lock:
            self._finish_active()
            self._set_threads()
            decoder = self._open(slots=min(batch_size, len(requests), 128), contrast=layer)
            found = list(completions(decoder, requests, stops, self.tokenizer))
        return [completion_of(text, request.seed) for text, request in zip(found, requests, strict=True)]

    def _request(self, prompt: Prompt, values: Settings) -> Request:
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, allow_special=values["allow_special"])
        else:
            ids = list(prompt)
            wrong = next((i for i in ids if not 0 <= i < self.config.vocab_size), None)
            if wrong is not None:
                raise GptcliError(
                    f"The prompt has the token id {wrong!r}, but the model's are 0 to {self.config.vocab_size - 1}.",
                    "Encode the text with model.tokenizer.encode, or give the text itself.",
                )
        if not ids:
            raise GptcliError("The prompt is empty: there is nothing to continue.", "Give at least one character.")
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        sampling = SamplingConfig(**{name: values[name] for name in names})  # type: ignore[literal-required]
        eot_id = None if values["ignore_eot"] else self.tokenizer.eot_id
        assert values["seed"] is not None
        request = Request(
            ids, values["max_new_tokens"], sampling, values["seed"], values["min_new_tokens"], eot_id,
            values["overflow"], values["candidates"],
        )  # fmt: skip
        if request.overflow == "error" and len(ids) + request.max_new_tokens > self.config.context_length + 1:
            raise SettingError(
                f"{len(ids)} prompt tokens and {request.max_new_tokens} new ones are more than the model's context of "
                f"{self.config.context_length}.",
                "Shorten the prompt, lower {max_new_tokens}, or let {overflow} slide drop the oldest tokens.",
            )
        return request

    def _text(self, prompt: Prompt, settings: Settings) -> "_Text":
        values = with_defaults(settings)
        request = self._request(prompt, values)
        drafting.check_draft(values["draft"], self.path, self._bits)
        if values["draft"] not in drafting.DRAFTS:
            layout.find(values["draft"])
        layer = self._checked_layer(values)
        tokens = self._tokens(request, layer, values["draft"])
        return _Text(tokens, request, self.tokenizer, stop_texts(values))

    def _checked_layer(self, values: Settings) -> int | None:
        layer = values["contrast_layer"]
        if layer is not None and not 1 <= layer < self.config.n_layers:
            raise SettingError(
                f"{{contrast_layer}} is {layer}, but the model has layers 1 to {self.config.n_layers}, and the last is "
                "the one to compare with.",
                "Give an earlier layer, or leave {contrast_layer} out.",
            )
        return layer

    def _set_threads(self) -> None:
        """torch counts the CPU threads of each thread that computes."""
        if self._choice.engine == "torch":
            from gptcli.device import placement

            placement.set_threads(self._placing["threads"])

    def _tokens(self, request: Request, layer: int | None, draft: str) -> Generator[Token, None, None]:
        self._set_threads()
        decoder = self._decoder
        if decoder.contrast != layer:
            decoder = SlotDecoder(decoder.engine, 0, layer, decoder.drawable)
        self._decoder = SlotDecoder(decoder.engine, 0, layer, decoder.drawable)  # unless this request ends whole
        drafter = self._drafter(draft, decoder, request.max_new_tokens)
        if drafter is None:
            yield from decode(decoder, request)
        else:
            yield from speculative.decode(decoder, drafter, request, speculative.Tally())
        self._decoder = decoder

    def _drafter(self, draft: str, decoder: SlotDecoder, tokens: int) -> speculative.Drafter | None:
        if draft == "none" or (draft == "auto" and not drafts_itself(self._choice, self.config, self._bits, tokens)):
            return None
        if draft == "auto":
            return speculative.OnTrial(drafting.quantized_drafter("int8", decoder, self._report), speculative.Tally())
        return drafting.open_drafter(
            draft, decoder, self.tokenizer, "auto", self.config.context_length, self._placing, self._report
        )

    def _streamed(self, pieces: "_Text") -> Generator[str, None, Completion]:
        try:
            while True:
                with self._lock:
                    self._take_over(pieces)
                    piece = pieces.next()
                if piece is None:
                    return pieces.completion()
                yield piece
        finally:
            pieces.wanted = False

    def _take_over(self, pieces: "_Text") -> None:
        if self._active is not pieces and not pieces.ended:
            self._finish_active()
            self._active = pieces

    def _finish_active(self) -> None:
        """Generate the rest of a stream that another call interrupts: the engine has one cache."""
        active, self._active = self._active, None
        if active is not None:
            active.finish()


class _Text:
    """The text of one request. What is generated before its reader asks for it waits in ``unread``.

    Attributes:
        wanted: whether its reader may still ask for pieces.
        ended: whether nothing is left to generate.
    """

    def __init__(
        self, tokens: Generator[Token, None, None], request: Request, tokenizer: Tokenizer, stops: Sequence[str]
    ) -> None:
        self.wanted, self.ended = True, False
        self.unread: deque[str] = deque()
        self._tokens, self._seed = tokens, request.seed
        self._text = streaming.Completion(tokens, tokenizer, request.max_new_tokens, stops)
        self._pieces = iter(self._text)
        self._error: Exception | None = None

    def next(self) -> str | None:
        """The next piece; None at the end.

        Raises:
            GptcliError: what `decode` raises, after the pieces before it.
        """
        if not self.unread:
            self._generate()
        if self.unread:
            return self.unread.popleft()
        if self._error is not None:
            raise self._error
        return None

    def finish(self) -> None:
        """Generate the rest, as long as it is wanted."""
        while self.wanted and not self.ended:
            self._generate()
        self._tokens.close()

    def completion(self) -> Completion:
        """The result, at the end."""
        if self._error is not None:
            raise self._error
        return completion_of(self._text, self._seed)

    def _generate(self) -> None:
        if self.ended:
            return
        self.ended = True  # if it raises
        try:
            piece = next(self._pieces, None)
        except Exception as error:
            self._error = error
            return
        except BaseException:  # Ctrl-C, in whichever call generates this text
            self._error = GptcliError("This text was interrupted.", "Generate it again.")
            raise
        if piece is not None:
            self.unread.append(piece)
            self.ended = False
