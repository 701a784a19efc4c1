"""gptcli evaluate beside a batched transformers loop: python tests/benchmarks/evaluation.py data/story.txt

Random GPT-2 small, the text's first tokens, the same windows and the same batches, batch by batch in turns, so that a
machine that slows down slows both. Ours alone comes first, for its peak of memory.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli import tokenizers
from gptcli.config.model import PRESETS
from gptcli.device.placement import peak_memory
from gptcli.evaluation.log_likelihood import Span, score
from gptcli.evaluation.perplexity import Protocol, encode, measure, windows
from gptcli.model.gpt import GPTModel


@torch.no_grad()
def transformers_nats(reference: Any, batch: list[tuple[int, int, int]], run: Tensor) -> float:
    """Negative log-likelihood of one batch of equally long windows, as its users write it."""
    inputs = torch.stack([run[start : end - 1] for start, end, _ in batch]).long()
    targets = torch.stack([run[start + 1 : end] for start, end, _ in batch]).long()
    for row, (start, _, first) in zip(targets, batch, strict=True):
        row[: first - start - 1] = -100
    logits = reference(inputs).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    model = GPTModel(PRESETS["small"]).eval()
    tokenizer = tokenizers.build("gpt2")
    run = encode(args.text.read_text(encoding="utf-8"), tokenizer, bos=True)[: args.tokens + 1]
    protocol = Protocol(1024, args.stride)
    start = time.perf_counter()
    alone = measure(model, [run], protocol, args.batch_size)
    print(f"ours alone: {alone.tokens / (time.perf_counter() - start):,.0f} tokens/s, {alone.mean:.6f} nats a token")
    print(f"peak memory: {peak_memory(torch.device('cpu')) / 1e9:.2f} GB")

    reference = GPT2LMHeadModel(GPT2Config()).eval()
    weights = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    reference.load_state_dict({**weights, "lm_head.weight": model.wte.weight}, assign=True)
    plan = list(windows(len(run), protocol))
    batches: list[list[tuple[int, int, int]]] = []
    for window in plan:  # the reference takes windows of one length only
        same = batches and window[1] - window[0] == batches[-1][0][1] - batches[-1][0][0]
        if same and len(batches[-1]) < args.batch_size:
            batches[-1].append(window)
        else:
            batches.append([window])
    ours, theirs, ours_nats, theirs_nats = 0.0, 0.0, 0.0, 0.0
    for batch in batches:
        start = time.perf_counter()
        theirs_nats += transformers_nats(reference, batch, run)
        theirs += time.perf_counter() - start
        start = time.perf_counter()
        spans = [Span(run[first:end], scored - first) for first, end, scored in batch]
        ours_nats -= sum(float(s.log_probs.sum()) for s in score(model, spans, args.batch_size))
        ours += time.perf_counter() - start
    print(f"in turns: transformers {theirs:.1f} s, ours {ours:.1f} s: {theirs / ours:.2f} times as fast")
    print(f"difference: {abs(ours_nats - theirs_nats) / alone.tokens:.2e} nats a token")


if __name__ == "__main__":
    main()
