"""Tokenizers of Hugging Face's library, trained on a few lines, and model directories that hold them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreign import CONFIG, write_hf
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models

TEXTS = [
    "der Hund läuft über die Straße. Grüße aus München! Äpfel und Öl, größer als 1984; don't we've I'll.\n\n" * 3,
    "Привет, мир! Как дела? 12345 67890 – „Anführung“ … 日本語のテキスト 🙂👍🏽",
    "aaaa aaaaa aaaaaaa   bbbb\t\t\tababab    \n\n\n  x  ",
] * 4


def trained(
    vocab_size: int = 500, special: tuple[str, ...] = ("<|endoftext|>",), texts: list[str] = TEXTS
) -> Tokenizer:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=list(special), show_progress=False)
    return Tokenizer.from_str(tokenizer.to_str())


def edited(change: Callable[[dict[str, Any]], Any], base: Tokenizer | None = None) -> str:
    content = json.loads((base or trained()).to_str())
    change(content)
    return json.dumps(content)


def directory(path: Path, content: str | Tokenizer, vocab_size: int | None = None, **config: Any) -> Path:
    """A model directory with a tokenizer.json and nothing else that says what its tokens are."""
    text = content if isinstance(content, str) else content.to_str()
    size = vocab_size or Tokenizer.from_str(text).get_vocab_size()
    write_hf(path, config=CONFIG.with_changes(vocab_size=size, emb_dim=8))
    (path / "tokenizer.json").write_text(text, encoding="utf-8")
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def unigram() -> str:
    return Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)).to_str()
