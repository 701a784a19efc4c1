"""gptcli load-gpt2 from a hub on 127.0.0.1: cached, pinned, resumed, checked; and everything that goes wrong."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import CONFIG, random_tensors, write_hf
from hub_server import COMMIT, Hub, serve, serve_as_the_hub

from gptcli import convert, tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.checkpoints.formats import hub as hub_module
from gptcli.errors import GptcliError

REPO = "someone/tiny-gpt2"
CHUNK = 2**16


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)  # written so often: our files are small
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub(write_hf(tmp_path / "served"), REPO)) as running:
        serve_as_the_hub(running, cache, monkeypatch)
        yield running


def downloaded(hub: Hub) -> list[tuple[str, int]]:
    return [(name, start) for method, name, start in hub.log if method == "GET"]


def test_a_repository_comes_in_whole(gptcli: Any, hub: Hub) -> None:
    result = gptcli("load-gpt2", "--repo", REPO)
    assert result.code == 0, result.err
    assert f"Downloading {REPO}/model.safetensors" in result.err
    loaded = checkpoint.load(Path("checkpoints/tiny-gpt2"))
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in random_tensors().items())


def test_a_token_goes_to_the_hub_and_not_to_its_storage(gptcli: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert gptcli("load-gpt2", "--repo", REPO).code == 0
    assert hub.tokens == {"Bearer hf_secret"}


def test_what_is_in_the_cache_is_used(gptcli: Any, hub: Hub) -> None:
    assert gptcli("load-gpt2", "--repo", REPO, "--revision", COMMIT).code == 0
    hub.log.clear()
    result = gptcli("load-gpt2", "--repo", REPO, "--revision", COMMIT, "--force")
    assert result.code == 0
    assert downloaded(hub) == []
    assert "Downloading" not in result.err


@pytest.mark.parametrize("revision", [[], ["--revision", COMMIT]])
def test_offline_the_cache_is_enough(
    gptcli: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch, revision: list[str]
) -> None:
    assert gptcli("load-gpt2", "--repo", REPO, *revision).code == 0
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert gptcli("load-gpt2", "--repo", REPO, *revision, "--force").code == 0
    assert hub.log == []


def test_a_tokenizer_json_is_fetched_and_never_replaced(gptcli: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from tokenizers import ByteLevelBPETokenizer, Tokenizer, models

    write_hf(hub.folder, config=CONFIG.with_changes(vocab_size=50_257, emb_dim=8))
    own = ByteLevelBPETokenizer()
    own.train_from_iterator(["Grüße aus München"], vocab_size=270, show_progress=False)
    (hub.folder / "tokenizer.json").write_text(own.to_str(), encoding="utf-8")
    for name in ("vocab.json", "merges.txt"):
        (hub.folder / name).unlink(missing_ok=True)
    hub.etags.clear()
    result = gptcli("load-gpt2", "--repo", REPO)
    assert result.code == 0, result.err
    tokenizer = checkpoint.load(Path("checkpoints/tiny-gpt2")).tokenizer
    assert tokenizer.encode("Grüße") == own.encode("Grüße").ids
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    (hub.folder / "tokenizer.json").write_text(unigram.to_str(), encoding="utf-8")
    hub.etags.clear()
    hub.commit = "1" * 40
    gptcli("load-gpt2", "--repo", REPO, "--force", "-q").assert_user_error("tokenizer.json", "Unigram")
    assert checkpoint.load(Path("checkpoints/tiny-gpt2")).tokenizer.fingerprint == tokenizer.fingerprint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for file in Path(constants.HF_HUB_CACHE).rglob("tokenizer.json"):
        file.unlink()
    gptcli("load-gpt2", "--repo", REPO, "--force").assert_user_error("HF_HUB_OFFLINE is set", "tokenizer.json")


def test_offline_without_a_cache(gptcli: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    gptcli("load-gpt2").assert_user_error("HF_HUB_OFFLINE is set", "config.json", "--from DIRECTORY")
    assert not Path("checkpoints").exists()


def test_nobody_answers(gptcli: Any, hub: Hub) -> None:
    url = hub.url
    hub.shutdown()
    hub.server_close()
    gptcli("load-gpt2", "--repo", REPO).assert_user_error(url, "cannot be reached")
    hub.serve_forever = lambda *_: None  # type: ignore[method-assign]


def test_no_such_repository(gptcli: Any, hub: Hub) -> None:
    gptcli("load-gpt2", "--repo", "someone/else").assert_user_error("has no model someone/else", "HTTP 404")


def test_no_such_revision(gptcli: Any, hub: Hub) -> None:
    gptcli("load-gpt2", "--repo", REPO, "--revision", "v9").assert_user_error("no revision 'v9'")


def test_not_the_name_of_a_repository(gptcli: Any, hub: Hub) -> None:
    gptcli("load-gpt2", "--repo", "no//name").assert_user_error("'no//name'", "OWNER/NAME")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "", "answers HTTP 401"),
        (401, "GatedRepo", "is gated"),
        (403, "", "HTTP 403"),
        (500, "", "config.json"),
    ],
)
def test_refusals(gptcli: Any, hub: Hub, status: int, code: str, words: str) -> None:
    hub.status, hub.error_code = status, code
    gptcli("load-gpt2", "--repo", REPO).assert_user_error(words)
    assert not Path("checkpoints").exists()


def test_a_repository_without_config_or_weights(gptcli: Any, hub: Hub) -> None:
    (hub.folder / "model.safetensors").unlink()
    gptcli("load-gpt2", "--repo", REPO, "--quiet").assert_user_error("no weights", "pytorch_model.bin")
    (hub.folder / "config.json").unlink()
    shutil.rmtree("cache")
    gptcli("load-gpt2", "--repo", REPO, "--quiet").assert_user_error("no config.json")
    assert not Path("checkpoints").exists()


def test_shards(gptcli: Any, hub: Hub) -> None:
    shutil.rmtree(hub.folder)
    write_hf(hub.folder, form="bin-sharded", prefix="transformer.")
    assert gptcli("load-gpt2", "--repo", REPO).code == 0
    shutil.rmtree("cache")
    (hub.folder / "pytorch_model-00002-of-00002.bin").unlink()
    result = gptcli("load-gpt2", "--repo", REPO, "--force", "--quiet")
    result.assert_user_error("has no pytorch_model-00002-of-00002.bin", "incomplete")


def test_a_wrong_checksum_is_removed_and_fetched_anew(gptcli: Any, hub: Hub, cache: Path) -> None:
    hub.wrong = {"model.safetensors"}
    result = gptcli("load-gpt2", "--repo", REPO, "--quiet")
    result.assert_user_error("checksum", hub.etag("model.safetensors")[:16], "Run the command again")
    assert not list(cache.rglob("*.safetensors"))
    assert not Path("checkpoints").exists()
    hub.wrong = set()
    assert gptcli("load-gpt2", "--repo", REPO).code == 0


def test_a_wrong_small_file_too(gptcli: Any, hub: Hub) -> None:
    hub.wrong = {"config.json"}
    gptcli("load-gpt2", "--repo", REPO, "--quiet").assert_user_error("config.json", "checksum")


def test_the_pinned_digest_counts_whatever_the_hub_says(
    gptcli: Any, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo, hub.commit = hub_module.PINNED["small"]
    gptcli("load-gpt2", "--quiet").assert_user_error("248dfc3911869ec4", "is right")
    monkeypatch.setitem(hub_module.SHA256, (hub.commit, "model.safetensors"), hub.etag("model.safetensors"))
    assert gptcli("load-gpt2", "--size", "small").code == 0
    assert (tmp_path / "checkpoints" / "gpt2-small").is_dir()


def test_a_connection_cut_halfway_is_resumed(gptcli: Any, hub: Hub) -> None:
    half = (hub.folder / "model.safetensors").stat().st_size // 2
    hub.cut = half
    assert gptcli("load-gpt2", "--repo", REPO).code == 0
    starts = [start for name, start in downloaded(hub) if name == "model.safetensors"]
    assert starts[0] == 0
    assert 0 < starts[1] <= half


def test_a_full_disk(gptcli: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 5, 5))  # type: ignore[attr-defined]
    gptcli("load-gpt2", "--repo", REPO).assert_user_error("is full", "5 are free", "HF_HOME")
    assert not Path("checkpoints").exists()


def test_a_disk_that_fills_up(gptcli: Any, hub: Hub, cache: Path) -> None:
    """A limit on the size of a file refuses the write itself, as a full disk does."""
    resource = pytest.importorskip("resource")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        result = gptcli("load-gpt2", "--repo", REPO, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    result.assert_user_error("is full", "HF_HOME")
    hub.log.clear()
    assert gptcli("load-gpt2", "--repo", REPO).code == 0
    assert next(start for name, start in downloaded(hub) if name == "model.safetensors") > 0  # it goes on


RUN = """
import json, sys
from gptcli.cli import main
from gptcli.checkpoints.formats import hub
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 2**16
hub.SHA256.update({tuple(key): value for key, value in json.loads(sys.argv[1])})
sys.exit(main(sys.argv[2:]))
"""


def run_killed_and_again(folder: Path, work: Path, pause: float, kill_at: float) -> tuple[Hub, int, str]:
    """``load-gpt2 --size small`` in its own process, killed -9 when that share of the weights is there; then again."""
    repo, commit = hub_module.PINNED["small"]
    with serve(Hub(folder, repo, commit)) as running:
        running.pause = pause
        digest = json.dumps([[[commit, "model.safetensors"], running.etag("model.safetensors")]])
        command = [sys.executable, "-c", RUN, digest, "load-gpt2", "--size", "small"]
        environment = {
            **os.environ,
            "HF_ENDPOINT": running.url,
            "HF_HOME": str(work / "home"),
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        size = (folder / "model.safetensors").stat().st_size
        process = subprocess.Popen(command, cwd=work, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            partial = list(work.rglob("*.gptcli.incomplete"))
            with contextlib.suppress(FileNotFoundError):  # it is renamed when it is whole
                if partial and partial[0].stat().st_size > size * kill_at:
                    break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (work / "checkpoints").exists()
        running.pause = 0.0
        running.log.clear()
        again = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        (resumed,) = [start for name, start in downloaded(running) if name == "model.safetensors"]
        return running, resumed, again.stdout + again.stderr if again.returncode else ""


def test_a_killed_download_goes_on(tmp_path: Path) -> None:
    config = CONFIG.with_changes(n_layers=7)
    folder = write_hf(tmp_path / "served", config=config)
    _, resumed, failure = run_killed_and_again(folder, tmp_path, pause=0.3, kill_at=0.1)
    assert not failure
    assert resumed > 0
    loaded = checkpoint.load(tmp_path / "checkpoints" / "gpt2-small")
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in random_tensors(config).items())


@pytest.mark.slow
def test_real_size_killed_and_resumed_and_spoken_with(tmp_path: Path, record_property: Any) -> None:
    from gptcli.config.model import PRESETS

    folder = write_hf(tmp_path / "served", config=PRESETS["small"])
    tokenizers.build("gpt2").save(folder)
    _, resumed, failure = run_killed_and_again(folder, tmp_path, pause=0.005, kill_at=0.5)
    assert not failure
    size = (folder / "model.safetensors").stat().st_size
    assert resumed > size / 2
    record_property("resumed at", f"{resumed} of {size} bytes")
    generate = [sys.executable, "-m", "gptcli", "generate", "Every effort moves you", "--max-new-tokens", "5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    result = subprocess.run(generate, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Every effort moves you")
    assert "gpt2-small" in result.stderr


def test_the_pinned_digests_are_whole() -> None:
    assert all(len(digest) == hashlib.sha256().digest_size * 2 for digest in hub_module.SHA256.values())
    assert all(len(revision) == 40 for _, revision in hub_module.PINNED.values())


def test_the_api_downloads_in_silence(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = convert(f"hf://{REPO}@{COMMIT}", tmp_path / "out")
    assert (done.origin, done.path) == ("Hugging Face", tmp_path / "out")
    assert checkpoint.load(done.path).config == done.config
    assert capfd.readouterr() == ("", "")
    with pytest.raises(GptcliError, match="has no model"):
        convert("hf://someone/else", tmp_path / "other")
