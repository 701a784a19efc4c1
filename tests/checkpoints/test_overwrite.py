"""What was there is there: no command writes over what is not recognisably its own, whatever --force says."""

import json
import lzma
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign import write_hf
from runs import TEXT, TINY

from gptcli.checkpoints import overwrite, run_lock
from gptcli.data import token_shards
from gptcli.errors import GptcliError
from gptcli.tokenizers.gpt2 import GPT2Tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAST = ("--dtype", "float32", "--device", "cpu", "--threads", 1, "--sample-every", 0, "--max-steps", 1)
COMMANDS: dict[str, tuple[Any, ...]] = {
    "train": ("train", "IN/story.txt", *TINY, *FAST, "--out", "OUT"),
    "export": ("export", "IN/model", "OUT", "--dtype", "float32"),
    "quantize": ("quantize", "IN/model", "--out", "OUT"),
    "load-gpt2": ("load-gpt2", "--from", "IN/hf", "--out", "OUT"),
    "prepare": ("prepare", "IN/story.txt", "--tokenizer", "byte", "--out", "OUT"),
}


@pytest.fixture
def run_in(gptcli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command of COMMANDS in the folder parent/here: nothing outside of parent/ can be reached from there."""
    sources = tmp_path / "in"
    sources.mkdir()
    (sources / "story.txt").write_text(TEXT, encoding="utf-8")
    shutil.copytree(FIXTURES / "finished", sources / "model")
    write_hf(sources / "hf")
    (tmp_path / "parent" / "here").mkdir(parents=True)
    (tmp_path / "parent" / "beside.txt").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "parent" / "here")

    def run(command: str, out: object, *more: str) -> Any:
        words = (str(word).replace("IN/", f"{sources}{os.sep}") for word in COMMANDS[command])
        return gptcli(*(out if word == "OUT" else word for word in words), *more)

    return run


def everything(folder: Path) -> dict[str, object]:
    """All that lies below ``folder``: links by where they lead, files by their bytes."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        is_file = path.is_file() and not path.is_symlink()
        content: object = path.readlink() if path.is_symlink() else path.read_bytes() if is_file else None
        found[path.relative_to(folder).as_posix()] = content
    return found


def made(command: str, at: str = "run") -> Path:
    """A directory of the kind that ``command`` makes."""
    return Path(shutil.copytree(FIXTURES / ("story.tokens" if command == "prepare" else "finished"), at))


def write(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("mine", encoding="utf-8")


def damaged(command: str, what: str) -> str:
    run = made(command)
    file = run / ("corpus.json" if command == "prepare" else "config.json")
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif what == "gone":
        file.unlink()
    elif what == "newer":
        said = json.loads(file.read_text(encoding="utf-8"))
        if command == "prepare":
            said["format"] = "gptcli token shards, version 2"
        else:
            said["gptcli"]["format"] = 2
        file.write_text(json.dumps(said), encoding="utf-8")
    return "run"


def with_(command: str, *names: str) -> str:
    made(command)
    for name in names:
        write(f"run/{name}")
    return "run"


def linked(command: str, target: str) -> str:
    made(command, "real")
    write("folder/a.txt")
    Path("empty").mkdir()
    Path("link").symlink_to(target, target_is_directory=True)
    return "link"


def folder(*names: str) -> str:
    for name in names:
        write(name)
    return names[0].split("/")[0]


def of_the_other_kind(command: str) -> str:
    return str(made("train" if command == "prepare" else "prepare"))


def several(command: str) -> str:
    made(command, "runs/one")
    made(command, "runs/two")
    return "runs"


PLACES: dict[str, Callable[[str], str]] = {
    "folder": lambda command: folder("thesis/a.txt"),
    "nested folder": lambda command: folder("thesis/deep/down/a.txt"),
    "folder of folders": lambda command: folder("thesis/one/a.txt", "thesis/two/b.txt"),
    "file": lambda command: folder("thesis"),
    "folder of checkpoints": several,
    "a checkpoint and another in it": lambda command: made(command) and made(command, "run/one") and "run",
    ".": lambda command: folder("a.txt") and ".",
    "empty .": lambda command: ".",
    "..": lambda command: "..",
    "the folder above by name": lambda command: str(Path.cwd().parent),
    "a run's own folder": lambda command: str(made(command, "run")) + "/..",
    "run with notes.md": lambda command: with_(command, "notes.md"),
    "run with a hidden folder": lambda command: with_(command, ".git/config"),
    "run with notes among the snapshots": lambda command: with_(command, "training/notes.md"),
    "run with notes in a snapshot": lambda command: with_(command, "training/step-00000300/notes.md"),
    "run with files that resemble ours": lambda command: with_(command, "config.json.bak", "shard-1.tokens"),
    "link to a run": lambda command: linked(command, "real"),
    "link to a folder": lambda command: linked(command, "folder"),
    "link to an empty folder": lambda command: linked(command, "empty"),
    "link to nowhere": lambda command: linked(command, "nowhere"),
    "run with its config cut": lambda command: damaged(command, "cut"),
    "run without its config": lambda command: damaged(command, "gone"),
    "run of a newer version": lambda command: damaged(command, "newer"),
    "the other kind": of_the_other_kind,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_there_stays_there(run_in: Any, tmp_path: Path, command: str, place: str) -> None:
    if "link" in place and sys.platform == "win32":
        pytest.skip("links take a right that not everyone has")
    out = PLACES[place](command)
    before = everything(tmp_path)
    for more in ((), ("--force",)):
        result = run_in(command, out, *more)
        result.assert_user_error()
        assert "--force" not in result.err
        assert everything(tmp_path) == before


def test_weights_that_were_cut_are_kept(run_in: Any, tmp_path: Path) -> None:
    file = made("train") / "model.safetensors"
    os.truncate(file, 999)
    before = everything(tmp_path)
    for command in ("train", "export", "quantize", "load-gpt2"):
        run_in(command, "run", "--force").assert_user_error("run exists already", "remove this one yourself")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("command", ["train", "export", "quantize", "load-gpt2"])
def test_an_input_is_never_replaced(run_in: Any, gptcli: Any, tmp_path: Path, command: str) -> None:
    sources = tmp_path / "in"
    (sources / "model" / "notes.txt").write_text("a text beside the weights", encoding="utf-8")
    before = everything(tmp_path)
    out = {"train": sources, "load-gpt2": sources / "hf"}.get(command, sources / "model")
    run_in(command, out, "--force").assert_user_error("this command reads")
    inside = ("train", sources / "model" / "notes.txt", *TINY, *FAST, "--out", sources / "model", "--force")
    gptcli(*inside).assert_user_error("notes.txt, what this command reads")
    origin = ("train", sources / "story.txt", "--init-from", sources / "model", "--out", sources / "model", "--force")
    gptcli(*origin).assert_user_error("is what this command reads")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_its_own_is_replaced_by_force_alone_and_nothing_else_is_left(run_in: Any, tmp_path: Path, command: str) -> None:
    run = made(command)
    before = everything(tmp_path)
    for path in run.rglob("*"):
        os.utime(path, (1e9, 1e9))
    run_in(command, run).assert_user_error("--force")
    assert everything(tmp_path) == before
    result = run_in(command, run, "--force")
    assert result.code == 0, result.err
    assert [path.name for path in Path().iterdir()] == ["run"]
    written = run / ("shard-00000.tokens" if command == "prepare" else "model.safetensors")
    assert written.stat().st_mtime > 1e9
    assert not (run / "training" / "step-00000300").exists()
    assert not (run / "shard-00002.tokens").exists()
    assert run_in(command, "new", "--force").code == 0
    Path("empty").mkdir()
    assert run_in(command, "empty").code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_another_process_holds_is_not_replaced(run_in: Any, tmp_path: Path, command: str) -> None:
    run = made(command)
    with run_lock.held(run):
        before = everything(tmp_path)
        run_in(command, run, "--force").assert_user_error("run is in use", f"process {os.getpid()}")
        assert everything(tmp_path) == before
        (run / "unknown").touch()  # such as a file that the process is just writing
        run_in(command, run, "--force").assert_user_error("run is in use", f"process {os.getpid()}")


def test_a_file_that_a_killed_process_left_in_a_snapshot_is_known_as_ours(run_in: Any) -> None:
    run = made("train")
    half = run / "training" / ".step-00000060.28981.partial"
    half.mkdir()
    (half / ".tmppoZV5R").touch()  # safetensors' own temporary file
    assert overwrite.foreign(run, overwrite.CHECKPOINT.ours) == []
    (half / ".tmpmine").touch()
    run_in("train", run, "--force").assert_user_error("holds what gptcli did not write", ".tmpmine")
    (half / ".tmpmine").unlink()
    assert run_in("train", run, "--force").code == 0


def test_all_that_we_write_is_known_as_ours(gptcli: Any, story: Path, tmp_path: Path) -> None:
    often = ("--eval-every", 1, "--save-every", 1, "--keep", 2, "--log", "tensorboard")
    pytest.importorskip("tensorboard")
    assert gptcli("train", story, *TINY, *FAST, *often, "--max-steps", 3, "--out", "run").code == 0
    assert gptcli("quantize", "run").code == 0
    assert gptcli("train", story, "--emb-dim", 2, "--n-heads", 1, "--n-layers", 1, *FAST, "--out", "gpt2").code == 0
    assert gptcli("export", "gpt2", "half").code == 0
    write_hf(tmp_path / "hf")
    assert gptcli("load-gpt2", "--from", "hf", "--out", "loaded").code == 0
    for name in ("run", "run-int8", "gpt2", "half", "loaded"):
        assert overwrite.foreign(Path(name), overwrite.CHECKPOINT.ours) == [], name
    for kind in ("gpt2", "char", "word", "byte"):
        assert gptcli("prepare", story, "--tokenizer", kind, "--out", f"{kind}.tokens").code == 0
        assert overwrite.foreign(Path(f"{kind}.tokens"), token_shards.FOLDER.ours) == [], kind


@pytest.mark.parametrize("name", ["finished", "word", "byte", "stopped-adamw", "killed-muon", "int8", "int4"])
def test_all_that_earlier_versions_wrote_is_known_as_ours(name: str) -> None:
    assert overwrite.foreign(FIXTURES / name, overwrite.CHECKPOINT.ours) == []
    assert overwrite.foreign(FIXTURES / "story.tokens", token_shards.FOLDER.ours) == []


def test_what_is_foreign_is_listed(tmp_path: Path) -> None:
    run = Path(shutil.copytree(FIXTURES / "finished", tmp_path / "run"))
    for number in range(7):
        (run / f"note-{number}.md").touch()
    (run / "int8").mkdir()
    with pytest.raises(GptcliError, match=r"did not write: int8/, note-0\.md, .*, note-3\.md and 3 more\."):
        overwrite.check_replaceable(run, overwrite.CHECKPOINT)


def test_an_old_run_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(FIXTURES / "finished", tmp_path / "run"))
    partial = Path(shutil.copytree(FIXTURES / "int8", tmp_path / ".run.1.partial"))
    rename, before = Path.rename, (run / "model.safetensors").read_bytes()

    def refuse(self: Path, target: Path) -> Path:
        if self == partial:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        overwrite.put_in_place(partial, run, force=True)
    assert (run / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.1.partial", "run"]


def test_what_killed_processes_left_goes_and_what_live_ones_write_stays(tmp_path: Path) -> None:
    from models import tiny_checkpoint

    (tmp_path / ".run.4194999.partial").mkdir()  # above Linux's largest process id
    (tmp_path / f".run.{os.getppid()}.partial").mkdir()
    (tmp_path / ".run.notes.partial").mkdir()
    (tmp_path / ".run.99999999999999999999.partial").mkdir()
    tiny_checkpoint(tmp_path / "run")
    left = sorted(path.name for path in tmp_path.iterdir())
    strange = [".run.99999999999999999999.partial", ".run.notes.partial"]
    assert left == sorted([f".run.{os.getppid()}.partial", *strange, "run"])


@pytest.mark.parametrize("command", ["plot", "export"])
def test_only_a_file_of_that_kind_is_replaced(gptcli: Any, tmp_path: Path, command: str) -> None:
    if command == "plot":
        shutil.copytree(FIXTURES / "finished", "run")
        arguments, file, earlier = ("plot", "run", "--out", "out/a.png"), Path("out/a.png"), Path("run/loss.png")
        before = earlier.read_bytes()
    else:
        pytest.importorskip("gguf")
        shutil.copytree(FIXTURES / "gpt2", "run")
        GPT2Tokenizer().save(Path("run"))
        arguments, file = ("export", "run", "out", "--format", "gguf"), Path("out/run-f16.gguf")
        before = lzma.decompress((FIXTURES / "gpt2-f16.gguf.xz").read_bytes())
    file.parent.mkdir()
    file.write_text("mine", encoding="utf-8")
    for more in ((), ("--force",)):
        result = gptcli(*arguments, *more)
        result.assert_user_error(f"{file.name} exists already, and is not a")
        assert "--force" not in result.err
    assert file.read_text(encoding="utf-8") == "mine"
    file.write_bytes(before)
    gptcli(*arguments).assert_user_error("exists already", "--force")
    assert file.read_bytes() == before
    assert gptcli(*arguments, "--force").code == 0
    assert file.read_bytes() != before


def test_a_snapshot_with_something_of_the_users_in_it_stays(gptcli: Any, story: Path) -> None:
    assert (
        gptcli("train", story, *TINY, *FAST, "--save-every", 1, "--max-steps", 2, "--keep", 1, "--out", "run").code == 0
    )
    Path("run/notes.md").write_text("mine", encoding="utf-8")
    Path("run/training/step-00000002/notes.md").write_text("mine", encoding="utf-8")
    Path("run/training/.hidden").mkdir()
    assert gptcli("train", "--resume", "run", "--max-steps", 5, "--keep", 1).code == 0
    kept = sorted(path.name for path in Path("run/training").iterdir())
    assert {".hidden", "step-00000002", "step-00000005"} <= set(kept)
    assert not Path("run/training/step-00000005/notes.md").exists()
    assert Path("run/training/step-00000002/notes.md").exists()
