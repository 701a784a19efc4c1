"""Downloads GPT-2 from the Hugging Face hub into huggingface_hub's cache; downloads are resumed and verified.

HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE have huggingface_hub's meaning. That library resumes a
download only within one process; this module keeps the partial file of a killed process beside the cache's blobs and
resumes it.
"""

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from huggingface_hub.utils.logging import set_verbosity_error

from gptcli.checkpoints import layout
from gptcli.checkpoints.formats import hf
from gptcli.errors import GptcliError, nearest
from gptcli.tokenizers.gpt2 import GPT2Tokenizer

# Commits of the repositories with OpenAI's models, so that the same command always loads the same weights.
PINNED = {
    "small": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
# Known SHA-256 of their files, checked in addition to the hub's own digest.
SHA256 = {
    (PINNED["small"][1], "model.safetensors"): "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    (PINNED["xl"][1], "model.safetensors"): "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
}
_TOKENIZER_FILES = ("vocab.json", "merges.txt")
_FOREIGN_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", *_TOKENIZER_FILES, "spiece.model")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")  # SHA-256 of a large file, git's SHA-1 of a small one

OnDownload = Callable[[str, int], None]


class _UnreachableError(GptcliError):
    """The hub cannot be reached, and the cache does not have the file."""


@dataclass(frozen=True)
class _Request:
    repo: str
    revision: str
    on_download: OnDownload
    bar: type[Any] | None


def pinned(size: str) -> tuple[str, str]:
    """The repository and commit of one of OpenAI's four models; raises GptcliError for another ``size``."""
    if size not in PINNED:
        meant = layout.gpt2_size(size)
        hint = f"Did you mean {meant}? There are: {', '.join(PINNED)}." if meant else nearest(size, PINNED)
        raise GptcliError(f"There is no GPT-2 of size {size!r}.", hint)
    return PINNED[size]


def fetch(repo: str, revision: str, on_download: OnDownload, bar: type[Any] | None = None) -> Path:
    """The directory in huggingface_hub's cache with the model's config, weights and tokenizer files, all verified.

    Args:
        repo: such as "distilbert/distilgpt2".
        revision: a commit, branch or tag. A commit in the cache needs no network.
        on_download: called before each download with the file's name and the number of bytes to download.
        bar: a tqdm class for the progress bar; None for huggingface_hub's own.

    Raises:
        GptcliError: the hub or the repository cannot be reached; a file is missing, does not match the hub's or the
            pinned digest, or does not fit on the disk.
    """
    set_verbosity_error()
    request = _Request(repo, revision, on_download, bar)
    config = _file(request, hf.CONFIG)
    if config is None:
        raise GptcliError(f"{repo} has no {hf.CONFIG} at {revision}.", "Only repositories of transformers can be read.")
    weights = _weights(request)
    if weights.name.endswith(".index.json"):
        for name in hf.shard_names(weights):
            if _file(request, name) is None:
                raise GptcliError(f"{repo} has no {name}, which {weights.name} names.", "The repository is incomplete.")
    _tokenizer(request, config)
    return config.parent


def _tokenizer(request: _Request, config: Path) -> None:
    """Fetch the tokenizer's files that the repository has."""
    is_pinned = (request.repo, request.revision) in PINNED.values()
    names = _TOKENIZER_FILES if is_pinned else _FOREIGN_TOKENIZER_FILES
    try:
        for name in names:
            _file(request, name)
    except _UnreachableError:
        # The weights are in the cache. Continue without a network if the tokenizer is known: the repository is pinned,
        # the cache has a tokenizer file, or vocab_size is not GPT-2's (then no tokenizer is assumed). Otherwise GPT-2's
        # tokenizer would be assumed although the repository may have another one.
        known = is_pinned or any((config.parent / name).is_file() for name in names)
        if not known and hf.read_config(config).vocab_size == GPT2Tokenizer.vocab_size:
            raise


def _weights(request: _Request) -> Path:
    unreachable: _UnreachableError | None = None
    for name in hf.WEIGHTS:
        try:
            path = _file(request, name)
        except _UnreachableError as error:
            unreachable = unreachable or error
        else:
            if path is not None:
                return path
    if unreachable is not None:
        raise unreachable
    raise GptcliError(
        f"{request.repo} has no weights at {request.revision}: none of {', '.join(hf.WEIGHTS)}.",
        "Choose a repository with PyTorch or safetensors weights.",
    )


def _file(request: _Request, name: str) -> Path | None:
    """The verified cache path of one file of the repository; None if the repository has no such file."""
    known = try_to_load_from_cache(request.repo, name, revision=request.revision) if _is_commit(request) else None
    with _told_in_two_lines(request, name):
        if isinstance(known, str):
            path = Path(known)
        elif known is not None:  # the cache has recorded that the repository has no such file
            return None
        else:
            try:
                path = _download(request, name)
            except EntryNotFoundError as error:
                if isinstance(error, FileNotFoundError):  # not in the cache, and the hub could not be reached
                    raise
                return None
        _verify(request, name, path)
    return path


def _is_commit(request: _Request) -> bool:
    return _COMMIT.fullmatch(request.revision) is not None


