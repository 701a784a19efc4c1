"""The temperature of a classifier, fitted on a run's validation part when it has ended, and kept in its config.json."""

from pathlib import Path

import torch

from gptcli.checkpoints import checkpoint
from gptcli.data.examples import Examples
from gptcli.inference.calibration import calibration, fitted_temperature
from gptcli.inference.classifier import label_logits


def calibrate(run: Path, validation: Examples, device: torch.device) -> str:
    """Fit the temperature of the weights that ``run`` holds, write it, and return a line about it.

    Raises:
        GptcliError: config.json cannot be written.
    """
    model = checkpoint.load(run).model(device)
    logits = label_logits(model, [example.ids for example in validation.examples])
    actual = torch.tensor([example.targets[-1] for example in validation.examples])
    temperature = fitted_temperature(logits, actual)
    before, after = (calibration(logits, actual, each).error for each in (1.0, temperature))
    facts = {"temperature": temperature, "rows": len(actual), "error_before": before, "error_after": after}
    try:
        checkpoint.add_facts(run, {"calibration": facts})
    except OSError as error:
        raise checkpoint.cannot_write(run, error) from error
    right = float((logits.argmax(dim=-1) == actual).double().mean())
    return (
        f"{right:.1%} of the {len(actual):,} validation rows get their label. A temperature of {temperature:.2f} is "
        f"fitted on them; it changes their calibration error from {before:.3f} to {after:.3f}."
    )
