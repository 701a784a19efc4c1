"""Damaged and hostile files of every format that is read: each gives a model or a GptcliError, and no other exception.

A share of the mutations runs in the suite, all 20,000 under the slow marker. Every mutation has its own seed, which a
failure names. Memory is limited, so that a file that claims terabytes must be refused before anything is allocated.
"""

import contextlib
import copy
import json
import random
import resource
import shutil
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from foreign import write_course, write_hf, write_llm_c, write_nanogpt, write_openai
from models import tiny_checkpoint
from vocabularies import directory, trained

from gptcli.checkpoints import checkpoint, formats
from gptcli.checkpoints.layout import WEIGHTS, packed_bits, read_config
from gptcli.checkpoints.numpy_weights import WeightFile
from gptcli.errors import GptcliError
from gptcli.training import snapshots

FIXTURES = Path(__file__).parents[1] / "fixtures"
IN_THE_SUITE, ALL = 400, 20_000
MEMORY = 2 * 2**30  # bytes of address space that reading one small file may add


def read_foreign(path: Path) -> None:
    source = formats.read(path)
    source.tokenizer.decode(source.tokenizer.encode("the cat")) if source.tokenizer.kind != "none" else None


def read_ours(path: Path) -> None:
    checkpoint.load(path).model()


def read_for_the_cpu(path: Path) -> None:
    config, ours = read_config(path)
    weights = WeightFile(path / WEIGHTS, config, packed_bits(path, ours))
    for name in weights:
        weights[name]


def read_snapshot(path: Path) -> None:
    snapshot, _ = snapshots.newest(path)
    snapshot.weights()
    snapshot.state()


@dataclass(frozen=True)
class Kind:
    """A kind of directory: how it is made, the files of it that are mutated, what is read, and how."""

    make: Callable[[Path], Any]
    files: tuple[str, ...]
    reads: tuple[Callable[[Path], None], ...]
    inside: str = ""


def from_fixture(name: str) -> Callable[[Path], Any]:
    return lambda path: shutil.copytree(FIXTURES / name, path)


def with_tokenizer_json(path: Path) -> None:
    directory(path, trained(300), tokenizer_class="GPT2Tokenizer")


