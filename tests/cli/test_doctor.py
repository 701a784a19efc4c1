"""gptcli doctor: its report, its exit code, and what --clean-cache removes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.device import inventory
from gptcli.evaluation import self_check
from gptcli.kernels.cpu import cache_folders


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of two versions' kernels, and of files that are not gptcli's."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("kernels-0123456789ab", "training-0123456789ab", "mine", "kernels-of-mine"):
        (tmp_path / "cache" / "gptcli" / name).mkdir(parents=True)
        (tmp_path / "cache" / "gptcli" / name / "file").write_bytes(b"x" * 100)
    return tmp_path / "cache"


def test_it_says_what_is_here_and_what_works(gptcli: Any, tmp_path: Path) -> None:
    result = gptcli("doctor")
    assert result.code == 0, result.out
    for word in ("torch", "processor", "features", "threads", "device", "a training step on cpu", "a picture (Agg)"):
        assert word in result.out
    assert result.out.endswith("gptcli can train and generate on this machine.\n")
    wide = [line for line in result.out.splitlines() if len(line) > 80]
    assert all(len(line.split()) == 1 for line in wide), wide  # a path is not broken
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_json(gptcli: Any) -> None:
    report = gptcli("doctor", "--json").json
    assert report["ok"] is True
    assert report["packages"]["torch"] is not None
    assert {"cpu"} <= {device["device"] for device in report["devices"]}
    assert all(check["ok"] for check in report["checks"] if check["required"])
    assert str(Path.home()) not in json.dumps(report["caches"])


def test_exit_1_where_a_required_part_does_not_work(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> str:
        raise RuntimeError(f"{device} is on fire")

    monkeypatch.setattr(self_check, "_train", broken)
    result = gptcli("doctor")
    assert result.code == 1
    assert "FAILS       a training step on cpu: cpu is on fire" in result.out
    assert "pip install torch" in result.out


def test_a_missing_optional_part_is_named_and_is_no_failure(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ImportError("No module named 'matplotlib'")

    real = inventory.version_of
    monkeypatch.setattr(self_check, "_draw", broken)
    monkeypatch.setattr(inventory, "version_of", lambda name: None if name == "gguf" else real(name))
    result = gptcli("doctor")
    assert result.code == 0
    assert "absent      a picture (Agg): No module named 'matplotlib'" in result.out
    assert "missing     gguf, for gptcli export --format gguf: " in result.out


def test_a_missing_required_package_is_named(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = inventory.version_of
    monkeypatch.setattr(inventory, "version_of", lambda name: None if name == "jinja2" else real(name))
    assert "missing     jinja2, for gptcli itself: " in gptcli("doctor").out


def test_without_torch_it_still_answers() -> None:
    code = "import sys\nsys.modules['torch'] = None\nfrom gptcli.cli import main\nsys.exit(main(['doctor', '--json']))"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert not checks["torch"]["ok"]
    assert "install torch" in checks["torch"]["fix"]


def test_clean_cache_removes_what_gptcli_compiled_and_nothing_else(gptcli: Any, cache: Path) -> None:
    assert [path.name for path in cache_folders.folders()] == ["kernels-0123456789ab", "training-0123456789ab"]
    result = gptcli("doctor", "--clean-cache")
    assert result.code == 0
    assert result.out.count("100 bytes") == 2
    assert sorted(path.name for path in (cache / "gptcli").iterdir()) == ["kernels-of-mine", "mine"]
    again = gptcli("doctor", "--clean-cache")
    assert (again.out, again.err) == ("", "gptcli has cached nothing.\n")
    assert gptcli("doctor", "--clean-cache", "--json").json == []


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    first = next(self_check.checks(tmp_path / "nowhere", lambda line: None))
    assert (first.name, first.ok, first.required) == ("the disk", False, True)


@pytest.mark.parametrize(
    ("prefix", "command"),
    [
        ("/home/me/.local/share/pipx/venvs/gptcli", "pipx inject gptcli gguf"),
        ("/home/me/.local/share/uv/tools/gptcli", "uv tool install gptcli --with gguf"),
        ("/home/me/.venv", "python -m pip install gguf"),
    ],
)
def test_the_way_to_a_package_is_that_of_this_environment(
    monkeypatch: pytest.MonkeyPatch, prefix: str, command: str
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    assert inventory.install_command("gguf") == command


def test_the_check_of_training_loads_no_compiler() -> None:
    """torch's compiler, which torch's optimizers load with Triton, takes a second."""
    code = "import sys; from gptcli.evaluation.self_check import _train; _train('cpu'); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.strip() == "False", done.stderr
