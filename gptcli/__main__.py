"""``gptcli``, ``python -m gptcli`` and ``torchrun -m gptcli train …``."""

import sys


def run() -> int:
    """The command line; Ctrl-C while it is still being imported ends it as later."""
    try:
        from gptcli.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
