"""Nearest neighbours by CSLS, which corrects similarities for hubs: vectors that are close to everything.

CSLS(x, y) = 2 cos(x, y) - r(x) - r(y), with r the mean cosine to the k nearest on the other side (Conneau et al., Word
translation without parallel data, arXiv 1710.04087, section 2.3; k = 10 there). Ties go to the first candidate, as in
retrieval.py.
"""

from __future__ import annotations

import torch

NEIGHBOURS = 10


def csls_precision_at_1(queries: torch.Tensor, candidates: torch.Tensor, neighbours: int = NEIGHBOURS) -> list[float]:
    """Share of queries whose best candidate by CSLS is their own, per layer.

    Args:
        queries: [K, N, H] vectors.
        candidates: [K, N, H] vectors; candidate n is the right answer to query n.
        neighbours: k; all candidates if there are fewer.
    """
    shares = []
    for layer in range(queries.shape[0]):
        own, other = (torch.nn.functional.normalize(side[layer].float(), dim=-1) for side in (queries, candidates))
        cosine = own @ other.T
        k = min(neighbours, cosine.shape[0])
        # r(x) is the same for all candidates of a query: it does not change the argmax and is left out.
        crowding = cosine.topk(k, dim=0).values.mean(dim=0)
        nearest = (2 * cosine - crowding).argmax(dim=-1)
        right = nearest == torch.arange(len(nearest), device=nearest.device)
        shares.append(float(right.float().mean()))
    return shares
