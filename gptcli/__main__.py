"""``python -m gptcli`` and ``torchrun -m gptcli train …``."""

import sys

from gptcli.cli import main

if __name__ == "__main__":
    sys.exit(main())
