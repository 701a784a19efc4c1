"""Shared fixtures: the real app in this process, and the texts that measurements need."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import TEXT

# Before torch is imported, and for the processes that tests start. Tiny models gain nothing from a second thread, and
# lose much where tests share their cores; a float32 product is one of float32 numbers, whatever the user's shell says.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT"}
GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

SHARED_DATA = Path(os.environ.get("GPTCLI_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, before torch looks for them, from every test but those that are asked for by ``-m gpu``."""
    if not wants_gpu(config):
        os.environ |= dict.fromkeys(GPUS, "")


def wants_gpu(config: pytest.Config) -> bool:
    """Whether the tests that need a GPU are selected."""
    words = str(config.getoption("markexpr")).replace("not gpu", "").split()
    return "gpu" in words


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA GPU")


@dataclass
class Result:
    """What one run of the command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def assert_user_error(self, *words: str) -> None:
        """Exit code 2, nothing on stdout, two lines on stderr, and every one of ``words`` among them."""
        assert self.code == 2, self.err
        assert self.out == ""
        lines = self.err.strip().splitlines()
        assert len(lines) == 2, self.err
        assert lines[0].startswith("Error: ")
        for word in words:
            assert word in self.err, f"{word!r} not in {self.err!r}"


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels(request: pytest.FixtureRequest) -> None:
    """Compile the CPU kernels before any test looks at what a command says: they announce it, once a machine."""
    if wants_gpu(request.config):
        return
    from gptcli.config.model import GPTConfig
    from gptcli.inference.open import obstacle

    if obstacle(GPTConfig()) is None:
        from gptcli.kernels.cpu.compile_cache import decoding_kernels, training_passes
        from gptcli.kernels.cpu.numba_support import numba_reason

        for kind in (32, 8, 4):
            decoding_kernels(kind)
        if numba_reason() is None:  # kept kernels of decoding need no numba
            training_passes()


@pytest.fixture
def gptcli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the real command line in an empty folder: ``gptcli("train", "story.txt").code``."""
    from gptcli.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """The text of runs.py in a file."""
    path = tmp_path / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def _shared_file(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not part of the repository; GPTCLI_TEST_DATA names the folder that has it")
    return path


@pytest.fixture(scope="session")
def the_verdict() -> Path:
    path = _shared_file("the-verdict.txt")
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("b41e41a6")
    return path


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    return _shared_file("tinyshakespeare.txt")


@pytest.fixture(scope="session")
def course_numbers() -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads(_shared_file("course_numbers.json").read_text(encoding="utf-8"))
    return numbers


@pytest.fixture(scope="session")
def bundled_story() -> Path:
    return Path(__file__).parents[1] / "data" / "story.txt"
