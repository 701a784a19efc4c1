"""Speculative decoding: a draft proposes several tokens, and the model verifies all of them in one forward pass.

Decoding is bound by the memory bandwidth of the weights, so a forward pass of a few tokens costs little more than that
of one (Leviathan et al., 2023). A text is the same with and without a draft, greedy or sampled: every token is drawn
from the model's distribution with the text's key (see `sampling.draw`), and a proposal is accepted if it equals that
token. A draft draws with the same key, so its proposals are mostly accepted if its distribution is near the model's.
The step that verifies is `decode.Scheduler`'s; this file holds what proposes.
"""

from dataclasses import dataclass, field
from math import exp, expm1, prod
from statistics import median
from typing import Protocol

from gptcli.errors import SettingError
from gptcli.inference.arrays import Array
from gptcli.inference.engine import Engine, Scorer
from gptcli.inference.sampling import draw
from gptcli.inference.sequence import Sequence


class Drafter(Protocol):
    """A proposer of next tokens."""

    def propose(self, text: Sequence, count: int) -> list[int]:
        """At most ``count`` tokens that may follow ``text``."""


@dataclass
class Tally:
    """Counts and times of speculative decoding.

    Attributes:
        proposed: proposed tokens.
        accepted: accepted tokens.
        forward_passes: forward passes of the model, without those that read prompts or windows.
        tokens: tokens drawn from these passes.
        prefilled: tokens drawn after a prompt, or a window that had moved, was read.
        plain: seconds of each step without proposals.
        seconds: of all steps: drafting, forward passes and draws.
    """

    proposed: int = 0
    accepted: int = 0
    forward_passes: int = 0
    tokens: int = 0
    prefilled: int = 0
    plain: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, proposed: int, tokens: int, seconds: float) -> None:
        """Count a step: how many tokens were proposed, how many drawn, and how long it took."""
        self.forward_passes += 1
        self.proposed += proposed
        self.tokens += tokens
        self.seconds += seconds
        if not proposed:
            self.plain.append(seconds)

    def speed_up(self) -> float | None:
        """The time of ``tokens`` median plain steps over the actual time; None if no plain step was timed."""
        if not self.plain or self.seconds == 0:
            return None
        return self.tokens * median(self.plain) / self.seconds


