"""Comparisons of token vectors: cosines, nearest neighbours, analogies, principal components."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gptcli.inspection.capture import Capture


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarities (N, M) of vectors a (N, C) and b (M, C); 0 for a vector of length 0."""
    return torch.nn.functional.normalize(a.float(), dim=-1) @ torch.nn.functional.normalize(b.float(), dim=-1).T


def nearest(vector: Tensor, table: Tensor, count: int, leave_out: Collection[int] = ()) -> list[tuple[int, float]]:
    """(id, cosine) of the ``count`` rows of table (V, C) with the highest cosine to vector (C), highest first."""
    similar = cosines(vector[None], table)[0]
    if leave_out:
        similar[list(leave_out)] = -torch.inf
    values, ids = similar.topk(min(count, table.size(0) - len(set(leave_out))))
    return [(int(i), float(v)) for i, v in zip(ids, values, strict=True)]


def two_dimensions(vectors: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Principal components: coordinates (N, 2) of vectors (N, C), and the share of variance that each axis explains.

    The sign of an axis is arbitrary; here its coordinate largest in size is positive, so that results are repeatable.
    """
    centred = (vectors - vectors.mean(0)).double()
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    coordinates = torch.zeros(vectors.size(0), 2, dtype=torch.float64)
    kept = min(2, sizes.size(0))
    coordinates[:, :kept] = left[:, :kept] * sizes[:kept]
    sign = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True)).sign()
    shares = torch.zeros(2, dtype=torch.float64)
    if sizes.square().sum() > 0:
        shares[:kept] = (sizes.square() / sizes.square().sum())[:kept]
    return (coordinates * sign).float(), (float(shares[0]), float(shares[1]))


def occurrences(ids: Sequence[int], words: Sequence[Sequence[int]]) -> list[int]:
    """The positions in ``ids`` at which one of ``words`` (each the token ids of a spelling) ends."""
    return [
        end - 1
        for end in range(1, len(ids) + 1)
        if any(len(word) <= end and list(ids[end - len(word) : end]) == list(word) for word in words)
    ]


def similarity_by_layer(captured: Capture, first: int, second: int) -> list[tuple[str, float]]:
    """Cosines between two positions of a text: of token vectors, with position vectors added, and after each layer."""
    stages = [("token vector", captured.tokens), ("with its position", captured.stream[0])]
    stages += [(f"after layer {n}", stream) for n, stream in enumerate(captured.stream[1:])]
    return [(name, float(cosines(x[first][None], x[second][None])[0, 0])) for name, x in stages]
