"""What the model expects: next tokens, surprise, the same at every layer, and who votes for a token."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.inspection.capture import Capture
from gptcli.model.gpt import GPTModel

ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Predictions:
    """What is expected after each of T tokens, and how what came had been expected.

    Attributes:
        top_ids: (T, k) the likeliest next tokens, likeliest first.
        top_probabilities: (T, k).
        bits: (T) surprise at each token given those before it, -log2 p; NaN for the first, which nothing precedes.
        ranks: (T) its place among all tokens, 1 for the likeliest; 0 for the first.
    """

    top_ids: Tensor
    top_probabilities: Tensor
    bits: Tensor
    ranks: Tensor

    @property
    def total_bits(self) -> float:
        """Bits of the whole text but its first token."""
        return float(self.bits[1:].double().sum())

    @property
    def perplexity(self) -> float:
        """2 to the mean bits a token, first token aside; NaN where there is no other."""
        counted = self.bits.size(0) - 1
        return 2.0 ** (self.total_bits / counted) if counted else math.nan


@torch.no_grad()
def predictions(model: GPTModel, hidden: Tensor, ids: Tensor, k: int) -> Predictions:
    """Read the residual stream through the output head, a few rows of logits at a time.

    Args:
        hidden: (T, C) after the final norm.
        ids: (T) the tokens.
        k: how many candidates to keep.
    """
    length, k = ids.size(0), min(k, model.config.vocab_size)
    head = model.head.float()
    top_ids, top_probabilities = torch.empty(length, k, dtype=torch.int64), torch.empty(length, k)
    bits, ranks = torch.full((length,), math.nan), torch.zeros(length, dtype=torch.int64)
    for start in range(0, length, ROWS_AT_ONCE):
        logits = F.linear(hidden[start : start + ROWS_AT_ONCE].to(head.device), head).cpu()  # (rows, V)
        shares = logits.log_softmax(-1)
        values, best = shares.topk(k)
        end = start + logits.size(0)
        top_ids[start:end], top_probabilities[start:end] = best, values.exp()
        came = ids[start + 1 : end + 1, None]  # the token after each row, where there is one
        share = shares[: came.size(0)].gather(1, came)
        bits[start + 1 : end + 1] = -share[:, 0] / math.log(2)
        ranks[start + 1 : end + 1] = (shares[: came.size(0)] > share).sum(-1) + 1
    return Predictions(top_ids, top_probabilities, bits, ranks)


@torch.no_grad()
def lens(model: GPTModel, captured: Capture) -> list[Predictions]:
    """What the model would say before the first block and after each (the logit lens: nostalgebraist, 2020)."""
    return [predictions(model, normed(model, stream), captured.ids, 1) for stream in captured.stream]


@torch.no_grad()
def normed(model: GPTModel, stream: Tensor) -> Tensor:
    """The final norm of a residual stream (T, C), on the CPU."""
    return model.ln_f(stream.to(model.device)).float().cpu()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Walk:
    """One token's way through the model.

    Attributes:
        position: which token.
        logits: (V) for what follows it.
        chosen: the id of the largest.
        stages: what was added to the residual stream, in order: "token vector", "position vector", "layer 0
            attention", "layer 0 feed-forward", …
        norms: (stages) length of what was added.
        stream_norms: (stages) length of the stream with it.
        votes: (stages) direct contribution to the chosen token's logit.
        bias_vote: what the final norm's bias adds to it; with ``votes`` it sums to the logit.
    """

    position: int
    logits: Tensor
    chosen: int
    stages: list[str]
    norms: Tensor
    stream_norms: Tensor
    votes: Tensor
    bias_vote: float


@torch.no_grad()
def walk(model: GPTModel, captured: Capture, position: int) -> Walk:
    """Follow the token at ``position``.

    The final norm is (x - mean x) / σ · w + b. With the σ of the whole stream held fixed it is linear, so the logit is
    a sum over everything that was added to the stream (direct logit attribution: Elhage et al., 2021).
    """
    parts = [captured.tokens[position], captured.positions[position]]
    stages = ["token vector", "position vector"]
    for layer in range(model.config.n_layers):
        parts += [captured.attention[layer, position], captured.feed_forward[layer, position]]
        stages += [f"layer {layer} attention", f"layer {layer} feed-forward"]
    added = torch.stack(parts).double()  # (stages, C)
    head = model.head.float().cpu()
    logits = head @ captured.final[position]
    chosen = int(logits.argmax())
    stream = added.cumsum(0)
    norm = model.ln_f
    spread = (stream[-1].var(unbiased=False) + norm.eps).sqrt()
    direction = head[chosen].double()
    votes = (added - added.mean(-1, keepdim=True)) / spread * norm.weight.double().cpu() @ direction
    bias_vote = float(norm.bias.double().cpu() @ direction)
    return Walk(
        position,
        logits,
        chosen,
        stages,
        added.norm(dim=-1).float(),
        stream.norm(dim=-1).float(),
        votes.float(),
        bias_vote,
    )
