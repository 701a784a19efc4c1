"""gptcli bench on a model too small to be worth timing: the figures are consistent, and mistakes are named."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_checkpoint, tiny_model

from gptcli.checkpoints import checkpoint
from gptcli.cli import bench
from gptcli.device import peak_flops, placement
from gptcli.evaluation.benchmark import baselines, engines, products, works
from gptcli.evaluation.benchmark.engines import Contender, Setting, Task
from gptcli.evaluation.benchmark.works import Limits, Work
from gptcli.model.cost import flops_per_token, training_flops_rule
from gptcli.training.step import Stepper

QUICK = ("--repetitions", 2, "--tokens", 8, "--prompt", 16, "--batch", 3, "--threads", 1)
WORKS = ("load", "prefill", "decode", "batch", "train")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(works.LIMIT_SIZES, "cpu", (2**20, 64, 1))
    monkeypatch.setenv("GPTCLI_DEVICE", "cpu")  # also on a Mac, whose GPU is not hidden


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "checkpoints" / "run", context_length=32)


def test_every_work_is_measured_beside_its_limit(gptcli: Any, run: Path) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    result = gptcli("bench", run, *QUICK, "--json")
    assert result.code == 0, result.err
    rows = result.json["rows"]
    titles = dict(zip(("load", "prefill 16", "decode 8", "decode, 3 at once", "train, 4 x 32"), WORKS, strict=True))
    measured = [(titles[row["work"]], row["subject"]) for row in rows]
    drafted = "cpu float32, drafted in int8"
    does = {**dict.fromkeys(("cpu float32", "cpu int8", "cpu int4"), WORKS[:-1]), drafted: ("decode",)}
    does["torch float32"] = WORKS[1:]
    assert measured == [(work, subject) for work in WORKS for subject in does if work in does[subject]]
    for row in rows:
        assert 0 < min(row["low"], row["high"]) <= row["rate"] <= max(row["low"], row["high"])
        assert row["repetitions"] == 2
        assert row["beside"] is None
        assert row["unit"] == ("s" if row["work"] == "load" else "tokens/s")
        if row["unit"] == "tokens/s":
            assert row["fraction"] > 0
            assert row["limit"] > 0
    assert (result.json["device"], result.json["dtype"], result.json["threads"]) == ("cpu", "float32", 1)
    assert result.json["device_name"] == "cpu"
    assert result.json["peaks"].keys() == {"measured"}
    config, rate = checkpoint.load(run).config, rows[-1]["rate"]
    counted = {"6N": training_flops_rule(config), "with attention": flops_per_token(config, 32).training}
    assert result.json["training_flops"] == {"torch float32": {k: pytest.approx(v * rate) for k, v in counted.items()}}
    assert "On cpu, float32 (auto on a CPU), 1 threads." in result.err


def test_a_training_step_has_the_rows_and_the_length_that_are_asked_for(
    gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = set()
    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, x, y, rate: shapes.add(x.shape) or step(self, x, y, rate))
    result = gptcli("bench", run, *QUICK, "--work", "train", "--rows", 3, "--length", 20)
    assert result.code == 0, result.err
    assert "train, 3 x 20" in result.out
    assert shapes == {(3, 20)}


def test_every_peak_is_named_and_no_share_is_above_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    flops = {"torch bfloat16 on cuda": {"6N": 494.5e12, "with attention": 800e12}}
    named = [peak_flops.Peak(989e12, "of the NVIDIA H100 80GB HBM3"), peak_flops.Peak(700e12, "measured")]
    bench._print_utilization(flops, named)
    shown = capsys.readouterr().out
    assert re.search(r"of 989 TFLOP/s +of 700 TFLOP/s", shown)
    assert re.search(r"6N +494 TFLOP/s +50% +71%", shown)
    assert re.search(r"with attention +800 TFLOP/s +81% *\n", shown)
    assert "989 TFLOP/s: of the NVIDIA H100 80GB HBM3; 700 TFLOP/s: measured" in " ".join(shown.split())


def test_single_works_in_a_table(gptcli: Any, run: Path) -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    result = gptcli("bench", run, *QUICK, "--work", "decode")
    assert result.code == 0, result.err
    assert "decode 8" in result.out
    assert "cpu int4" in result.out
    assert "of the limit" in result.out
    assert "beside" not in result.out
    assert "prefill" not in result.out


@pytest.mark.parametrize(
    ("peer", "does"),
    [
        ("transformers", {"transformers float32": {"prefill 16", "decode 8", "decode, 3 at once", "train, 4 x 32"}}),
        ("ctranslate2", {f"ctranslate2 {n}": {"decode 8", "decode, 3 at once"} for n in ("float32", "int8")}),
    ],
)
def test_a_peer_is_measured_in_turns_with_the_others(gptcli: Any, run: Path, peer: str, does: Any) -> None:
    pytest.importorskip(peer)
    answer = gptcli("bench", run, *QUICK, "--against", peer, "--json")
    assert answer.code == 0, answer.err
    rows = answer.json["rows"]
    theirs = {subject: {row["work"] for row in rows if row["subject"] == subject} for subject in does}
    assert theirs == does
    compared = set.union(*does.values())
    for row in rows:
        assert (row["beside"] is not None) == (row["work"] in compared)
    for work in compared:
        fastest = max(row["beside"] for row in rows if row["work"] == work and row["subject"] in does)
        assert fastest == 1.0 if len(does) == 1 else 0.5 <= fastest <= 1.0  # either of two may be it in a turn


def test_the_table_says_beside_whom(gptcli: Any, run: Path) -> None:
    pytest.importorskip("transformers")
    result = gptcli("bench", run, *QUICK, "--work", "train", "--against", "transformers")
    assert "beside transformers" in result.out
    # A share of the limit is printed where it is below 100%, which a measurement decides.
    assert re.search(r"torch float32 .* +\d+\.\d\d × *\n.*transformers float32 .* +1\.00 ×", result.out)


@pytest.mark.parametrize("at_once", [True, False])
def test_contenders_take_turns_and_are_compared_within_one(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes ten times as slow in the second turn, for all and for the limit: the ratios stay."""
    now, order = 0.0, []
    times = SimpleNamespace(perf_counter=lambda: now, sleep=lambda seconds: None)
    monkeypatch.setattr(works, "time", times)

    def contender(name: str, seconds: float) -> Contender:
        def work() -> None:
            nonlocal now
            order.append(name)
            now += seconds * slowness()

        return Contender(name, frozenset({"nap"}), lambda _: Task(work, 4), 0, peer=name == "slow")

    def slowness() -> int:
        return 10 if at_once and 4 <= len(order) <= 6 else 1

    class Steady(Limits):
        def allowed(self, work: Work, weight_bytes: int) -> float:
            return 80_000 / slowness() / weight_bytes

    both = [contender("quick", 0.001), contender("slow", 0.003)]
    limits, work = Steady(CPU, torch.float32), Work("nap", "a nap", tokens=10, per_reading=1)
    quick, slow = works.measure(work, both, 3, limits, at_once=at_once)
    alone = ["quick", "quick", "slow", "slow"]  # made anew, each warms up in every turn
    assert order == (["quick", "slow"] * 4 if at_once else alone * 3)
    assert (quick.rate, quick.high) == pytest.approx((10_000, 10_000))
    assert quick.low == pytest.approx(1_000 if at_once else 10_000)
    assert (quick.fraction, quick.beside) == pytest.approx((0.5, 3.0))
    assert (slow.fraction, slow.beside) == pytest.approx((1 / 6, 1.0))


