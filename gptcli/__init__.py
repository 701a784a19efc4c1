"""gptcli: train, run and open up GPT-2-class language models."""

__version__ = "0.1.0"
