"""A model that has learnt something, in a second or two."""

import torch
from models import tiny_model
from torch.nn import functional as F

from gptcli.model.gpt import GPTModel


def trained_model(text: str, context_length: int, steps: int = 60) -> GPTModel:
    """A byte model that has read ``text`` in windows of 128."""
    model = tiny_model(spread=0.0, vocab_size=257, context_length=context_length)
    ids = torch.tensor(list(text.encode()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        starts = torch.randint(len(ids) - 129, (4, 1), generator=torch.Generator().manual_seed(step))
        batch = ids[starts + torch.arange(129)]
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