OURS = ("config.json", WEIGHTS, "tokenizer_gptcli.json")
KINDS = {
    "safetensors": Kind(write_hf, (WEIGHTS, "config.json"), (read_foreign,)),
    "shards": Kind(
        lambda path: write_hf(path, form="safetensors-sharded"), ("model.safetensors.index.json",), (read_foreign,)
    ),
    "bin": Kind(lambda path: write_hf(path, form="bin"), ("pytorch_model.bin",), (read_foreign,)),
    "tensorflow": Kind(
        lambda path: write_openai(path, shards=2),
        ("model.ckpt.index", "model.ckpt.data-00000-of-00002", "hparams.json"),
        (read_foreign,),
    ),
    "nanogpt": Kind(lambda path: write_nanogpt(path / "ckpt.pt"), ("ckpt.pt",), (read_foreign,), "ckpt.pt"),
    "course": Kind(lambda path: write_course(path / "model.pth"), ("model.pth",), (read_foreign,), "model.pth"),
    "llm.c": Kind(lambda path: write_llm_c(path / "model.bin"), ("model.bin",), (read_foreign,), "model.bin"),
    "tokenizer": Kind(with_tokenizer_json, ("tokenizer.json", "tokenizer_config.json"), (read_foreign,)),
    "ours": Kind(tiny_checkpoint, OURS, (read_ours, read_for_the_cpu)),
    "word": Kind(from_fixture("word"), OURS, (read_ours,)),
    "int8": Kind(from_fixture("int8"), OURS, (read_ours, read_for_the_cpu)),
    "int4": Kind(from_fixture("int4"), OURS, (read_ours, read_for_the_cpu)),
    "snapshot": Kind(
        from_fixture("finished"),
        tuple(f"training/step-00000300/{name}" for name in ("state.json", "optimizer.safetensors", WEIGHTS)),
        (read_snapshot,),
    ),
}
ODD: list[Any] = [None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, 10**400, "", "x", [], {}, [[]], "../x", "\ud800", 1e308]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """``content`` with one to three changes; the header and the end of a file, where its structure is, more often."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        size = len(changed)
        place = min(int(size * chance.random() ** chance.choice([1, 4, 12])), max(0, size - 1))
        place = size - 1 - place if chance.random() < 0.2 else place
        length = chance.choice([1, 1, 2, 4, 8, 100])
        match chance.choice(["set", "set", "bit", "insert", "delete", "swap", "cut", "digits", "big"]):
            case "set":
                changed[place : place + length] = chance.randbytes(length)
            case "bit" if changed:
                changed[place] ^= 1 << chance.randrange(8)
            case "insert":
                changed[place:place] = chance.randbytes(length)
            case "delete":
                del changed[place : place + length]
            case "swap":
                other = chance.randrange(max(1, size - length))
                one, two = changed[place : place + length], changed[other : other + length]
                changed[other : other + len(one)], changed[place : place + len(two)] = one, two
            case "cut":
                del changed[place:]
            case "digits":
                digits = [at for at in range(min(size, 4000)) if chr(changed[at]) in string.digits]
                if digits:
                    at = chance.choice(digits)
                    changed[at : at + 1] = str(chance.choice([0, -1, 9, 10**9, 2**63, 10**19])).encode()
            case "big":
                changed[place : place + 8] = chance.choice([b"\xff" * 8, b"\0\0\0\0\0\0\0\x7f", b"\0" * 8])
    return bytes(changed)


def mutated_json(content: bytes, chance: random.Random) -> bytes:
    """JSON in which values are replaced by odd ones, removed, or put under another name."""
    value = json.loads(content)
    for _ in range(chance.randint(1, 2)):
        node = value
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
                node = node[key]
                continue
            if chance.random() < 0.2:
                del node[key]
            elif isinstance(node, dict) and chance.random() < 0.1:
                node[chance.choice(["x", "", "\u2028"])] = node.pop(key)
            else:
                node[key] = copy.deepcopy(chance.choice(ODD))
            break
    return json.dumps(value).encode()


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """At most `MEMORY` more of address space than now, so that a claim of terabytes is an error, not a wait."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def try_all(name: str, tmp_path: Path, seeds: range) -> dict[str, int]:
    kind = KINDS[name]
    good = tmp_path / "good"
    good.mkdir(exist_ok=True)
    shutil.rmtree(good)
    if kind.inside:
        good.mkdir()
    kind.make(good)
    for read in kind.reads:
        read(good / kind.inside)
    counts = {"opened": 0, "refused": 0}
    for seed in seeds:
        chance = random.Random(seed)
        file = good / chance.choice(kind.files)
        content = file.read_bytes()
        as_json = file.suffix == ".json" and chance.random() < 0.6
        # A new inode: a mapping of the old file must not see the change, nor a hard link.
        file.unlink()
        file.write_bytes(mutated_json(content, chance) if as_json else mutated(content, chance))
        for read in kind.reads:
            try:
                with little_memory():
                    read(good / kind.inside)
                counts["opened"] += 1
            except GptcliError as error:
                counts["refused"] += 1
                if "\n" in error.message + error.hint or len(error.message) > 2500 + 2 * len(str(good)):
                    pytest.fail(f"{name}, seed {seed}, {file.name}: {error!s:.3000}")
            except Exception as error:
                kept = shutil.copytree(good, tmp_path / f"failed-{seed}", dirs_exist_ok=True)
                pytest.fail(f"{name}, seed {seed}, {file.name} in {kept}: {type(error).__name__}: {error!s:.300}")
        file.unlink()
        file.write_bytes(content)
    return counts


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited as Linux does")


@pytest.mark.parametrize("name", KINDS)
def test_a_share_of_the_mutated_files(name: str, tmp_path: Path) -> None:
    counts = try_all(name, tmp_path, range(IN_THE_SUITE // len(KINDS)))
    assert counts["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_20_000_mutated_files(name: str, tmp_path: Path) -> None:
    counts = try_all(name, tmp_path, range(ALL // len(KINDS) + 1))
    print(name, counts)  # noqa: T201
    assert min(counts.values())
