"""Draw data/run.svg, the README's picture, from a real run: python tests/benchmarks/picture.py"""

import subprocess
import sys
from pathlib import Path

from rich.console import Console

COMMANDS = (
    "gptcli train data/story.txt --size tiny --epochs 16 --stride 64 --learning-rate 2e-3 --schedule cosine "
    "--eval-every 50 --sample-every 4 --out checkpoints/demo --force",
    'gptcli generate "When the bell rings" --checkpoint checkpoints/demo --temperature 0.5 --top-k 3 --seed 1',
)


def main() -> None:
    console = Console(record=True, width=108, file=subprocess.sys.stderr, force_terminal=True)
    for command in COMMANDS:
        console.print(f"[bold green]$[/] [bold]{command}[/]", highlight=False)
        words = command.replace('"When the bell rings"', "\0").split()
        arguments = ["When the bell rings" if word == "\0" else word for word in words[1:]]
        result = subprocess.run(
            [sys.executable, "-m", "gptcli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
        )
        console.print(result.stdout.decode("utf-8"), markup=False, highlight=False)
    console.save_svg(str(Path("data") / "run.svg"), title="gptcli")


if __name__ == "__main__":
    main()
