"""Self-contained HTML pages: no network access, no library, every text escaped."""

import base64
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from gptcli.errors import SettingError
from gptcli.inspection import palette
from gptcli.inspection.attention import HeadScores, role

LONGEST = 256
SCALE = 10_000


def check_length(length: int) -> None:
    """Refuse texts that are too long for the interactive page.

    Raises:
        GptcliError: more than LONGEST tokens.
    """
    if length > LONGEST:
        raise SettingError(
            f"The page holds up to {LONGEST} tokens, and the text has {length:,}.",
            "Shorten the text; {png} and {npz} take any length.",
        )


def attention_page(
    labels: Sequence[str],
    weights: Tensor,
    scores: HeadScores,
    title: str,
    layer: int | None = None,
    head: int | None = None,
) -> str:
    """The interactive page of all heads, as HTML.

    Args:
        labels: T tokens as shown; any text.
        weights: (L, H, T, T); kept to four decimals, the lower triangles as 16-bit numbers in base64.
        scores: the scores of these heads.
        title: heading of the page; any text.
        layer, head: the view that is open at first.
    """
    layers, heads, length, _ = weights.shape
    row, column = torch.tril_indices(length, length)
    packed = (weights[:, :, row, column] * SCALE).round().to(torch.int32).numpy().astype("<u2")
    data = {
        "title": title,
        "labels": list(labels),
        "layers": layers,
        "heads": heads,
        "scale": SCALE,
        "weights": base64.b64encode(packed.tobytes()).decode("ascii"),
        "palette": palette.MAGMA,
        "start": [layer or 0, head or 0],
        "scores": [[_scores_of(scores, n, h) for h in range(heads)] for n in range(layers)],
    }
    # Inside a script element, only "<" can start an end tag or a comment.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return _template("attention.html", {"TITLE": html.escape(title), "DATA": text})


def report_page(title: str, about: str, picture: bytes, tables: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """A page of one PNG and of tables, each (heading, rows); the first of its rows holds the column names."""
    body = []
    for heading, rows in tables:
        body.append(f"<h2>{html.escape(heading)}</h2><div class=wide><table>")
        for number, row in enumerate(rows):
            tag = "th" if number == 0 else "td"
            body.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
        body.append("</table></div>")
    encoded = base64.b64encode(picture).decode("ascii")
    parts = {"TITLE": html.escape(title), "ABOUT": html.escape(about), "PICTURE": encoded, "TABLES": "\n".join(body)}
    return _template("report.html", parts)


def _scores_of(scores: HeadScores, layer: int, head: int) -> dict[str, Any]:
    def rounded(value: float) -> float | None:
        return None if value != value else round(value, 4)

    return {
        "role": role(scores, layer, head),
        "entropy": rounded(scores.entropy[layer, head].item()),
        "distance": rounded(scores.distance[layer, head].item()),
        "shares": {name: rounded(values[layer, head].item()) for name, values in scores.shares.items()},
    }


def _template(name: str, parts: dict[str, str]) -> str:
    """The template with each {{NAME}} replaced in one pass, so that inserted text is not searched for names."""
    page = resources.files("gptcli.inspection").joinpath("assets", name).read_text(encoding="utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], page)
