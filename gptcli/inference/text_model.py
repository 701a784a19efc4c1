"""A checkpoint that generates text: the object that `gptcli.load` returns."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Unpack

from gptcli.checkpoints import layout
from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError, SettingError
from gptcli.inference import drafting, sequence, speculative, streaming
from gptcli.inference.completion import Completion, Prompt, Settings, completion_of, stop_texts, with_defaults
from gptcli.inference.decode import Scheduler
from gptcli.inference.engine import Scorer
from gptcli.inference.open import check_layer, check_quantization, choose_engine, if_it_compiles, open_scorer
from gptcli.inference.prompting import Prompting

_TORCH = threading.Lock()  # while a CUDA graph is captured, no other thread may use the device


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
        self.config, ours = layout.read_language_model(path)
        self.tokenizer = layout.tokenizer_of(path, ours)
        layout.check_parts(path, self.config, self.tokenizer)
        self._bits = min(bits, layout.packed_bits(path, ours))
        self._choice = if_it_compiles(choose_engine("auto", device, dtype, self.config), self._bits, report=report)
        self._placing: dict[str, Any] = {"device": device, "dtype": dtype, "threads": threads, "report": report}
        self._report = report
        self._scorer = open_scorer(path, self._choice, self.tokenizer, bits=bits, **self._placing)
        self._mode: tuple[int | None, str] = None, "none"  # the early-exit layer and the draft of the scheduler
        self._scheduler = Scheduler(self._scorer)
        self._under_way: list[sequence.Sequence] = []
        self._left: deque[sequence.Sequence] = deque()  # what no reader wants any more
        self._lock = threading.Lock() if self._choice.engine == "cpu" else _TORCH
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
        pieces = self.stream(prompt, **settings)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                found: Completion = end.value
                return found

    def stream(self, prompt: Prompt, **settings: Unpack[Settings]) -> Generator[str, None, Completion]:
        """Continue a prompt, piece by piece: the pieces, joined, are the text of `generate` with the same seed.

        A piece is at least one whole character. Other calls may use the model between two pieces; they first generate
        the rest of this text, which waits for its reader. ``close()`` ends a stream that is not read to its end.

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
        values = with_defaults(settings)
        request = self._request(prompt, values)
        self._check_draft(values["draft"])
        return self._pieces(request, values["contrast_layer"], values["draft"])

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
        requests = [
            replace(request, seed=request.seed + number)
            for number, request in enumerate(self._request(prompt, values) for prompt in prompts)
        ]
        with self._lock:
            self._set_threads()
            engine = self._scorer.engine.with_slots(min(batch_size, len(requests), 128))
            scheduler = Scheduler(replace(self._scorer, engine=engine, contrast=values["contrast_layer"]))
            return [completion_of(text) for text in streaming.complete_all(scheduler, requests, self.tokenizer)]

    def _request(self, prompt: Prompt, values: Settings) -> sequence.Request:
        stops = stop_texts(values)
        if isinstance(prompt, str):
            how = {name: values[name] for name in ("raw", "allow_special", "ignore_eot")}
            prompting = Prompting(self.tokenizer, **how)
            ids, stops = prompting.encode(prompt), stops + prompting.stops
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
        check_layer(values["contrast_layer"], self.config)
        given: Any = values
        sampling = SamplingConfig(**{field.name: given[field.name] for field in fields(SamplingConfig)})
        eot_id = None if values["ignore_eot"] else self.tokenizer.eot_id
        new, context = values["max_new_tokens"], self.config.context_length
        if values["overflow"] == "error" and len(ids) + new > context + 1:
            raise SettingError(
                f"{len(ids)} prompt tokens and {new} new ones are more than the model's context of {context}.",
                "Shorten the prompt, lower {max_new_tokens}, or let {overflow} slide drop the oldest tokens.",
            )
        assert values["seed"] is not None
        return sequence.Request(
            ids, new, sampling, values["seed"], values["min_new_tokens"], eot_id, values["overflow"],
            values["candidates"], stops,
        )  # fmt: skip

    def _check_draft(self, draft: str) -> None:
        drafting.check_draft(draft, self.path, self._bits)
        if draft not in ("auto", "none"):
            speculative.require_verification(self._scorer.engine)
        if draft not in drafting.DRAFTS:
            drafting.find_draft(draft)

    def _pieces(self, request: sequence.Request, layer: int | None, draft: str) -> Generator[str, None, Completion]:
        """The pieces of a text; between two of them other threads may let the scheduler step."""
        text = streaming.TextStream(request, self.tokenizer)
        with self._lock:
            self._choose_scheduler(layer, draft, request.max_new_tokens)
            under_way = self._scheduler.add(request)
            self._under_way.append(under_way)
        try:
            while not text.stopped and (len(text.tokens) < under_way.count or not under_way.done):
                with self._lock:
                    if len(text.tokens) == under_way.count and not under_way.done:
                        self._step()
                for token in under_way.tokens[len(text.tokens) :]:
                    if piece := text.push(token):
                        yield piece
                    if text.stopped:
                        break
        finally:
            self._left.append(under_way)  # not cancelled here: a collected generator may end at any instruction
        if under_way.error is not None:
            raise under_way.error
        if piece := text.end():
            yield piece
        return completion_of(text)

    def _choose_scheduler(self, layer: int | None, draft: str, tokens: int) -> None:
        """Make another scheduler if this one has another draft or layer, once its texts are whole."""
        if draft == "auto" and not drafting.drafts_itself(self._choice, self.config, self._bits, tokens, self._report):
            draft = "auto" if self._mode == (layer, "auto") else "none"
        if self._mode == (layer, draft):
            return
        while self._drop_left():
            self._step()
        scorer, tally = replace(self._scorer, contrast=layer), speculative.Tally()
        self._scheduler, self._mode = Scheduler(scorer, self._drafter(draft, scorer, tally), tally), (layer, draft)

    def _drafter(self, draft: str, scorer: Scorer, tally: speculative.Tally) -> speculative.Drafter | None:
        if draft == "auto":
            return speculative.OnTrial(drafting.quantized_drafter("int8", scorer, self._report), tally)
        capacity = self.config.context_length
        return drafting.open_drafter(draft, scorer, self.tokenizer, "auto", capacity, self._placing, self._report)

    def _step(self) -> None:
        """Let the scheduler step; after an interruption it is not known what the cache holds, so there is a new one."""
        if not self._drop_left():
            return
        self._set_threads()
        try:
            self._scheduler.step()
        except BaseException:
            for each in self._under_way:
                each.fail(GptcliError("This text was interrupted.", "Generate it again."))
            self._scheduler, self._mode = Scheduler(self._scorer), (None, "none")
            raise

    def _drop_left(self) -> bool:
        """Cancel what no reader wants any more; whether texts are left to generate."""
        while self._left:
            self._scheduler.cancel(self._left.popleft())
        self._under_way = [each for each in self._under_way if not each.done]
        return bool(self._under_way)

    def _set_threads(self) -> None:
        """torch counts the CPU threads of each thread that computes."""
        if self._choice.engine == "torch":
            from gptcli.device import placement

            placement.set_threads(self._placing["threads"])
