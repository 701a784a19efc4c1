"""Draw data/run.svg, the README's picture, from what commands printed, each after its own line in `make`'s form.

The picture is of .venv/bin/gptcli train data/tinyshakespeare.txt --for 60s (without its bar), and of
.venv/bin/gptcli generate "ROMEO:" --temperature 0.7 --seed 1: python tests/benchmarks/picture.py printed.txt
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMANDS = re.compile(r"^\.venv/bin/(gptcli )", flags=re.MULTILINE)


def main() -> None:
    printed = Path(sys.argv[1]).read_text(encoding="utf-8")
    console = Console(record=True, width=110, file=io.StringIO())
    for line in COMMANDS.sub(r"$ \1", printed).strip().splitlines():
        console.print(Text(line, style="bold green" if line.startswith(("$ ", "\t")) else ""))
    picture = console.export_svg(title="one minute on two CPU cores")
    # rich names a font on a content network; a picture must not fetch anything.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    (Path("data") / "run.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
