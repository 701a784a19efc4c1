"""gptcli with a way of training that it does not have: python tests/benchmarks/training_pieces.py PIECE train TEXT...

For for_time.py --pieces. The run it writes is a common one, but its config.toml does not repeat it.

- zero: the output projections of attention and feed-forward begin at zero, so that a block first passes its input on.
"""

import sys
from typing import Any

import torch

from gptcli.cli import main
from gptcli.training import initial_model, run

PROJECTIONS = ("attn.c_proj.weight", "mlp.c_proj.weight")


def zero_projections() -> None:
    def made(*arguments: Any, **named: Any) -> Any:
        model = initial_model.initial_model(*arguments, **named)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(PROJECTIONS):
                    parameter.zero_()
        return model

    run.initial_model = made


if __name__ == "__main__":
    {"zero": zero_projections}[sys.argv.pop(1)]()
    sys.exit(main())