def test_models_that_do_not_fit_at_once_are_made_one_after_the_other() -> None:
    alive: list[int] = []

    class Model:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

        def work(self) -> None:
            assert len(alive) == 1

    both = [Contender(n, frozenset({"work"}), lambda _: Task(Model().work, 1), 2**62, peer=n == "b") for n in "ab"]
    work = Work("work", "work", tokens=1, per_reading=1)
    assert not works.fit_at_once(work, both, CPU)
    assert works.fit_at_once(work, [replace(each, model_bytes=0) for each in both], CPU)
    rows = works.measure(work, both, 2, Limits(CPU, torch.float32), at_once=False)
    assert [row.repetitions for row in rows] == [2, 2]


def setting(dtype: torch.dtype = torch.float32, **changes: Any) -> Setting:
    model = tiny_model(**changes)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return Setting(model.config, weights, 12, 16, 3, 1, CPU, dtype)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": False, "qkv_bias": False}], ids=str)
def test_all_contenders_draw_the_same_tokens(changes: dict[str, Any]) -> None:
    """A peer that did another work would be a figure of nothing."""
    for library in ("numba", "transformers", "ctranslate2"):
        pytest.importorskip(library, exc_type=ImportError)
    given = setting(**changes)
    everyone = [*engines.ours(given), *baselines.transformers(given), *baselines.ctranslate2(given)]
    exact = [contender for contender in everyone if "float32" in contender.subject]
    for work, shape, count in (("decode", (1, 12), 5), ("batch", (3, 3), 4)):
        first, *others = [contender.ready(work).run() for contender in exact if work in contender.works]
        assert (len(first), len(first[0])) == shape
        assert others == [first] * (count - 1)


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 32), (torch.bfloat16, 8), (torch.float32, 8), (torch.float32, 4)]
)
def test_what_runs_on_a_gpu_runs_here(dtype: torch.dtype, bits: int) -> None:
    given = setting(dtype)
    for work in works.works(given)[1:4]:
        task = engines._torch(given, bits, work.name)
        task.run()
        assert 0 < task.weight_bytes < 4 * sum(weight.size for weight in given.weights.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--repetitions", 0), ("--repetitions is 0",)),
        (("--rows", 0), ("--rows is 0",)),
        (("run", "--length", 0), ("--length is 0",)),
        (("run", "--length", 33), ("--length 33", "context of 32", "at most 32")),
        (("--work", "decod"), ("'decod'", "decode")),
        (("--against", "llama"), ("'llama'", "transformers")),
        (("--device", "gpu"), ("'gpu'",)),
        (("--dtype", "float8"), ("'float8'",)),
        (("--size", "smal"), ("'smal'", "small")),
        (("nowhere",), ("nowhere",)),
        (("run", "--size", "small"), ("two models",)),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(gptcli: Any, run: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    gptcli("bench", *options).assert_user_error(*words)


def test_ctranslate2_is_refused_beside_a_gpu(gptcli: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ctranslate2", exc_type=ImportError)
    gpu = SimpleNamespace(device=torch.device("cuda"), name="cuda:0, A Card")
    monkeypatch.setattr(placement, "choose", lambda device, dtype: gpu)
    result = gptcli("bench", run, "--against", "ctranslate2", "--dtype", "float32")
    result.assert_user_error("not on cuda:0, A Card", "Give --device cpu.")


def test_a_packed_checkpoint_is_refused(gptcli: Any, run: Path) -> None:
    assert gptcli("quantize", run).code == 0
    gptcli("bench", f"{run}-int8").assert_user_error("packed already")


def test_the_limit_is_the_product_of_the_fastest_library(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = Ticking(5), Ticking(1)
    monkeypatch.setattr(works, "libraries", lambda square: {"slow": slow, "quick": quick})
    monkeypatch.setattr(works, "seconds", lambda call, device: (call(), Ticking.took)[1])
    limits = Limits(CPU, torch.float32)
    assert limits.library == "quick"
    assert limits.product_rate() == 2 * 64**3
    assert (slow.calls, quick.calls) == (works.TRIALS + 1, works.TRIALS + 2)


class Ticking:
    """A product that takes so many seconds of a clock of its own."""

    took = 0.0

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self) -> None:
        self.calls += 1
        Ticking.took = self.seconds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_library_gives_a_product(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    square = torch.rand(33, 33).to(dtype)
    found = products.libraries(square)
    assert "torch's default" in found
    for name, product in found.items():
        result = torch.as_tensor(product())
        by = square.T if name == "oneDNN" else square  # a linear layer's weight is transposed
        torch.testing.assert_close(result, square @ by, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_a_torch_without_onednn_has_the_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn", lambda square: None)
    monkeypatch.setattr(products, "usable_cpus", lambda: 10**6)  # more than torch's threads: numpy would use them all
    assert list(products.libraries(torch.rand(3, 3))) == ["torch's default"]
