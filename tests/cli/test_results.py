"""Pictures, pages and figures replace what gptcli made, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from models import tiny_checkpoint

FOREIGN = {
    "png": b"\x89PNG\r\n\x1a\nof a camera",
    "html": b"<!doctype html>\n<title>my page</title>",
    "json": b'{"mine": 1}',
    "npz": b"PK\x03\x04 an archive of documents",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("content", ["foreign", "text", "link"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_others_is_kept(gptcli: Any, tmp_path: Path, model: Path, kind: str, content: str) -> None:
    held = FOREIGN[kind] if content != "text" else b"dear diary"
    file = tmp_path / f"mine.{kind}"
    file.write_bytes(held)
    named = file
    if content == "link":
        named = tmp_path / f"link.{kind}"
        try:
            named.symlink_to(file)
        except OSError:
            pytest.skip("this user may not make links")
    result = gptcli("inspect-attn", "ab", "-c", model, f"--{kind}", named)
    result.assert_user_error(f"{named} exists already, and gptcli did not make it.", "another place")
    assert file.read_bytes() == held


@pytest.mark.parametrize("command", [("inspect-attn", "ab"), ("inspect-flow", "ab"), ("inspect-logits", "ab")])
@pytest.mark.parametrize("kind", FOREIGN)
def test_its_own_results_and_empty_files_are_replaced(
    gptcli: Any, tmp_path: Path, model: Path, kind: str, command: tuple[str, str]
) -> None:
    file = tmp_path / f"result.{kind}"
    file.touch()
    for _ in range(2):
        result = gptcli(*command, "-c", model, f"--{kind}", file)
        assert result.code == 0, result.err
        assert file.stat().st_size > 0


def test_the_demo_of_gradients_replaces_its_own_results(gptcli: Any, tmp_path: Path) -> None:
    options = [part for kind in ("png", "html", "json", "npz") for part in (f"--{kind}", tmp_path / f"demo.{kind}")]
    for _ in range(2):
        result = gptcli("inspect-gradients", "--demo", *options)
        assert result.code == 0, result.err


def test_evaluate_keeps_a_picture_of_others(gptcli: Any, tmp_path: Path, model: Path) -> None:
    text, picture = tmp_path / "text.txt", tmp_path / "photo.png"
    text.write_text("a text of some length, to be evaluated", encoding="utf-8")
    picture.write_bytes(FOREIGN["png"])
    gptcli("evaluate", text, "-c", model, "--plot", picture).assert_user_error("gptcli did not make it")
    assert picture.read_bytes() == FOREIGN["png"]
    for _ in range(2):
        result = gptcli("evaluate", text, "-c", model, "--plot", tmp_path / "plot.png")
        assert result.code == 0, result.err