def _download(request: _Request, name: str) -> Path:
    url = hf_hub_url(request.repo, name, revision=request.revision)
    try:
        metadata = get_hf_file_metadata(url)
    except HfHubHTTPError:
        raise
    except Exception:
        # No network, or HF_HUB_OFFLINE: the path in the cache, or LocalEntryNotFoundError.
        return Path(hf_hub_download(request.repo, name, revision=request.revision, local_files_only=True))
    if metadata.etag is not None and metadata.size is not None and _DIGEST.fullmatch(metadata.etag):
        repo_folder = Path(constants.HF_HUB_CACHE) / f"models--{request.repo.replace('/', '--')}"
        blob = repo_folder / "blobs" / metadata.etag
        if not blob.exists():
            _resume(request, name, url, blob, metadata.size)
    # The blob is in the cache: this call links it into the snapshot.
    return Path(hf_hub_download(request.repo, name, revision=request.revision))


def _resume(request: _Request, name: str, url: str, blob: Path, size: int) -> None:
    """Download into a partial file beside the blob, resuming one that an earlier process left, then rename it."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{blob.name}.gptcli.incomplete")
    with WeakFileLock(f"{partial}.lock"), partial.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
        here, free = file.tell(), shutil.disk_usage(blob.parent).free
        if free < size - here:
            raise _disk_full(blob.parent, size - here, free)
        request.on_download(name, size - here)
        http_get(
            url,
            file,
            resume_size=here,
            headers={**build_hf_headers(), "Accept-Encoding": "identity"},  # not compressed: resume_size is an offset
            expected_size=size,
            displayed_filename=name,
            tqdm_class=request.bar,
        )
    partial.replace(blob)
    Path(f"{partial}.lock").unlink(missing_ok=True)


def _verify(request: _Request, name: str, path: Path) -> None:
    """Compare the file's digest with its blob's name and with SHA256; remove a file that differs from the cache."""
    blob = path.resolve()
    claimed = blob.name if _DIGEST.fullmatch(blob.name) else None
    known = SHA256.get((request.revision, name))
    digests = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)}
    expected = [digest for digest in (claimed, known) if digest is not None]
    with blob.open("rb") as file:
        while chunk := file.read(2**22):
            for length in {len(digest) for digest in expected}:
                digests[length].update(chunk)
    for digest in expected:
        found = digests[len(digest)].hexdigest()
        if found != digest:
            path.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            raise GptcliError(
                f"{name} of {request.repo} has the checksum {found[:16]}…, but {digest[:16]}… is right; removed.",
                "Run the command again to download the file again; if that fails too, do not trust the address.",
            )


@contextmanager
def _told_in_two_lines(request: _Request, name: str) -> Iterator[None]:
    """Convert exceptions of huggingface_hub, the network and the disk to GptcliError."""
    where = f"{request.repo} at {request.revision}"
    try:
        yield
    except GptcliError:
        raise
    except GatedRepoError as error:
        raise GptcliError(
            f"{request.repo} is gated: {constants.ENDPOINT} gives it only to accounts that accepted its terms.",
            "Accept them on its page, and give a token in HF_TOKEN.",
        ) from error
    except RepositoryNotFoundError as error:
        raise GptcliError(
            f"{constants.ENDPOINT} has no model {request.repo}, or keeps it private ({_status(error)}).",
            "Check the name; for a private model, give a token in HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise GptcliError(
            f"{request.repo} has no revision {request.revision!r} ({_status(error)}).", "Leave the revision out."
        ) from error
    except HfHubHTTPError as error:
        raise GptcliError(
            f"{constants.ENDPOINT} answers {_status(error)} to {name} of {where}.",
            "Try again later; if it asks who you are, give a token in HF_TOKEN.",
        ) from error
    except HFValidationError as error:
        raise GptcliError(
            f"{request.repo!r:.100} is not the name of a repository.", "Write it as OWNER/NAME: distilbert/distilgpt2."
        ) from error
    except EntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise _UnreachableError(
            f"{reason}, and the cache {constants.HF_HUB_CACHE} has no {name} of {where}.",
            "Connect to the network, or load files that you have: gptcli load-gpt2 --from DIRECTORY",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(Path(constants.HF_HUB_CACHE), None, None) from error
        raise _broken_off(request, name, error) from error
    except Exception as error:  # the HTTP client's, whose types depend on huggingface_hub's version
        raise _broken_off(request, name, error) from error


def _broken_off(request: _Request, name: str, error: Exception) -> GptcliError:
    reason = " ".join(str(error).split())[:150].rstrip(".")
    return GptcliError(
        f"The download of {name} of {request.repo} stopped: {type(error).__name__}: {reason}.",
        "Run the command again: the download continues where it stopped.",
    )


def _status(error: HfHubHTTPError) -> str:
    return f"HTTP {error.response.status_code}"


def _disk_full(folder: Path, needed: int | None, free: int | None) -> GptcliError:
    sizes = f": {needed:,} bytes are needed and {free:,} are free" if needed is not None and free is not None else ""
    return GptcliError(
        f"The disk of {folder} is full{sizes}.",
        "Free some space, or put the cache on another disk with HF_HOME; the download then continues.",
    )
