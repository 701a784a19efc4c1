"""What pyproject.toml says of the package is true, and nothing in it needs POSIX without a branch for other systems."""

import ast
import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import gptcli
from gptcli.data import download
from gptcli.device import inventory
from gptcli.tokenizers import gpt2

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gptcli"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_both_copies_of_the_story_are_one_text() -> None:
    story = download.TEXTS["story"]
    data = (download.BUNDLED / story.filename).read_bytes()
    assert data == (ROOT / "data" / "story.txt").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (story.size, story.sha256)


def test_the_metadata_is_whole(project: dict[str, Any]) -> None:
    about = project["project"]
    assert about["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", gptcli.__version__)
    assert all((ROOT / name).is_file() for name in about["license-files"])
    assert about["authors"]
    assert about["keywords"]
    assert {"Homepage", "Issues"} <= set(about["urls"])
    versions = [line.rpartition(" ")[2] for line in about["classifiers"] if line.startswith("Programming Language")]
    assert versions[1:] == ["3.11", "3.12", "3.13", "3.14"]
    assert all(re.search(rf"\b{system}\b", " ".join(about["classifiers"])) for system in ("MacOS", "Windows", "Linux"))


def test_the_notice_names_the_rank_table_and_the_story() -> None:
    notice = (PACKAGE / "guide" / "licences.md").read_text(encoding="utf-8")
    for path in re.findall(r"`(gptcli/[^`]+)`", notice):
        assert (ROOT / path).is_file()
    assert gpt2.RANK_TABLE_SHA256 in notice
    assert "CC0" in notice


def test_what_doctor_looks_for_is_what_the_project_requires(project: dict[str, Any]) -> None:
    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=; ]", line)[0] for line in lines}

    extras = project["project"]["optional-dependencies"]
    required = names(project["project"]["dependencies"])
    assert set(inventory.REQUIRED) == required - set(inventory.OPTIONAL)
    assert set(inventory.OPTIONAL) <= required | names([line for lines in extras.values() for line in lines])


# Names that not every system has -> the files that use them, each with a branch for the other systems.
POSIX = {
    "os.fork": set(),
    "os.getuid": set(),
    "os.kill": set(),
    "os.killpg": set(),
    "os.link": {"checkpoints/atomic.py"},  # a copy where there are no links
    "os.sched_getaffinity": {"device/resources.py"},  # hasattr
    "os.symlink": set(),
    **{f"os.{name}": set() for name in ("geteuid", "setsid", "nice", "statvfs", "sysconf", "getloadavg", "uname")},
    **{
        f"os.{name}": set() for name in ("sched_setaffinity", "posix_fallocate", "sendfile", "pread", "mkfifo", "chown")
    },
    "signal.SIGKILL": set(),
    "signal.SIGHUP": set(),
    "signal.SIGPIPE": set(),
    "signal.SIGALRM": set(),
    **{f"signal.{name}": set() for name in ("SIGUSR1", "SIGQUIT", "SIGCONT", "SIGTSTP", "alarm", "setitimer", "pause")},
    "mmap.MAP_PRIVATE": {"kernels/cpu/memory_layout.py"},  # hasattr
    "mmap.MAP_ANONYMOUS": {"kernels/cpu/memory_layout.py"},
    "mmap.MADV_HUGEPAGE": {"kernels/cpu/memory_layout.py", "device/allocator.py"},  # hasattr
    "mmap.MADV_DONTNEED": {"data/token_shards.py"},  # hasattr
    "resource": {"device/placement.py", "kernels/cpu/first_compilation.py"},  # psutil, and nothing, on Windows
    "fcntl": set(),
    "pwd": set(),
    **{name: set() for name in ("termios", "tty", "pty", "grp", "syslog", "readline", "curses")},
    "/proc/": {"device/machine.py"},  # unknown flags elsewhere
    "/dev/": {"inference/open.py"},  # sys.platform
    "/sys/": set(),
}


def test_what_only_some_systems_have_is_used_where_there_is_a_branch() -> None:
    found: dict[str, set[str]] = {name: set() for name in POSIX}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [root for root in ("/proc/", "/dev/", "/sys/") if node.value.startswith(root)]
            for name in names:
                if name in found:
                    found[name].add(place)
    assert found == POSIX


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_the_workflows_and_issue_forms_are_yaml(path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with transformers, which only developers install")
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        assert all({"runs-on", "steps"} <= set(job) for job in value["jobs"].values())
    elif path.name != "config.yml":
        assert {"name", "description", "body"} <= set(value)
