"""The course's run by a plain loop, to time gptcli train beside: python tests/benchmarks/book_loop.py TEXT

A model and a loop as a course on building GPTs writes them: separate query, key and value projections, attention
weights in full, layer norm and GELU from their formulas, a loss over all logits, samples that read everything again
for every token. Prints the losses of every fifth step, the seconds of the whole run and its peak memory.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli import tokenizers
from gptcli.device import placement

CONTEXT, EMB_DIM, HEADS, LAYERS, DROP_RATE, BATCH = 256, 768, 12, 12, 0.1, 4


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(EMB_DIM)), nn.Parameter(torch.zeros(EMB_DIM))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift


class Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(EMB_DIM, EMB_DIM, bias=False) for _ in range(3))
        self.out, self.dropout = nn.Linear(EMB_DIM, EMB_DIM), nn.Dropout(DROP_RATE)
        self.register_buffer("future", torch.triu(torch.ones(CONTEXT, CONTEXT), diagonal=1).bool())

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, HEADS, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = (q @ k.transpose(2, 3)).masked_fill_(self.future[:length, :length], -torch.inf)
        weights = self.dropout(torch.softmax(scores / k.size(-1) ** 0.5, dim=-1))
        return self.out((weights @ v).transpose(1, 2).contiguous().view(batch, length, EMB_DIM))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2, self.dropout = Attention(), Norm(), Norm(), nn.Dropout(DROP_RATE)
        self.feed_forward = nn.Sequential(nn.Linear(EMB_DIM, 4 * EMB_DIM), Gelu(), nn.Linear(4 * EMB_DIM, EMB_DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.attention(self.norm1(x))) + x
        return self.dropout(self.feed_forward(self.norm2(x))) + x


class Model(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, EMB_DIM), nn.Embedding(CONTEXT, EMB_DIM)
        self.dropout, self.blocks = nn.Dropout(DROP_RATE), nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = Norm(), nn.Linear(EMB_DIM, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.tokens(ids) + self.positions(torch.arange(ids.size(1))))
        return self.head(self.norm(self.blocks(x)))


def loss(model: Model, windows: Tensor) -> Tensor:
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: Model, windows: Tensor) -> float:
    model.eval()
    parts = windows[: 5 * BATCH].split(BATCH)
    mean = sum(loss(model, part).item() for part in parts) / len(parts)
    model.train()
    return mean


@torch.no_grad()
def sample(model: Model, ids: list[int]) -> None:
    model.eval()
    for _ in range(50):
        ids = [*ids, int(model(torch.tensor([ids[-CONTEXT:]]))[0, -1].argmax())]
    model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    started = time.perf_counter()
    placement.set_threads(options.threads)
    torch.manual_seed(123)
    text, tokenizer = options.text.read_text(encoding="utf-8"), tokenizers.build("gpt2")
    cut = int(0.9 * len(text))
    train, held_out = (
        torch.tensor(tokenizer.encode(part)).unfold(0, CONTEXT + 1, CONTEXT) for part in (text[:cut], text[cut:])
    )
    model = Model(tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    step = 0
    for _ in range(options.epochs):
        model.train()
        for numbers in torch.randperm(len(train))[: len(train) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            loss(model, train[numbers]).backward()
            optimizer.step()
            if step % 5 == 0:
                print(
                    f"step {step}: train {evaluate(model, train):.3f}, val {evaluate(model, held_out):.3f}", flush=True
                )
            step += 1
        sample(model, tokenizer.encode("Every effort moves you"))
    print(f"{time.perf_counter() - started:.0f} s, peak {placement.peak_memory(torch.device('cpu')) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
