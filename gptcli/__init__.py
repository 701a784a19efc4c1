"""gptcli: train, run and open up GPT-2-class language models.

The names in ``__all__`` are the public API. Each is imported when it is first used, so that ``import gptcli`` loads
neither torch nor numpy.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gptcli.api import convert, events, load, load_checkpoint, merge, quantize, save_checkpoint
    from gptcli.checkpoints.checkpoint import Checkpoint
    from gptcli.config.finetune import FinetuneConfig
    from gptcli.config.generation import GenerationConfig
    from gptcli.config.model import GPTConfig
    from gptcli.config.recipe import RecipeConfig
    from gptcli.config.runtime import RuntimeConfig
    from gptcli.config.sampling import SamplingConfig
    from gptcli.errors import GptcliError
    from gptcli.evaluation.classification import evaluate_labels
    from gptcli.evaluation.scores import evaluate
    from gptcli.inference.classifier import Classifier
    from gptcli.inference.completion import Completion
    from gptcli.inference.text_model import TextModel
    from gptcli.model.gpt import GPTModel
    from gptcli.training.session import StopTraining, finetune, resume, train

__all__ = [
    "Checkpoint",
    "Classifier",
    "Completion",
    "FinetuneConfig",
    "GPTConfig",
    "GPTModel",
    "GenerationConfig",
    "GptcliError",
    "RecipeConfig",
    "RuntimeConfig",
    "SamplingConfig",
    "StopTraining",
    "TextModel",
    "__version__",
    "convert",
    "evaluate",
    "evaluate_labels",
    "events",
    "finetune",
    "load",
    "load_checkpoint",
    "merge",
    "quantize",
    "resume",
    "save_checkpoint",
    "train",
]

_HOMES = {
    "Checkpoint": "gptcli.checkpoints.checkpoint",
    "Classifier": "gptcli.inference.classifier",
    "Completion": "gptcli.inference.completion",
    "FinetuneConfig": "gptcli.config.finetune",
    "GPTConfig": "gptcli.config.model",
    "GPTModel": "gptcli.model.gpt",
    "GenerationConfig": "gptcli.config.generation",
    "GptcliError": "gptcli.errors",
    "RecipeConfig": "gptcli.config.recipe",
    "RuntimeConfig": "gptcli.config.runtime",
    "SamplingConfig": "gptcli.config.sampling",
    "StopTraining": "gptcli.training.session",
    "TextModel": "gptcli.inference.text_model",
    "evaluate": "gptcli.evaluation.scores",
    "evaluate_labels": "gptcli.evaluation.classification",
    "finetune": "gptcli.training.session",
    "resume": "gptcli.training.session",
    "train": "gptcli.training.session",
}

if not TYPE_CHECKING:  # a type checker then knows each name, and no other

    def __getattr__(name):
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module 'gptcli' has no attribute {name!r}")
        value = getattr(import_module(_HOMES.get(name, "gptcli.api")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
