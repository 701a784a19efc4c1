"""What Hugging Face's GPT2ForSequenceClassification needs beside the weights: labels by id, and a token for padding.

It reads a text at its last token that is not the padding. So no text may hold that token: it is the end of text, which
texts never encode to, or, where a tokenizer has none, an id behind its vocabulary.
"""

import json
from pathlib import Path
from typing import Any

from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.gpt2 import CONFIG_FILE

CLASSIFIER = "GPT2ForSequenceClassification"  # transformers' name of the model
PADDING = "<|padding|>"


def padding_id(config: GPTConfig, tokenizer: Tokenizer) -> int | None:
    """The id that pads a batch of texts at the right; None if the model has no row to spare for one."""
    if tokenizer.eot_id is not None:
        return tokenizer.eot_id
    spare = tokenizer.kind != "none" and config.vocab_size > tokenizer.vocab_size
    return tokenizer.vocab_size if spare else None


def fields(config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of a classifier in config.json; they replace those of a language model."""
    return {
        "architectures": [CLASSIFIER],
        "problem_type": "single_label_classification",
        "id2label": {str(number): label for number, label in enumerate(config.labels)},
        "label2id": {label: number for number, label in enumerate(config.labels)},
        "pad_token_id": padding_id(config, tokenizer),
    }


def name_padding(directory: Path, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Name the padding in ``directory``'s tokenizer_config.json, so that AutoTokenizer pads with it. Raises OSError."""
    file = directory / CONFIG_FILE
    if padding_id(config, tokenizer) is None or not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["pad_token"] = settings.get("eos_token", PADDING)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8", newline="\n")


def text_ids(text: str, tokenizer: Tokenizer, context_length: int) -> tuple[list[int], bool]:
    """The tokens that a classifier reads of a text, and whether it is longer: then they are its first ones.

    Raises:
        GptcliError: the text is empty or white space alone, or has a character that the tokenizer does not know.
    """
    ids = tokenizer.encode(text) if text.strip() else []
    if not ids:
        raise GptcliError("The text is empty: there is nothing to classify.", "Give a text with a word in it.")
    return ids[:context_length], len(ids) > context_length
