"""Large texts, which are prepared before they are trained on."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from runs import MODEL, TEXT

from gptcli.data import token_shards
from gptcli.data.open import Callbacks, TextOptions, open_texts
from gptcli.errors import GptcliError
from gptcli.tokenizers.byte import ByteTokenizer

FEW = (*MODEL, "--sample-every", 0, "--threads", 1, "--eval-every", 10)


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def test_a_large_text_is_prepared_first(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("story.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("gptcli.data.open.LARGE", 600)
    options = ("train", "story.txt", *FEW, "--tokenizer", "byte", "--max-steps", 12, "--sample-every", 1)
    cache = Path("checkpoints/story.tokens")
    result = gptcli(*options)
    assert result.code == 0, result.err
    assert f"The text is large: its tokens go to {cache} first" in result.err
    tokens = token_shards.open_shards(cache)
    assert tokens.rows([0], len(tokens))[0].tolist() == ByteTokenizer().encode(TEXT)
    first = digest(Path("checkpoints/story"))
    result = gptcli(*options, "--force")
    assert f"{cache} is ready and whole" in result.err
    assert digest(Path("checkpoints/story")) == first
    result = gptcli("train", "--resume", "checkpoints/story", "--max-steps", 14)
    assert result.code == 0, result.err
    assert "prepare" not in result.err
    assert gptcli("train", "story.txt", "--resume", "checkpoints/story", "--max-steps", 16).code == 0
    # Another text takes the cache's place for a new run, but not when going on.
    Path("story.txt").write_text(TEXT * 2, encoding="utf-8")
    more = ("train", "story.txt", "--resume", "checkpoints/story", "--max-steps", 18)
    changed = gptcli(*more)
    changed.assert_user_error("story.txt has changed", "the text that the run began with")
    assert "--force" not in changed.err
    assert gptcli(*options, "--force").code == 0
    assert len(token_shards.open_shards(cache)) == 2 * len(TEXT)


def test_several_processes_do_not_prepare_together(gptcli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("story.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("gptcli.data.open.LARGE", 600)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    gptcli("train", "story.txt", *FEW).assert_user_error("2 processes", "gptcli prepare")
    assert not Path("checkpoints").exists()


def test_a_large_text_is_prepared_without_a_word(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, story: Path
) -> None:
    monkeypatch.setattr("gptcli.data.open.LARGE", 600)
    options = TextOptions([str(story)], 0.9, None, "strict", False)
    corpus, tokenizer, names = open_texts(
        options, "char", None, tmp_path / "cache", Callbacks(), replace=False, processes=1
    )
    assert (corpus.characters, tokenizer.kind, names) == (len(TEXT), "char", [str((tmp_path / "cache").absolute())])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(GptcliError, match="2 processes cannot encode it together"):
        open_texts(options, "char", None, tmp_path / "other", Callbacks(), replace=False, processes=2)
