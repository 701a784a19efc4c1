"""Replacing files: after a power cut, a path holds the old file or the complete new one."""

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace the file ``path`` by what the block writes to the temporary path that this yields.

    The temporary file is in the same directory. At the end of the block it is synced and renamed to ``path``, and the
    directory is synced. If the block raises, it is removed and ``path`` is unchanged. A link is followed; what is
    neither a file nor absent, such as /dev/stdout, is yielded itself.

    Raises:
        OSError: the disk is full or not writable.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    partial = partial_path(target)
    try:
        partial.touch()
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        partial.chmod(mode)  # the umask's; safetensors makes files that only their owner can read
        put_in_place(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def put_in_place(partial: Path, path: Path) -> None:
    """Sync the complete file ``partial``, rename it to ``path`` and sync the directory. Raises OSError."""
    with partial.open("r+b") as file:  # Windows syncs no file that is open for reading only
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def link_in_place(source: Path, target: Path) -> None:
    """Replace ``target`` atomically by a hard link to ``source``, or a copy where the file system has no links."""
    for old in target.parent.glob(f".{target.name}*.link"):
        old.unlink()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.link")
    try:
        os.link(source, temporary)
    except OSError:
        try:
            shutil.copyfile(source, temporary)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # POSIX renames nothing where both names are links to one file


def partial_path(path: Path) -> Path:
    """The temporary path for ``path``: in the same folder, hidden, with the process's id in its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def clear_partials(path: Path) -> None:
    """Remove temporary files for ``path`` of this process and of ended ones; those of other live processes stay."""
    import psutil

    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})\.partial")
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        found = pattern.fullmatch(file.name)
        if found and (int(found[1]) == os.getpid() or not psutil.pid_exists(int(found[1]))):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """fsync a directory, so that a rename in it survives a power cut; Windows cannot open directories."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def synced_size(path: Path) -> int:
    """fsync a file and return its length in bytes; 0 where there is no file. Raises OSError."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
