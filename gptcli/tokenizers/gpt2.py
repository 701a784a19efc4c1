"""GPT-2's byte-pair encoding, computed by tiktoken with the rank table in this package."""

import hashlib
import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError
from gptcli.tokenizers.text import END_OF_TEXT, Utf8Stream, encode_with_special, printable
from gptcli.tokenizers.vocabulary import COPY_AGAIN, read_bytes, unknown_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tiktoken import Encoding

RANK_TABLE = Path(__file__).parent / "assets" / "gpt2.tiktoken"
RANK_TABLE_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

# GPT-2's tokenizer files in the Hugging Face hub.
FILES_SHA256 = {
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "unk_token": END_OF_TEXT,
    "add_bos_token": False,
    "add_prefix_space": False,
}
CONFIG_FILE = "tokenizer_config.json"
_CONFIG = (json.dumps(_TOKENIZER_CONFIG, indent=2) + "\n").encode("ascii")

# GPT-2's `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, with less
# backtracking: possessive quantifiers where backtracking cannot succeed, and white space at the end of the text first.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# tiktoken's `\s`: Unicode's White_Space. Python's `\s` also matches U+001C to U+001F.
WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WHITE_SPACE_RUN = re.compile(rf"[{WHITE_SPACE}]+")
_LONG_RUN = 100_000
_STEP = 1_000
_RUN_OF_SAMPLES = re.compile(rf"\s{{{_LONG_RUN // _STEP - 1}}}")


class GPT2Tokenizer:
    """GPT-2's 50,257 tokens. The tables are read on first use, once per process, not on construction.

    Args:
        files: the files that ``save`` writes, by name, if they have been read already; None to generate them.
    """

    kind = "gpt2"
    vocab_size = 50_257
    eot_id = 50_256
    holes = ()
    chat_template: str | None = None
    fingerprint = RANK_TABLE_SHA256

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self._files_read = files

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of ``text``, equal to tiktoken's for every text. Lone surrogates are encoded as U+FFFD."""
        return encode_with_special(text, _encode_plain, self.eot_id, allow_special)

    def encode_array(self, text: str, *, allow_special: bool = False) -> "NDArray[np.uint32]":
        """The ids of ``encode`` as an array (n): a sixth faster, and tiktoken releases the GIL."""
        import numpy as np

        ids = encode_to_array(_encoding(), text, {END_OF_TEXT} if allow_special else set())
        return np.array(self.encode(text, allow_special=allow_special), np.uint32) if ids is None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not valid UTF-8 become U+FFFD.

        Raises:
            GptcliError: an id has no token.
        """
        try:
            return _encoding().decode(ids)
        except (KeyError, OverflowError) as error:
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise unknown_id(wrong, self.kind, self.vocab_size) from error

    def stream(self) -> Utf8Stream:
        """A new incremental decoder."""
        return Utf8Stream(self.token_bytes)

    def piece(self, token_id: int) -> str:
        """One token in printable form."""
        return printable(self.token_bytes(token_id))

    def save(self, directory: Path) -> None:
        """Write vocab.json and merges.txt, byte-identical to the hub's, and tokenizer_config.json for AutoTokenizer."""
        for name, content in (self._files_read or _files()).items():
            (directory / name).write_bytes(content)

    @classmethod
    def load(cls, directory: Path) -> "GPT2Tokenizer":
        """Check that ``directory`` holds GPT-2's vocabulary; encoding uses the package's rank table, not these files.

        Raises:
            GptcliError: vocab.json or merges.txt is missing, or is not GPT-2's.
        """
        files = {CONFIG_FILE: _CONFIG}
        for name, sha256 in FILES_SHA256.items():
            files[name] = read_bytes(directory / name)
            if hashlib.sha256(files[name]).hexdigest() != sha256:
                raise GptcliError(f"{directory / name} is not GPT-2's {name}: its SHA-256 differs.", COPY_AGAIN)
        return cls(files)  # generating merges.txt again would take a second

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for. Raises GptcliError where there is no such token."""
        try:
            return _encoding().decode_single_token_bytes(token_id)
        except (KeyError, OverflowError) as error:
            raise unknown_id(token_id, self.kind, self.vocab_size) from error


def is_gpt2s(vocab: Mapping[str, int], merges: Sequence[str]) -> bool:
    """Whether a vocabulary and its merges (strings such as "Ġ t") are GPT-2's."""
    lines = "\n".join(["#version: 0.2", *merges, ""])
    if hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest() != FILES_SHA256["merges.txt"]:
        return False
    plain = json.dumps(dict(sorted(vocab.items(), key=lambda item: item[1])))
    return hashlib.sha256(plain.encode("ascii")).hexdigest() == FILES_SHA256["vocab.json"]


