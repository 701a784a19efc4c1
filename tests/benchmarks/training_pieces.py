"""gptcli with a way of training that it does not have: python tests/benchmarks/training_pieces.py PIECE train TEXT...

For for_time.py --pieces. The run it writes is a common one, but its config.toml does not repeat it.

- zero: the output projections of attention and feed-forward begin at zero, so that a block first passes its input on.
- averages: what is evaluated and kept is the mean of the weights over about the last tenth of the steps.
"""

import sys
from typing import Any

import torch

from gptcli.cli import main
from gptcli.training import initial_model, run, trainer

PROJECTIONS = ("attn.c_proj.weight", "mlp.c_proj.weight")
SHARE = 10  # the mean after step n has a weight of SHARE / (n + SHARE) for the newest weights


def zero_projections() -> None:
    def made(*arguments: Any, **named: Any) -> Any:
        model = initial_model.initial_model(*arguments, **named)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(PROJECTIONS):
                    parameter.zero_()
        return model

    run.initial_model = made


def averages() -> None:
    class Averaging(trainer._Run):
        mean: dict[str, torch.Tensor] | None = None

        def _launch(self, step: int, epoch: int) -> None:
            super()._launch(step, epoch)
            with torch.no_grad():
                weights = dict(self.model.named_parameters())
                if self.mean is None:
                    self.mean = {name: weight.clone() for name, weight in weights.items()}
                for name, weight in weights.items():
                    self.mean[name].lerp_(weight, min(1.0, SHARE / (step + SHARE)))

        def _evaluate(self, epoch: int) -> Any:
            assert self.mean is not None
            weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
            trained = {name: weight.clone() for name, weight in weights.items()}
            for name, weight in weights.items():
                weight.copy_(self.mean[name])
            found = super()._evaluate(epoch)
            for name, weight in weights.items():
                weight.copy_(trained[name])
            return found

    trainer._Run = Averaging  # type: ignore[misc]


if __name__ == "__main__":
    {"zero": zero_projections, "averages": averages}[sys.argv.pop(1)]()
    sys.exit(main())
