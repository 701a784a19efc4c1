"""Texts with labels by a rule: most of the words that name a thing are of one of three kinds, the label."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    "animal": ("dog", "cat", "horse", "bird", "fish", "cow"),
    "plant": ("oak", "rose", "fern", "moss", "palm", "lily"),
    "stone": ("flint", "marble", "slate", "quartz", "chalk", "basalt"),
}
FILLER = ("the", "old", "man", "said", "that", "we", "saw", "a", "long", "story", "once", "more", "in", "town")
LABELS = tuple(WORDS)


def text_and_label(random_number: random.Random) -> tuple[str, str]:
    """A sentence of filler and three or four words of its label, in half of the sentences with one of another label."""
    label = random_number.choice(LABELS)
    words = random_number.choices(FILLER, k=random_number.randint(3, 6))
    words += random_number.choices(WORDS[label], k=random_number.randint(3, 4))
    if random_number.random() < 0.5:
        words.append(random_number.choice(WORDS[random_number.choice(LABELS)]))
    random_number.shuffle(words)
    return " ".join(words), label


def rows(count: int, seed: int, noise: float = 0.0) -> Iterator[dict[str, str]]:
    """Rows with text and label; a share ``noise`` of the labels is another one."""
    random_number = random.Random(seed)
    for _ in range(count):
        text, label = text_and_label(random_number)
        if random_number.random() < noise:
            label = random_number.choice([other for other in LABELS if other != label])
        yield {"text": text, "label": label}


def write_rows(path: Path, count: int, seed: int, noise: float = 0.0) -> Path:
    """`rows` as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed, noise)), encoding="utf-8")
    return path


def write_text(path: Path, count: int, seed: int) -> Path:
    """The texts alone, one a line, to train a language model on."""
    path.write_text("".join(row["text"] + "\n" for row in rows(count, seed)), encoding="utf-8")
    return path
