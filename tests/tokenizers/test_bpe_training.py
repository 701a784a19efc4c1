"""Training a BPE vocabulary: the same bytes whatever the threads, of the size that was asked for, or refused."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from vocabularies import TEXTS, trained

from gptcli.data.tokenizer_training import first_characters, in_pieces, tokens_of_first, train_bpe
from gptcli.errors import GptcliError
from gptcli.tokenizers import bpe_training
from gptcli.tokenizers.foreign import compare

SCRIPT = """
import sys
from pathlib import Path
from gptcli.data.tokenizer_training import in_pieces, train_bpe
tokenizer = train_bpe(in_pieces([Path(sys.argv[1]).read_text(encoding="utf-8")]), 700)
tokenizer.save(Path(sys.argv[2]))
"""


def test_the_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    source = random.Random(0)
    words = ["".join(source.choices("abcdeé", k=source.randrange(1, 9))) for _ in range(60_000)]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words), encoding="utf-8")
    files = []
    for threads in ("1", "4"):
        out = tmp_path / threads
        out.mkdir()
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", SCRIPT, str(text), str(out)], check=True, env=environment)
        files.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert files[0] == files[1]


def test_the_merges_are_those_of_the_library_on_the_whole_text() -> None:
    """Cut into pieces, a text has the pairs that it has as a whole."""
    text = "".join(TEXTS) * 200
    theirs = trained(400, texts=[text])
    ours = train_bpe(in_pieces([text]), 400)
    assert ours.encode(text[:5_000]) == [
        ours.description.vocab[token] for token in theirs.encode(text[:5_000], add_special_tokens=False).tokens
    ]


@pytest.mark.parametrize("seed", range(6))
def test_repeats_make_no_token_in_two_ways(seed: int) -> None:
    source = random.Random(seed)
    letters = ("a", "ab", "abc", "ab\n", "aab ", "  a")[seed]
    text = " ".join("".join(source.choices(letters, k=source.randrange(1, 60))) for _ in range(400))
    tokenizer = train_bpe(in_pieces([text]), 275)
    tokenizer.check_merges(Path("tokenizer.json"))
    compare(tokenizer, tokenizer._content, Path("tokenizer.json"))


@pytest.mark.parametrize(("size", "words"), [(256, "outside 257 to"), (-1, "outside 257"), (10**15, "outside 257")])
def test_a_size_out_of_range(size: int, words: str) -> None:
    with pytest.raises(GptcliError, match=words):
        train_bpe(in_pieces(TEXTS), size)


def test_no_more_tokens_than_the_text_has_pairs() -> None:
    text = "abab cdcd"
    with pytest.raises(GptcliError, match="vocabulary of 259 tokens, not of 300"):
        train_bpe(in_pieces([text]), 300)
    assert train_bpe(in_pieces([text]), 259).vocab_size == 259
    with pytest.raises(GptcliError, match="at least once for a vocabulary of 262 tokens"):
        train_bpe(in_pieces([text]), 300, min_frequency=1)
    with pytest.raises(GptcliError, match="vocabulary of 257 tokens"):
        train_bpe(in_pieces(["ab"]), 258)
    assert train_bpe(in_pieces(["ab"]), 257).encode("ab") == [64, 65]
    with pytest.raises(GptcliError, match="min_frequency is 0"):
        train_bpe(in_pieces([text]), 259, min_frequency=0)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(GptcliError, match=r"pip install 'gptcli\[tokenizers\]'"):
        bpe_training.train(["a"], 257)


def test_the_end_of_text_is_a_token_only_if_it_may_be() -> None:
    text = "one<|endoftext|>two " * 50
    plain, special = (train_bpe(in_pieces([text]), 260, allow_special=allowed) for allowed in (False, True))
    assert "en" in {left + right for left, right in plain.description.merges} | {"en"}
    assert not {letter for merge in special.description.merges for letter in "".join(merge)} & set("<|>d")
    assert special.encode(text, allow_special=True).count(259) == 50


def test_a_lone_surrogate_is_a_replacement() -> None:
    tokenizer = train_bpe(in_pieces(["a\ud800 a\ud800"]), 258)
    assert tokenizer.encode("\ud800") == tokenizer.encode("\ufffd")


def test_the_tokens_of_the_first_characters() -> None:
    import numpy as np

    text = TEXTS[0] + TEXTS[1]
    tokenizer = train_bpe(in_pieces([text]), 300)
    ids = np.array([*tokenizer.encode(text), tokenizer.eot_id, *tokenizer.encode(text)], np.uint16)
    for count in (1, 17, len(text) - 1, len(text), len(text) + 1, 2 * len(text), 3 * len(text)):
        tokens = tokens_of_first([ids[:100], ids[100:]], tokenizer, count)
        assert len(tokenizer.decode(ids[:tokens].tolist()).replace("<|endoftext|>", "")) >= min(count, 2 * len(text))
        shorter = tokenizer.decode(ids[: tokens - 1].tolist()).replace("<|endoftext|>", "").rstrip("\ufffd")
        assert tokens == len(ids) or len(shorter) < count
    assert "".join(piece for _, piece in first_characters(in_pieces([text, text]), len(text) + 3)) == text + text[:3]
