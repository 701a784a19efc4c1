"""Next-token predictions, surprise, the logit lens, and the contributions of each stage to a logit."""

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
    """The likeliest next tokens after each of T tokens, and the surprise and rank of each actual token.

    Attributes:
        top_ids: (T, k) the likeliest next tokens, likeliest first.
        top_probabilities: (T, k) float32, their probabilities.
        bits: (T) surprise of each token given those before it, -log2 p; NaN for the first, which has no context.
        ranks: (T) int64, rank of its probability in the vocabulary, 1 for the likeliest; 0 for the first token.
    """

    top_ids: Tensor
    top_probabilities: Tensor
    bits: Tensor
    ranks: Tensor

    @property
    def total_bits(self) -> float:
        """Sum of the bits of all tokens but the first."""
        return float(self.bits[1:].double().sum())

    @property
    def perplexity(self) -> float:
        """2 to the power of the mean bits a token, without the first token; NaN for a text of one token."""
        counted = self.bits.size(0) - 1
        return 2.0 ** (self.total_bits / counted) if counted else math.nan


@torch.no_grad()
def predictions(model: GPTModel, hidden: Tensor, ids: Tensor, k: int) -> Predictions:
    """Apply the output head to the hidden states, `ROWS_AT_ONCE` rows at a time.

    Args:
        hidden: (T, C), the output of the final norm.
        ids: (T) token ids.
        k: number of likeliest tokens to keep.
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
        came = ids[start + 1 : end + 1, None]  # the actual next token of each row but the text's last
        share = shares[: came.size(0)].gather(1, came)
        bits[start + 1 : end + 1] = -share[:, 0] / math.log(2)
        ranks[start + 1 : end + 1] = (shares[: came.size(0)] > share).sum(-1) + 1
    return Predictions(top_ids, top_probabilities, bits, ranks)


@torch.no_grad()
def lens(model: GPTModel, captured: Capture) -> list[Predictions]:
    """Predictions from the residual stream before the first block and after each (logit lens: nostalgebraist, 2020)."""
    return [predictions(model, normed(model, stream), captured.ids, 1) for stream in captured.stream]


@torch.no_grad()
def normed(model: GPTModel, stream: Tensor) -> Tensor:
    """The final norm of a residual stream (T, C), as float32 on the CPU."""
    return model.ln_f(stream.to(model.device)).float().cpu()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Walk:
    """The contributions of all stages to the prediction after one token.

    Attributes:
        position: position of the token.
        logits: (V) logits of the next token.
        chosen: id of the largest logit.
        stages: names of the vectors added to the residual stream, in order: "token vector", "position vector", "layer 0
            attention", "layer 0 feed-forward", …
        norms: (stages) L2 norm of the added vector.
        stream_norms: (stages) L2 norm of the stream after the addition.
        votes: (stages) direct contribution of the added vector to the logit of ``chosen``.
        bias_vote: contribution of the final norm's bias; the sum of ``votes`` and ``bias_vote`` is the logit.
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
    """Split the largest logit after the token at ``position`` into the contributions of all stages.

    The final norm is (x - mean x) / σ · w + b. With σ fixed at that of the whole stream the norm is affine, so the
    logit is a sum over the vectors added to the stream (direct logit attribution: Elhage et al., 2021).
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
