"""The temperature of a classifier, fitted on a run's validation part when it has ended, and kept in its config.json."""

from collections.abc import Callable
from pathlib import Path

import torch

from gptcli.checkpoints import checkpoint, layout
from gptcli.data.dataset import Corpus
from gptcli.data.examples import ExampleSet
from gptcli.inference.calibration import calibration, fitted_temperature
from gptcli.inference.classifier import label_logits


def is_due(run: Path, corpus: Corpus | ExampleSet) -> bool:
    """Whether ``run`` is a classifier without a temperature, and ``corpus`` has a part on which to fit one."""
    config, ours = layout.read_config(run)
    held_out = corpus.validation if isinstance(corpus, ExampleSet) else None
    return bool(config.labels) and held_out is not None and "calibration" not in ours.get("training", {})


def calibrate(run: Path, corpus: Corpus | ExampleSet, device: torch.device, report: Callable[[str], None]) -> None:
    """Fit the temperature of the weights that ``run`` holds and write it; nothing where it is no classifier.

    Args:
        run: the run's directory.
        corpus: what it was trained on; the temperature is fitted on the validation part.
        device: where to compute.
        report: called with a line about the temperature.

    Raises:
        GptcliError: config.json cannot be written.
    """
    if not layout.read_config(run)[0].labels or not isinstance(corpus, ExampleSet) or corpus.validation is None:
        return
    model, held_out = checkpoint.load(run).model(device), corpus.validation.examples
    logits = label_logits(model, [example.ids for example in held_out])
    actual = torch.tensor([example.targets[-1] for example in held_out])
    temperature = fitted_temperature(logits, actual)
    before, after = (calibration(logits, actual, each).error for each in (1.0, temperature))
    facts = {"temperature": temperature, "rows": len(actual), "error_before": before, "error_after": after}
    try:
        checkpoint.add_facts(run, {"calibration": facts})
    except OSError as error:
        raise checkpoint.cannot_write(run, error) from error
    right = float((logits.argmax(dim=-1) == actual).double().mean())
    report(
        f"{right:.1%} of the {len(actual):,} validation rows get their label. A temperature of {temperature:.2f} is "
        f"fitted on them; it changes their calibration error from {before:.3f} to {after:.3f}."
    )
