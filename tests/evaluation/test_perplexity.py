"""Perplexity: every token once, against transformers, against a plain loop, and against itself."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import tiny_model
from torch import Tensor
from torch.nn import functional as F
from trained import trained_model

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.errors import GptcliError
from gptcli.evaluation.log_likelihood import Span, score
from gptcli.evaluation.perplexity import BLOCK, Measured, Protocol, encode, make_protocol, measure, windows
from gptcli.evaluation.plots import draw, loss_by_position, reliability_bins
from gptcli.model.gpt import GPTModel


def random_run(length: int, vocab_size: int = 61) -> Tensor:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(length), dtype=torch.int32)


@torch.no_grad()
def full_context(model: GPTModel, run: Tensor, context: int) -> Tensor:
    """Nats of every token but the first, each with all the context that fits, one forward pass a token."""
    nats = []
    for place in range(1, len(run)):
        logits = model(run[max(0, place - context) : place].long()[None])[0, -1]
        nats.append(-torch.log_softmax(logits.double(), dim=-1)[run[place]])
    return torch.stack(nats)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_windows_score_every_token_once(length: int, context: int, stride: int, guide: bool) -> None:
    if stride > context or (guide and context < 2):
        return
    protocol = Protocol(context, stride, guide)
    scored: list[int] = []
    for start, end, first in windows(length, protocol):
        assert 0 <= start < first < end <= length
        assert end - start <= context + (not guide)
        scored += range(first, end)
    missed = sorted(set(range(1, length)) - set(scored))
    assert scored == sorted(set(scored))
    assert missed == (
        [place for place in range(1, length) if place % context == 0] if guide and stride == context else []
    )


def test_stride_1_is_exact_full_context() -> None:
    model, run = tiny_model(), random_run(60)
    exact = full_context(model, run, context=20)
    measured = measure(model, [run], Protocol(20, 1), batch_size=7)
    assert (measured.tokens, measured.windows) == (59, 40)
    assert measured.mean == pytest.approx(float(exact.mean()), abs=1e-6)


def test_batch_size_does_not_change_the_result() -> None:
    model, runs = tiny_model(), [random_run(333), random_run(41), random_run(2)]
    results = [measure(model, runs, Protocol(20, 10), batch_size) for batch_size in (1, 3, 8, 100)]
    for result in results[1:]:
        assert result.mean == pytest.approx(results[0].mean, abs=1e-6)
        assert result.standard_error == pytest.approx(results[0].standard_error, abs=1e-6)
    assert results[0].tokens == 332 + 40 + 1


def test_texts_are_scored_each_on_its_own() -> None:
    model = tiny_model()
    a, b = random_run(50), random_run(71)
    both = measure(model, [a, b], Protocol(20, 10), 4)
    apart = [measure(model, [run], Protocol(20, 10), 4) for run in (a, b)]
    assert both.nats == pytest.approx(sum(one.nats for one in apart), rel=1e-7)


def test_standard_error_of_a_mean_of_blocks() -> None:
    model, run = tiny_model(), random_run(20 * BLOCK + 8)
    measured = measure(model, [run], Protocol(20, 10), 16)
    assert len(measured.block_nats) == 21
    assert float(measured.block_sizes.sum()) == measured.tokens == 20 * BLOCK + 7
    # The tokens are random, hence independent: tokens and blocks of tokens must tell the same error.
    nats = torch.cat([-s.log_probs for s in score(model, [Span(run[a:b], f - a) for a, b, f in
                                                          windows(len(run), Protocol(20, 10))], 16)])  # fmt: skip
    assert measured.mean == pytest.approx(float(nats.mean()), abs=1e-9)
    assert measured.standard_error == pytest.approx(float(nats.std()) / math.sqrt(len(nats)), rel=0.5)


def test_paired_differences_are_surer_than_unpaired_ones() -> None:
    model, other, run = tiny_model(), tiny_model(), random_run(3000)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    a, b = (measure(m, [run], Protocol(20, 10), 32) for m in (model, other))
    assert a.is_paired_with(b)
    value, error = b.difference(a)
    assert value == pytest.approx(b.mean - a.mean)
    assert 0 < error < 0.3 * math.hypot(a.standard_error, b.standard_error)
    assert a.difference(a) == (0.0, 0.0)


def test_memory_does_not_grow_with_the_text() -> None:
    """No tensor of measure's is larger than a batch's logits, however long the text."""
    model = tiny_model()
    seen: list[int] = []
    hidden = model.hidden
    model.hidden = lambda ids, cache=None: seen.append(ids.numel()) or hidden(ids, cache)  # type: ignore[method-assign]
    measured = measure(model, [random_run(2000)], Protocol(20, 10), batch_size=4)
    assert max(seen) == 4 * 20
    tensors = [value for value in vars(measured).values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() for tensor in tensors) < 200


def test_logits_are_never_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = tiny_model(), random_run(400)
    whole = measure(model, [run], Protocol(20, 20), 8)
    monkeypatch.setattr("gptcli.evaluation.log_likelihood.CHUNK_BYTES", 4 * 61 * 7)
    sizes: list[int] = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: sizes.append(len(x)) or linear(x, *rest))
    assert measure(model, [run], Protocol(20, 20), 8).mean == pytest.approx(whole.mean, abs=1e-6)
    assert max(sizes) == 7


@torch.no_grad()
def guide_loop(reference: Any, ids: Tensor, max_length: int, stride: int) -> float:
    """The strided loop of transformers' perplexity guide, with the number of labels that its loss averages over."""
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, ids.size(1), stride):
        end = min(begin + max_length, ids.size(1))
        target_length = end - previous_end
        labels = ids[:, begin:end].clone()
        labels[:, :-target_length] = -100
        valid = int((labels[:, 1:] != -100).sum())
        total += float(reference(ids[:, begin:end], labels=labels).loss) * valid
        count += valid
        previous_end = end
        if end == ids.size(1):
            break
    return total / count


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_guide_windows_equal_transformers(weights: str, bundled_story: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = bundled_story.read_text(encoding="utf-8")[:2700]
    tokenizer = tokenizers.build("byte")
    model = tiny_model(vocab_size=257, context_length=1024) if weights == "random" else trained_model(text, 1024)
    checkpoint.create(tmp_path / "model", model, tokenizer, {})
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    run = encode(text, tokenizer, bos=False)
    for stride in (1024, 512, 64):
        expected = guide_loop(reference, run.long()[None], 1024, stride)
        found = measure(model, [run], Protocol(1024, stride, guide=True), batch_size=4).mean
        assert found == pytest.approx(expected, abs=1e-4), stride


def test_guide_differs_from_our_windows_only_by_one_token_of_context() -> None:
    """Under an overlap, N tokens with their targets are N - 1 tokens without."""
    model, run = tiny_model(), random_run(200)
    guide = measure(model, [run], Protocol(20, 7, guide=True), 4)
    ours = measure(model, [run], Protocol(19, 7), 4)
    assert guide.mean == pytest.approx(ours.mean, abs=1e-7)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_encoding_in_parts_is_encoding_whole(kind: str, bundled_story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "  \n\n x\n\n\ty\n 'tis\nAnd —\r\nnaïve 日本\n5\n\n" * 20 + bundled_story.read_text(encoding="utf-8")
    tokenizer = tokenizers.build(kind, text)
    whole = tokenizer.encode(text)
    monkeypatch.setattr("gptcli.evaluation.perplexity.PART_CHARACTERS", 50)
    assert encode(text, tokenizer, bos=False).tolist() == whole


def test_bos_is_the_end_of_text_id_and_is_not_scored() -> None:
    tokenizer = tokenizers.build("byte")
    assert encode("ab", tokenizer, bos=True).tolist() == [256, 97, 98]
    with pytest.raises(GptcliError, match="char tokenizer has no end-of-text"):
        encode("ab", tokenizers.build("char", "ab"), bos=True)


def test_protocol_defaults_and_limits() -> None:
    assert make_protocol(1024, None, None, guide=False) == Protocol(1024, 512)
    assert make_protocol(1024, 100, None, guide=False) == Protocol(100, 50)
    assert make_protocol(1, None, None, guide=False) == Protocol(1, 1)
    for context, stride in ((0, None), (1025, None), (None, 1025), (64, 65), (None, 0)):
        with pytest.raises(GptcliError):
            make_protocol(1024, context, stride, guide=False)


def perfect_and_lying() -> tuple[Measured, Measured]:
    model, run = tiny_model(), random_run(600)
    honest = measure(model, [run], Protocol(20, 10), 16, for_plot=True)
    with torch.no_grad():
        model.wte.weight.mul_(3)  # the tied head: surer, and no more often right
    return honest, measure(model, [run], Protocol(20, 10), 16, for_plot=True)


def test_loss_by_position_and_calibration() -> None:
    model, run = tiny_model(), random_run(600)
    measured = measure(model, [run], Protocol(20, 10), 16, for_plot=True)
    assert measured.mean == pytest.approx(measure(model, [run], Protocol(20, 10), 16).mean, abs=1e-7)
    # Every window has each of its positions once, not only those that count; the last one is a token short.
    assert measured.position_counts.tolist() == [59.0] * 19 + [58.0]
    first = -torch.cat([s.log_probs for s in score(model, [Span(run[a : a + 2], 1) for a in range(0, 590, 10)], 9)])
    assert float(measured.position_nats[0] / measured.position_counts[0]) == pytest.approx(
        float(first.mean()), abs=1e-6
    )
    assert sum(count for _, _, count in loss_by_position(measured)) == int(measured.position_counts.sum())

    # Calibration counts every scored token once; the expected error by its definition.
    spans = [Span(run[a:b], f - a) for a, b, f in windows(600, Protocol(20, 10))]
    scores = list(score(model, spans, 8, ranked=True))
    sure = torch.cat([s.confidences for s in scores]).double()
    hits = torch.cat([s.hits for s in scores]).double()
    bins = (sure * 15).long()
    expected = sum(
        float((bins == b).double().mean() * abs(sure[bins == b].mean() - hits[bins == b].mean()))
        for b in range(15) if (bins == b).any()
    )  # fmt: skip
    assert sum(count for _, _, count in reliability_bins(measured)) == measured.tokens == 599
    assert measured.calibration_error() == pytest.approx(expected, abs=1e-9)


def test_a_surer_model_that_is_not_more_often_right_is_worse_calibrated(tmp_path: Path) -> None:
    honest, lying = perfect_and_lying()
    assert lying.calibration_error() > honest.calibration_error() + 0.05
    draw({"honest": honest, "lying": lying}, tmp_path / "plot.png", "both")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.ln_f.weight.fill_(math.nan)
    with pytest.raises(GptcliError, match="NaN or infinite"):
        measure(model, [random_run(30)], Protocol(20, 10), 2)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_too_little_to_score(length: int) -> None:
    with pytest.raises(GptcliError, match="at least 2"):
        measure(tiny_model(), [random_run(length)], Protocol(20, 10), 2)
