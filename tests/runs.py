"""A training run that takes a second: its text, and the options of its model."""

TEXT = "the cat sat on the mat, and the dog sat on the log.\n" * 12
MODEL = ("--emb-dim", 16, "--n-heads", 2, "--n-layers", 2, "--context-length", 16)
TINY = ("--tokenizer", "char", *MODEL)
