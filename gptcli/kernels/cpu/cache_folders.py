"""The folders of compiled kernels in the user's cache. They are found, and removed, without numba."""

import hashlib
import os
import re
import shutil
import sys
import time
from functools import cache
from pathlib import Path

_FOLDER = re.compile(r"(?:kernels|training)-[0-9a-f]{12}")
UNUSED = 30 * 86_400  # seconds after which the kernels of another version are removed


def cache_directory() -> Path:
    """Where compiled kernels are kept: one folder for each version of their sources, under the user's cache."""
    return _base() / f"kernels-{_sources()}"


def folders() -> list[Path]:
    """The folders of compiled kernels that exist, of every version of gptcli."""
    base = _base()
    return sorted(path for path in base.glob("*") if _FOLDER.fullmatch(path.name) and path.is_dir())


def _base() -> Path:
    if "NUMBA_CACHE_DIR" in os.environ:
        base = Path(os.environ["NUMBA_CACHE_DIR"])
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "gptcli"


@cache
def _sources() -> str:
    """12 hexadecimal digits of a SHA-256 over the names and texts of this folder's Python files."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:12]


def prune(current: Path) -> None:
    """Remove the kernels of other versions that were last used more than `UNUSED` seconds ago."""
    for folder in current.parent.glob("*"):
        try:
            used = max((file.stat().st_mtime for file in folder.glob("*.compiled")), default=folder.stat().st_mtime)
            if folder != current and _FOLDER.fullmatch(folder.name) and time.time() - used > UNUSED:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another process has removed it
            continue


def can_write(directory: Path) -> bool:
    """Whether files can be created in ``directory``, which is made if it is not there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