def _encode_plain(text: str) -> list[int]:
    return encode_runs(_encoding().encode_ordinary, text)


def encode_runs(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """``encode(text)``, in parts if ``text`` has long runs of white space; ``encode`` must use `PATTERN`."""
    if not _RUN_OF_SAMPLES.search(text[::_STEP]):
        return encode(text)
    return [token_id for part in _cut_long_runs(text) for token_id in encode(part)]


def encode_to_array(
    encoding: "Encoding", text: str, allowed: AbstractSet[str] = frozenset()
) -> "NDArray[np.uint32] | None":
    """tiktoken's ids as an array (n), with the special tokens ``allowed``; None if ``text`` needs `encode_runs`."""
    if _RUN_OF_SAMPLES.search(text[::_STEP]):
        return None
    try:
        return encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
    except UnicodeEncodeError:  # a lone surrogate
        return None


def _cut_long_runs(text: str) -> list[str]:
    """Cut ``text`` before the last character of each run of at least _LONG_RUN white-space characters.

    The pattern splits there too, so the ids are the same. On a run of a million characters, the backtracking stack of
    tiktoken's regex engine overflows; a run at the end of the text matches without backtracking and is not cut.
    """
    runs = [match.span() for match in _WHITE_SPACE_RUN.finditer(text)]
    cuts = [0, *(end - 1 for start, end in runs if end - start >= _LONG_RUN and end < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


@cache
def _ranks() -> dict[bytes, int]:
    """The 50,256 ordinary tokens with their ranks, which are also their ids; a lower rank is merged first."""
    table = RANK_TABLE.read_bytes()
    if hashlib.sha256(table).hexdigest() != RANK_TABLE_SHA256:
        raise GptcliError(f"{RANK_TABLE} is damaged: its SHA-256 differs.", "Install gptcli again.")
    return {a2b_base64(line.split()[0]): rank for rank, line in enumerate(table.splitlines())}


@cache
def _encoding() -> "Encoding":
    from tiktoken import Encoding

    return Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks=_ranks(),
        special_tokens={END_OF_TEXT: GPT2Tokenizer.eot_id},
        explicit_n_vocab=GPT2Tokenizer.vocab_size,
    )


@cache
def _files() -> dict[str, bytes]:
    ranks, letters = _ranks(), byte_letters()

    def spell(token: bytes) -> str:
        return "".join([letters[byte] for byte in token])

    vocab = {spell(token): rank for token, rank in ranks.items()} | {END_OF_TEXT: GPT2Tokenizer.eot_id}
    merges = [" ".join(map(spell, _parts(token, ranks))) for token in ranks if len(token) > 1]
    return {
        "vocab.json": json.dumps(vocab).encode("ascii"),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode("utf-8"),
        CONFIG_FILE: _CONFIG,
    }


def byte_letters() -> dict[int, str]:
    """The letter for each byte in vocab.json and merges.txt: its printable Latin-1 character, else U+0100 and up.

    The bytes are in the order of GPT-2's ids.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens whose merge gives ``token``: the parts of ``token`` in BPE before the last merge."""
    own_rank = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, own_rank) for left, right in pairwise(parts)]
        at = pair_ranks.index(min(pair_ranks))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
