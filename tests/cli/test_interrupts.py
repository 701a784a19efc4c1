"""Ctrl-C, as a terminal sends it to every process of a command: exit code 130, no traceback, nothing lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from models import tiny_checkpoint
from runs import TEXT, TINY

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
WAIT = 240  # seconds, for a machine that does much else


def interrupted(folder: Path, words: str, begun: str, before: str = "") -> tuple[int, str]:
    """Exit code and output of a command that gets SIGINT once it has printed ``begun``; ``before`` runs first."""
    program = f"import sys\n{before}\nfrom gptcli.__main__ import run\nsys.exit(run())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words.split()], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = b""
    while begun.encode() not in said:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, said
        said += piece
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=WAIT)
    return process.returncode, (said + rest).decode("utf-8", "replace")


SHAPE = " ".join(map(str, TINY))
SAYS_SO = """
from {module} import {owner}
slow = {owner}.{name}
def told(*arguments, **named):
    print("begun", flush=True)
    return slow(*arguments, **named)
{owner}.{name} = told
"""
SCORING = SAYS_SO.format(module="gptcli.evaluation", owner="perplexity", name="score")
ENCODING = SAYS_SO.format(module="gptcli.data.prepare", owner="Preparation", name="run")
COMMANDS = {
    "train": (f"train text.txt {SHAPE} --max-steps 1000000 --sample-every 0 --out run", "Step 000000", ""),
    "prepare": ("prepare large.txt --tokenizer gpt2 --out tokens --workers 2", "begun", ENCODING),
    "evaluate": ("evaluate story.txt -c tiny --stride 1", "begun", SCORING),
    "generate": ("generate the -c tiny -n 1000000 --ignore-eot --engine torch", "the", ""),
    "bench": ("bench --size small --work train --repetitions 50", "On ", ""),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_a_command(tmp_path: Path, command: str) -> None:
    tiny_checkpoint(tmp_path / "checkpoints" / "tiny", context_length=32)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "story.txt").write_text(TEXT * 500, encoding="utf-8")
    with (tmp_path / "large.txt").open("w", encoding="utf-8") as file:
        for number in range(250_000):
            file.write(
                f"{number * 7919} cats {number % 97} sat on {number * 31} mats, all of them unlike one another.\n"
            )
    code, said = interrupted(tmp_path, *COMMANDS[command])
    assert code == 130, said
    assert "Traceback" not in said
    if command == "train":
        assert "gptcli train --resume run" in said
        assert (tmp_path / "run" / "model.safetensors").exists()
    if command == "prepare":
        assert "The same command continues" in said


def test_ctrl_c_while_the_program_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli import __main__ as program
    from gptcli import cli

    def stop() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", stop)
    assert program.run() == 130
