"""Sentence retrieval: share of sentences whose nearest neighbour in the other language is their translation (P@1, cosine).

Rules that keep the score meaningful:
- Candidates are distinct on both sides. Of pairs that share a side, the first is kept; a pair whose sides are equal
  (an untranslated string) is dropped, since retrieving an identical copy shows nothing.
- A tie counts for the candidate that comes first, so an exact tie with the right answer is wrong unless the right
  answer is the first. A collapsed model, whose vectors are all equal, then scores 1/N, which is chance.
- Both directions are reported; nearest neighbours are not symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

MIN_PAIRS = 10
"""A language with fewer pairs is left out of means over languages."""


def distinct_pairs(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of the pairs to keep: neither side was seen before and the two sides differ.

    Sides are compared as the model sees them, as ids: strings that the tokenizer maps to the same ids are the same.
    """
    seen_first: set[tuple[int, ...]] = set()
    seen_second: set[tuple[int, ...]] = set()
    kept = []
    for number, (a, b) in enumerate(zip(map(tuple, first), map(tuple, second), strict=True)):
        if a and b and a != b and a not in seen_first and b not in seen_second:
            kept.append(number)
            seen_first.add(a)
            seen_second.add(b)
    return kept


def fixed_layer(layers: int) -> int:
    """The layer (0: the embedding) to report when no layer is chosen by score: two thirds of the depth (block 8 of 12, as in
    XTREME's script for base models)."""
    return round(layers * 2 / 3)


def precision_at_1(queries: torch.Tensor, candidates: torch.Tensor) -> list[float]:
    """Share of queries whose nearest candidate by cosine is their own, per layer.

    Args:
        queries: [K, N, H] vectors.
        candidates: [K, N, H] vectors; candidate n is the right answer to query n.
    """
    unit_queries = torch.nn.functional.normalize(queries.float(), dim=-1)
    unit_candidates = torch.nn.functional.normalize(candidates.float(), dim=-1)
    # argmax returns the first of equal maxima, which is the tie rule above.
    nearest = (unit_queries @ unit_candidates.transpose(1, 2)).argmax(dim=-1)
    right = nearest == torch.arange(queries.shape[1], device=nearest.device)
    return [float(share) for share in right.float().mean(dim=-1)]


def nearest(queries: torch.Tensor, candidates: torch.Tensor) -> list[int]:
    """Number of the nearest candidate by cosine of each query, of equal ones the first.

    queries, candidates: [N, H] vectors of one layer.
    """
    unit_queries, unit_candidates = (torch.nn.functional.normalize(side.float(), dim=-1) for side in (queries, candidates))
    return [int(number) for number in (unit_queries @ unit_candidates.T).argmax(dim=-1)]
