"""Decoding with --draft ngram beside decoding without: python tests/benchmarks/speculation.py CHECKPOINT TEXT

The prompt is the whole of TEXT and then its opening once more, so a model that has TEXT by heart repeats what stands in
the prompt. Both ways decode greedily, in turns; the tokens must be the same. Prints the medians and their ratio.

A model that knows the bundled story, large enough that its weights come from memory (25 minutes on one core), and the
figure. Windows that begin at every token (--stride 1) teach it the text at any position, which is what it meets when
the context slides:

    common="--batch-size 2 --drop-rate 0 --train-share 1 --schedule cosine --sample-every 0"
    gptcli train data/story.txt --emb-dim 384 --n-heads 6 --n-layers 6 --context-length 256 --stride 64 --epochs 8 \\
        --lr 1e-3 --warmup-steps 10 --out checkpoints/heart-1 $common
    gptcli train data/story.txt --init-from checkpoints/heart-1 --stride 1 --max-steps 300 --lr 7e-4 \\
        --warmup-steps 10 --out checkpoints/heart-2 $common
    gptcli train data/story.txt --init-from checkpoints/heart-2 --stride 1 --max-steps 110 --lr 6e-4 \\
        --warmup-steps 5 --out checkpoints/heart-3 $common
    gptcli train data/story.txt --init-from checkpoints/heart-3 --stride 1 --max-steps 110 --lr 6e-4 \\
        --warmup-steps 5 --seed 7 --out checkpoints/heart $common
    python tests/benchmarks/speculation.py checkpoints/heart data/story.txt
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from gptcli.checkpoints import layout
from gptcli.config.sampling import SamplingConfig
from gptcli.inference import speculative
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.open import choose_engine, open_scorer
from gptcli.inference.sequence import Request, Token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--opening", type=int, default=64, help="tokens of TEXT that are repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--bits", type=int, default=32)
    options = parser.parse_args()
    config, ours = layout.read_config(options.checkpoint)
    tokenizer = layout.tokenizer_of(options.checkpoint, ours)
    text = options.text.read_text(encoding="utf-8")
    ids = tokenizer.encode(f"{text}\n\n")
    prompt = [*ids, *ids[: options.opening]]
    request = Request(prompt, options.tokens, SamplingConfig(temperature=0), seed=0)
    choice = choose_engine("cpu", "cpu", "auto", config)
    scorer = open_scorer(options.checkpoint, choice, tokenizer, threads=options.threads, bits=options.bits)

    def timed(tokens: Iterator[Token]) -> tuple[float, list[int]]:
        started = time.perf_counter()
        ids = [token.id for token in tokens]
        return time.perf_counter() - started, ids

    plain, drafted = [], []
    for _ in range(options.rounds):
        tally = speculative.Tally()
        seconds, expected = timed(generate(Scheduler(scorer), request))
        plain.append(seconds)
        drafter = speculative.NgramDrafter(most=scorer.engine.at_once - 1)
        seconds, ids = timed(generate(Scheduler(scorer, drafter, tally), request))
        drafted.append(seconds)
        if ids != expected:
            raise SystemExit("The drafted text differs.")
    print(f"{options.tokens} tokens: {median(plain):.2f} s without, {median(drafted):.2f} s with --draft ngram")
    print(f"{median(a / b for a, b in zip(plain, drafted, strict=True)):.2f} x as fast (rounds of a pair, the median)")
    print(
        f"{tally.accepted} of {tally.proposed} proposed tokens accepted, "
        f"{tally.tokens / tally.forward_passes:.2f} a pass"
    )


if __name__ == "__main__":
    main()
