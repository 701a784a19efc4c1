"""A training step of GPT-2 small beside the machine's matrix-product rate: python tests/benchmarks/training.py

Limit and code are measured in turns, so that a machine that slows down slows both. Training costs six FLOPs for each
parameter that multiplies and each token (Kaplan et al., 2020).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.device import allocator, placement
from gptcli.kernels.cpu import train_kernels
from gptcli.model import cost
from gptcli.model.gpt import GPTModel
from gptcli.training.step import Stepper


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    threads = placement.set_threads(options.threads)
    config = GPTConfig.preset(options.size)
    allocator.reuse_freed_memory(cost.training_memory(config, options.batch, options.context).resident)
    recipe = RecipeConfig(context_length=options.context, batch_size=options.batch, dtype="float32")
    model, kernels = GPTModel(config).train(), train_kernels.open_kernels()
    if isinstance(kernels, str):
        print(f"without compiled kernels: {kernels}")
    else:
        model.use(kernels)
    stepper = Stepper(model, recipe)
    ids = torch.randint(0, config.vocab_size, (options.batch, options.context + 1))
    batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)

    products, steps = [], []
    for number in range(options.rounds + 1):
        product = min(seconds(lambda: a @ b) for _ in range(5))
        step = seconds(lambda: stepper.step(*batch, 5e-4))
        if number:  # the first round warms up
            products.append(2 * 2048**3 / product)
            steps.append(options.batch * options.context / step)
    limit, rate = statistics.median(products), statistics.median(steps)
    share = rate * 6 * cost.parameter_count(config) / limit
    print(f"{options.size}, batch {options.batch} x {options.context}, float32, {threads} threads, dropout 0.1")
    print(f"matrix product 2048: {limit / 1e9:.0f} GFLOP/s ({min(products) / 1e9:.0f} to {max(products) / 1e9:.0f})")
    print(f"training:            {rate:.0f} tokens/s ({min(steps):.0f} to {max(steps):.0f}), {share:.2f} of that limit")
    print(f"peak memory:         {placement.peak_memory(torch.device('cpu')) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
