"""What a run for a fixed time trains: tokenizer, shape, batch and rates, for its text, its time and this machine.

The choices are rules over measured numbers; tests/benchmarks/for_time.py compares them with others. The run's
config.toml names them all, and no clock decides one of them once the run has begun.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.data.dataset import Corpus
from gptcli.data.open import MOST_COUNTED
from gptcli.device import placement
from gptcli.errors import GptcliError, SettingError
from gptcli.kernels.cpu import train_kernels
from gptcli.model.cost import parameter_count
from gptcli.model.gpt import GPTModel
from gptcli.tokenizers import Tokenizer, bpe_merges
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.bpe_training import MIN_FREQUENCY, SMALLEST
from gptcli.training.deadline import CLOSING
from gptcli.training.step import Stepper
from gptcli.training.trouble import suited_rate

LEAST_TOKENS = 64  # a text of fewer is no text to learn from
VOCABULARY = 5.5, 512, 32_768  # tokens for the root of the number of bytes; the fewest and the most

WINDOWS = (10_000_000, 256), (20_000, 128), (0, 64)  # more tokens of text than; longest window

SHAPES = ((2, 64), (2, 96), (2, 128), (3, 192), (4, 256), (6, 384), (8, 512), (12, 768))  # layers, width
HEAD = 32, 64  # width of a head, and in models from 384 wide on
TOKENS_A_PARAMETER = 1.25  # trained on, at least; with fewer, the next smaller shape was better by 1% to 2.4%
PARAMETERS = 12_000.0  # at most, for the root of the number of training tokens
MEASURE = 0.03, 3.0  # share of the time and most seconds that measuring one shape takes

CONTRADICTIONS = {"epochs", "max_steps", "max_time", "early_stop", "schedule_steps", "cooldown_start"}

# Of the steps before it. Where another process takes half of the machine from the middle of the time on, steps take up
# to 2.4 times as long, and such a cooldown that begins at once ends in time. After as many steps, 0.5 gave losses that
# are lower by 0.002 and 0.004 bits a byte, and ended up to 11% late beside such a process.
COOLDOWN = 0.4
AVERAGE = 0.1  # share of the steps; lower held-out losses than without in 19 of 19 runs, by 0.001 to 0.024 bits a byte

STEPS = 400  # at least; more tokens of text and of time make larger steps up to STEP_TOKENS, then more steps
STEP_TOKENS = 1_024, 16_384
EVALUATIONS = 20
EVALUATED, FEW = 0.005, 1_000  # share of the run's tokens that an evaluation reads of each part; tokens it always may
EVALUATING, FORWARD = 0.06, 1 / 3  # most share of the time that evaluations take; of a forward pass in a step


Config = TypeVar("Config", GPTConfig, RecipeConfig, RuntimeConfig)


@dataclass(frozen=True)
class MeasuredShape:
    """A shape and its speed, in tokens a second."""

    config: GPTConfig
    speed: float


class Budget:
    """The time of a run, and what of it is not to be chosen.

    Args:
        seconds: from ``started`` to the end of the process.
        started: `time.perf_counter` then; later by what is not to count.
        given: the names of settings that have been set.
        report: called with each line of the plan.
    """

    def __init__(self, seconds: float, started: float, given: Collection[str], report: Callable[[str], None]) -> None:
        self.seconds, self.started, self.given, self.report = seconds, started, given, report

    @property
    def left(self) -> float:
        """Seconds that are left for training."""
        return self.started + self.seconds - time.perf_counter() - CLOSING

    def check(self, recipe: RecipeConfig, init_from: Path | None, processes: int) -> None:
        """Raise SettingError for settings that contradict a fixed time."""
        for name in sorted(CONTRADICTIONS & set(self.given)):
            raise SettingError(
                f"{{for_time}} cannot be combined with {{{name}}}: the time decides how many steps there are.",
                "Leave one of the two out.",
            )
        if "schedule" in self.given and recipe.schedule in ("cosine", "linear"):
            raise SettingError(
                f"{{for_time}} cannot be combined with {{schedule}} {recipe.schedule}, whose rates depend on the "
                "number of steps: the time decides it.",
                "Leave {schedule} out (it is then wsd), or give {max_steps} in place of {for_time}.",
            )
        if init_from is not None:
            raise SettingError(
                "{for_time} cannot be combined with {init_from}: it chooses the shape of a new model.",
                "Give {max_time} in its place: it ends a run of your settings.",
            )
        if processes > 1:
            raise SettingError(
                f"{{for_time}} cannot choose for {processes} processes.",
                "Give {max_time} in its place, or train in one process.",
            )

    def tokenizer(self, texts: Sequence[str], size: int) -> Tokenizer:
        """Byte-level BPE of the training texts' own, whatever packages are installed.

        Args:
            texts: all, or their beginning.
            size: bytes of all.

        Raises:
            GptcliError: the text is too short.
        """
        if size < LEAST_TOKENS:
            raise too_short(size, "bytes")
        wanted = vocabulary_size(size)
        text = "\n".join(texts)[:MOST_COUNTED]
        tokenizer = BPETokenizer.of_merges(bpe_merges.merges([text], wanted - SMALLEST, MIN_FREQUENCY))
        few = ", as many as it has pairs for" if tokenizer.vocab_size < wanted else ""
        self.report(
            f"Text: {size:,} bytes, {repetition(text):.0%} of its lines repeat others. Vocabulary: "
            f"{tokenizer.vocab_size:,} tokens of byte-level BPE from the text itself{few}."
        )
        return tokenizer

    def choose(
        self, corpus: Corpus, tokenizer: Tokenizer, base: GPTConfig, recipe: RecipeConfig, runtime: RuntimeConfig
    ) -> tuple[GPTConfig, RecipeConfig, RuntimeConfig]:
        """The shape, the recipe and the runtime; what was given stays as it is in the arguments.

        Raises:
            GptcliError: the text is too short, or too little time is left.
        """
        tokens = len(corpus.train)
        if tokens < LEAST_TOKENS:
            raise too_short(tokens, "tokens")
        if self.left < self.seconds / 3:
            raise SettingError(
                f"Reading the text took so much of {{for_time}} {self.seconds:g}s that {max(self.left, 0):.0f} seconds "
                "are left to train.",
                "Give it more time, or encode the text first: gptcli prepare TEXT --out FOLDER",
            )
        self._compile(recipe, runtime)
        base = base.with_changes(vocab_size=tokenizer.vocab_size)
        recipe = self._set(recipe, schedule="wsd", cooldown_share=COOLDOWN, min_learning_rate=0.0, init="gpt2")
        recipe = self._set(recipe, optimizer="muon", beta2=0.95)
        recipe = self._set(recipe, average_share=0.0 if runtime.shard else AVERAGE)
        length = context_length(tokens, documents=max(1, len(corpus.documents)))
        recipe = self._set(recipe, context_length=length)
        recipe = self._set(recipe, stride=1, batch_size=max(1, STEP_TOKENS[0] // recipe.context_length))
        # Without dropout: rates of 0.04 to 0.1 were worse in 16 of 16 runs, on texts that were seen 1 to 540 times.
        base = self._set(base, tie_weights=True, qkv_bias=True, drop_rate=0.0)
        base = base.with_changes(context_length=min(recipe.context_length, tokens - 1))
        found = self._measured_choice(base, recipe, runtime, tokens)
        seen = found.speed * self.left
        config, recipe = found.config, self._regularised(found.config, recipe, seen / tokens)
        runtime = self._set(runtime, sample_every=0)
        recipe = self._set(recipe, eval_all=len(corpus.validation) <= max(EVALUATED * seen, FEW))
        return config, self._lengths(recipe, config, seen, len(corpus.validation)), runtime

    def _set(self, config: Config, **values: Any) -> Config:
        """``config`` with these values, where the user has not given others."""
        return replace(config, **{name: value for name, value in values.items() if name not in self.given})

    def _compile(self, recipe: RecipeConfig, runtime: RuntimeConfig) -> None:
        """Compile the kernels that steps may take, once a machine: that time does not count."""
        device = placement.choose(runtime.device, recipe.dtype).device
        precision = placement.training_precision(recipe.dtype, device).name
        if device.type != "cpu" or precision != "float32" or runtime.compile:
            return
        said: list[str] = []

        def report(line: str) -> None:
            said.append(line)
            self.report(line)

        began = time.perf_counter()
        train_kernels.open_kernels(report)
        took = time.perf_counter() - began
        if said:
            self.started += took
            self.report(f"Compiling took {took:.0f} s, once for this machine: they do not count.")

    def _measured_choice(
        self, base: GPTConfig, recipe: RecipeConfig, runtime: RuntimeConfig, tokens: int
    ) -> MeasuredShape:
        """The largest shape that the time is enough for, by the measured speeds of two or three."""
        shapes = [self._shape(base, *shape) for shape in SHAPES]
        if {"emb_dim", "n_layers"} <= set(self.given):
            shapes = shapes[:1]
        most = PARAMETERS * math.sqrt(tokens)
        shapes = [each for each in shapes if parameter_count(each) <= most] or shapes[:1]
        place = min(2, len(shapes) - 1)
        found = [self._measure(shapes[place], recipe, runtime)]
        while len(found) < 3:
            work = found[-1].speed * parameter_count(found[-1].config)
            fits = [n for n, each in enumerate(shapes) if self._suits(each, work / parameter_count(each))]
            best = max(fits, default=0)
            if any(each.config == shapes[best] for each in found):
                break
            found.append(self._measure(shapes[best], recipe, runtime))
        suited = [each for each in found if self._suits(each.config, each.speed)]
        chosen = max(suited, key=lambda each: parameter_count(each.config)) if suited else max(found, key=_speed)
        speeds = ", ".join(f"{_named(each.config)} {each.speed:,.0f}" for each in found)
        self.report(
            f"Model: {_named(chosen.config)}, {parameter_count(chosen.config):,} parameters. Tokens/s here: {speeds}."
        )
        return chosen

    def _suits(self, config: GPTConfig, speed: float) -> bool:
        return speed * self.left >= TOKENS_A_PARAMETER * parameter_count(config)

    def _shape(self, base: GPTConfig, layers: int, width: int) -> GPTConfig:
        layers = base.n_layers if "n_layers" in self.given else layers
        width = base.emb_dim if "emb_dim" in self.given else width
        heads = base.n_heads
        if "n_heads" not in self.given:
            heads = next(n for n in range(max(1, width // HEAD[width >= 384]), 0, -1) if width % n == 0)
        elif width % heads:
            width = -(-width // heads) * heads
        return replace(base, n_layers=layers, emb_dim=width, n_heads=heads)

    def _measure(self, config: GPTConfig, recipe: RecipeConfig, runtime: RuntimeConfig) -> MeasuredShape:
        """Train a new model of that shape for a few steps. torch's random numbers stay as they were."""
        device = placement.choose(runtime.device, recipe.dtype).device
        placement.set_threads(runtime.threads)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = GPTModel(config).to(device).train()
            if not runtime.compile:  # what a run of such steps uses
                precision = placement.training_precision(recipe.dtype, device).name
                tokens = recipe.batch_size * config.context_length
                model.use(train_kernels.for_step(device, precision, tokens, config.emb_dim))
            stepper = Stepper(model, recipe, replace(runtime, accumulate=1, compile=False))
            ids = torch.randint(config.vocab_size, (recipe.batch_size, config.context_length + 1))
            durations: list[float] = []
            limit = min(MEASURE[0] * self.seconds, MEASURE[1])
            while len(durations) < 3 or sum(durations) < limit:
                began = time.perf_counter()
                stepper.step(ids[:, :-1], ids[:, 1:], recipe.learning_rate)
                durations.append(time.perf_counter() - began)
                if sum(durations) > 3 * limit:  # far too large a shape
                    break
        usual = sorted(durations[1:] or durations)
        return MeasuredShape(config, ids[:, 1:].numel() / usual[len(usual) // 2])

    def _regularised(self, config: GPTConfig, recipe: RecipeConfig, epochs: float) -> RecipeConfig:
        """Weight decay by the number of times that the text is seen; the rate by that and the width."""
        rate = learning_rate(config.emb_dim, epochs) if recipe.optimizer == "muon" else suited_rate(config)
        recipe = self._set(recipe, learning_rate=rate, weight_decay=weight_decay(epochs))
        self.report(
            f"The text is seen {epochs:.1f} times: weight decay {recipe.weight_decay:g}, dropout {config.drop_rate:g}; "
            f"{recipe.optimizer} at {recipe.learning_rate:g}."
        )
        return recipe

    def _lengths(self, recipe: RecipeConfig, config: GPTConfig, seen: float, validation: int) -> RecipeConfig:
        """The tokens of a step, the number of steps as far as it is known, and the evaluations."""
        T = config.context_length
        step_tokens = min(max(seen / STEPS, STEP_TOKENS[0]), STEP_TOKENS[1])
        recipe = self._set(recipe, batch_size=max(1, round(step_tokens / T)))
        step_tokens = recipe.batch_size * T
        steps = max(1, int(seen / step_tokens))
        batches = max(1, round(EVALUATED * seen / step_tokens))
        read = batches * step_tokens + (validation if recipe.eval_all else min(validation, batches * step_tokens))
        every = max(1, steps // EVALUATIONS, round(read * FORWARD / (step_tokens * EVALUATING)))
        warmup = min(100, max(1, steps // 20))
        recipe = self._set(recipe, warmup_steps=warmup, momentum_warmup=min(300, steps // 2))
        recipe = self._set(recipe, eval_every=every, eval_batches=batches)
        share = recipe.cooldown_share / (1 + recipe.cooldown_share)
        falls = f"the learning rate falls in the last {share:.0%}" if recipe.schedule == "wsd" else ""
        mean = f"weights are averaged over the last {recipe.average_share:.0%}" if recipe.average_share else ""
        ends = ", and ".join(filter(None, (falls, mean)))
        self.report(f"About {steps:,} steps of {recipe.batch_size} windows of {T} tokens{f'; {ends}' if ends else ''}.")
        return replace(recipe, max_steps=steps, for_time=self.seconds)


def _speed(measured: MeasuredShape) -> float:
    return measured.speed


def _named(config: GPTConfig) -> str:
    return f"{config.n_layers} × {config.emb_dim}"


def too_short(size: int, unit: str) -> GptcliError:
    """The error about a text of ``size`` units."""
    return SettingError(
        f"The text to train on has {size} {unit}, and {{for_time}} needs at least {LEAST_TOKENS} to choose by.",
        "Give a longer text: a few pages is a good start.",
    )


def vocabulary_size(size: int) -> int:
    """A power of two for a text of that many bytes, the more, the longer it is."""
    factor, fewest, most = VOCABULARY
    return min(max(1 << round(math.log2(factor * math.sqrt(size))), fewest), most)


def repetition(text: str) -> float:
    """The share of the lines that are not empty and have occurred before."""
    lines = [line for line in text.splitlines() if line.strip()]
    return 1 - len(set(lines)) / max(1, len(lines))


def context_length(tokens: int, documents: int) -> int:
    """A power of two: 128 for most texts, less for short ones and for short documents, more for long ones.

    A step on a short text learns more from many short windows than from few long ones.
    """
    longest = min(tokens // 8, 2 * tokens // documents)
    most = next(length for least, length in WINDOWS if tokens > least)
    return 1 << int(math.log2(min(max(longest, 16), most)))


def weight_decay(epochs: float) -> float:
    """For a text that is seen so many times."""
    return round(min(5.0, 0.12 * max(epochs, 1.0)), 1)


def learning_rate(width: int, epochs: float) -> float:
    """Of Muon, for a model of that width and a text that is seen so many times."""
    return float(f"{0.012 * (128 / width) ** 0.5 * max(1 / 8, max(epochs, 1.0) ** -0.5):.2g}")
