"""The tokenizer of a model that came without one: the weights are whole, but nobody knows what its ids mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gptcli.errors import GptcliError
from gptcli.tokenizers import vocabulary
from gptcli.tokenizers.text import Utf8Stream


class NoTokenizer:
    """Stands where a tokenizer belongs and refuses text. It knows no token, saves nothing and loads from anywhere."""

    kind = "none"
    vocab_size = 0
    eot_id = None
    holes = ()
    fingerprint = vocabulary.fingerprint("none", [])

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Raises GptcliError, as all of these do."""
        return self._refuse()

    def decode(self, ids: Sequence[int]) -> str:
        return self._refuse()

    def stream(self) -> Utf8Stream:
        return self._refuse()

    def piece(self, token_id: int) -> str:
        return self._refuse()

    def save(self, directory: Path) -> None:
        """Nothing to write: config.json names the kind."""

    @classmethod
    def load(cls, directory: Path) -> "NoTokenizer":
        return cls()

    def _refuse(self) -> NoReturn:
        raise GptcliError(
            "This checkpoint has no tokenizer, so it can neither read nor write text: its source came without one.",
            "If its vocabulary is GPT-2's, load it again with vocab.json and merges.txt beside the weights.",
        )
