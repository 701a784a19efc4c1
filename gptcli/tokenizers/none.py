"""The placeholder tokenizer of a model without tokenizer files, whose ids have no known text."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gptcli.errors import GptcliError
from gptcli.tokenizers import vocabulary
from gptcli.tokenizers.text import Utf8Stream


class NoTokenizer:
    """Has no token, saves and loads no file, and raises GptcliError on encoding and decoding."""

    kind = "none"
    vocab_size = 0
    eot_id = None
    holes = ()
    chat_template: str | None = None
    fingerprint = vocabulary.fingerprint("none", [])

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Raise GptcliError, as do ``decode``, ``stream`` and ``piece``."""
        return self._refuse()

    def decode(self, ids: Sequence[int]) -> str:
        return self._refuse()

    def stream(self) -> Utf8Stream:
        return self._refuse()

    def piece(self, token_id: int) -> str:
        return self._refuse()

    def save(self, directory: Path) -> None:
        """Write nothing: config.json has the kind."""

    @classmethod
    def load(cls, directory: Path) -> "NoTokenizer":
        return cls()

    def _refuse(self) -> NoReturn:
        raise GptcliError(
            "This checkpoint has no tokenizer, so it can neither read nor write text: its source came without one.",
            "If its vocabulary is GPT-2's, load it again with vocab.json and merges.txt beside the weights.",
        )