class NgramDrafter:
    """Finds the latest earlier occurrence of the last few tokens in the text and proposes the tokens after it.

    The length of a proposal adapts: it doubles, up to ``most``, after a proposal that was accepted completely, and else
    becomes the number of accepted tokens, at least 1. After n >= 2 proposals in a row without an accepted token, the
    next 2^n calls, at most 32, propose nothing.

    Args:
        longest, shortest: lengths of the n-grams that are looked up, the longest first.
        most: tokens in a proposal.
    """

    def __init__(self, longest: int = 4, shortest: int = 2, most: int = 7) -> None:
        self.sizes = range(longest, shortest - 1, -1)
        self.most = most
        self._forget()

    def _forget(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after it
        self._indexed = 0
        self._text: Sequence | None = None
        self._last: tuple[int, list[int]] = (0, [])
        self._reach, self._useless, self._pause = self.most, 0, 0

    def propose(self, text: Sequence, count: int) -> list[int]:
        if text is not self._text:
            self._forget()
            self._text = text
        self._learn(text.seen)
        if self._pause:
            self._pause -= 1
            return []
        start = self._find(text.seen)
        ids = [] if start is None else text.seen[start : start + min(count, self._reach)]
        self._last = len(text.seen), ids
        return ids

    def _learn(self, seen: list[int]) -> None:
        """Compare the last proposal with the tokens drawn since, and index the new n-grams."""
        at, proposed = self._last
        if proposed:
            came = seen[at : at + len(proposed)]
            accepted = next((n for n, (a, b) in enumerate(zip(proposed, came, strict=False)) if a != b), len(came))
            self._reach = min(2 * self._reach, self.most) if accepted == len(proposed) else max(1, accepted)
            self._useless = 0 if accepted else self._useless + 1
            self._pause = 0 if self._useless < 2 else min(2**self._useless, 32)
        self._last = 0, []
        for place in range(max(self._indexed, 1), len(seen)):
            for size in self.sizes:
                if place >= size:
                    self._followed[tuple(seen[place - size : place])] = place
        self._indexed = len(seen)

    def _find(self, seen: list[int]) -> int | None:
        """The index after the latest earlier occurrence of the text's last n-gram; None if there is none."""
        for size in self.sizes:
            if size < len(seen) and (place := self._followed.get(tuple(seen[-size:]))) is not None:
                return place
        return None


class ModelDrafter:
    """A model with the same tokenizer as a draft: it draws from its own distribution with the request's keys.

    A proposal ends when the probability that all of its tokens are accepted falls below ``2 cost``: speculation about
    doubles the speed, so a draft step must add ``2 cost`` tokens on average. In greedy decoding the probability that a
    token is accepted is estimated as 1 - exp(-margin / noise), with the margin between the two largest logits and a
    noise scale updated after every proposal. In sampling it is a moving average of the accepted fraction.

    Args:
        scorer: of the draft.
        cost: of a draft step relative to a forward pass of the model.
        most: tokens in a proposal.
        shared: the draft uses the model's cache (see `Scorer.quantized_copy`).
    """

    def __init__(self, scorer: Scorer, cost: float = 0.2, most: int = 7, shared: bool = False) -> None:
        self._scorer = scorer
        self.cost, self.most = cost, most
        self._shared = shared
        self._read: list[int] = []
        self._noise, self._taken = 0.1, 1.0
        self._text: Sequence | None = None
        self._last: tuple[int, list[tuple[int, float]]] = (0, [])

    def propose(self, text: Sequence, count: int) -> list[int]:
        if text is self._text:
            self._learn(text.seen)
        self._text = text
        ids = text.window.ids
        count = min(count, self.most, self._scorer.engine.config.context_length - len(ids))
        if count < 1:
            self._last = 0, []
            return []
        known = len(ids) - 1 if self._shared else self._known(ids)
        slot = text.slot if self._shared else 0
        self._read = list(ids)
        logits = self._scorer.forward([slot], [ids[known:]], [known])
        proposals: list[int] = []
        chances: list[float] = []
        while True:
            token_id, chance = self._guess(text, logits, proposals)
            if token_id < 0:  # the draft's logits are not finite
                break
            proposals.append(token_id)
            chances.append(chance)
            if len(proposals) == count or token_id == text.request.eot_id or prod(chances) < 2 * self.cost:
                break
            logits = self._scorer.forward([slot], [[token_id]], [len(self._read)])
            self._read.append(token_id)
        self._last = len(text.seen), list(zip(proposals, chances, strict=True))
        return proposals

    def _guess(self, text: Sequence, logits: Array, ahead: list[int]) -> tuple[int, float]:
        """The next token, and the estimated probability that it is accepted if all before are."""
        if text.request.sampling.temperature == 0:
            token_id, margin = text.likeliest(logits, ahead)
            return token_id, -expm1(-margin / self._noise)
        return int(draw(text.distribution(logits, ahead), [text.key(len(ahead))])[0]), self._taken

    def _learn(self, seen: list[int]) -> None:
        """Update the estimates with the last proposal's tokens up to and including the first that was rejected."""
        at, proposed = self._last
        for (token_id, chance), came in zip(proposed, seen[at:], strict=False):
            accepted = token_id == came
            self._taken += 0.05 * (accepted - self._taken)
            self._noise *= exp(chance - accepted)
            if not accepted:
                break

    def _known(self, ids: list[int]) -> int:
        """The length of the prefix of ``ids`` in the draft's cache, without the last id, which is always read again."""
        most = min(len(self._read), len(ids) - 1)
        return next((n for n in range(most) if self._read[n] != ids[n]), most)


class OnTrial:
    """A draft that is used only while it makes decoding faster.

    The first ``plain`` tokens are decoded without the draft, to time a plain step. If at least ``tried`` tokens with
    the draft take more time than as many median plain steps, the next ``rest`` tokens are decoded without it, and
    ``rest`` doubles.

    Args:
        draft: the drafter.
        tally: of the `decode.Scheduler` that uses this drafter.
        plain, tried, rest: see above.
    """

    def __init__(self, draft: Drafter, tally: Tally, plain: int = 2, tried: int = 16, rest: int = 64) -> None:
        self._draft, self._tally = draft, tally
        self.plain, self.tried, self.rest = plain, tried, rest
        self._resting_until = 0  # value of tally.tokens at which the draft is used again
        self._began: tuple[int, float] | None = None  # the tally's tokens and seconds at the start of an attempt

    def propose(self, text: Sequence, count: int) -> list[int]:
        tally = self._tally
        if len(tally.plain) < self.plain or tally.tokens < self._resting_until:
            return []
        tokens, seconds = self._began or (tally.tokens, tally.seconds)
        if tally.tokens - tokens >= self.tried:
            if (tally.seconds - seconds) / (tally.tokens - tokens) > median(tally.plain[-self.tried :]):
                self._resting_until, self.rest, self._began = tally.tokens + self.rest, 2 * self.rest, None
                return []
            tokens, seconds = tally.tokens, tally.seconds
        self._began = tokens, seconds
        return self._draft.propose(text, count)


def quantized_drafter(scorer: Scorer, bits: int) -> ModelDrafter:
    """A drafter that runs a quantized copy of the model of ``scorer``, in ``bits`` bits (8 or 4)."""
    most = scorer.engine.at_once - 1
    return ModelDrafter(scorer.quantized_copy(bits), cost={8: 0.3, 4: 0.22}[bits], most=most, shared=True)


def require_verification(engine: Engine) -> None:
    """Refuse drafts on an engine that rounds a token's logits differently alone and among others.

    Raises:
        SettingError: `Engine.verifies` is False; the draft would change some texts.
    """
    if not engine.verifies:
        raise SettingError(
            "A draft would change some texts here: in 16 bits, a pass of several tokens rounds differently than "
            "passes of one.",
            "Set {dtype} to float32, or leave {draft} out.",
        )
