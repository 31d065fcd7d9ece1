"""How far languages share one vector space, by layer; finer than whether the nearest neighbour is right.

Two figures: the mean cosine of translations against that of random pairs (a collapsed space has both near 1), and linear
CKA (Kornblith et al., arXiv 1905.00414, section 3), which compares the geometry of two languages independently of
rotation and scale.
"""

from __future__ import annotations

import torch

from dist_metaxlm.reporting.results import Space


def alignment(first: torch.Tensor, second: torch.Tensor) -> Space:
    """Alignment of translations by layer.

    Args:
        first: [K, N, H] vectors of one language.
        second: [K, N, H] vectors of their translations.

    Returns:
        {translations, random, cka}: one value per layer; `random` is the mean over all pairs that are not translations.
    """
    result: Space = {"translations": [], "random": [], "cka": []}
    for one, other in zip(first.float(), second.float(), strict=True):
        count = len(one)
        unit, unit_other = torch.nn.functional.normalize(one, dim=-1), torch.nn.functional.normalize(other, dim=-1)
        own = float((unit * unit_other).sum())
        # the sum of all cosines is one product of sums: no N x N matrix is needed
        everything = float(unit.sum(0) @ unit_other.sum(0))
        result["translations"].append(own / count)
        result["random"].append((everything - own) / (count * (count - 1)) if count > 1 else None)
        result["cka"].append(linear_cka(one, other))
    return result


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """Linear CKA of [N, H] and [N, H'] vectors of the same N items, in [0, 1]; None if a side is constant."""
    one, other = (side.double() - side.double().mean(0) for side in (first, second))
    between = torch.linalg.matrix_norm(one.T @ other) ** 2
    within = torch.linalg.matrix_norm(one.T @ one) * torch.linalg.matrix_norm(other.T @ other)
    return float(between / within) if float(within) > 0 else None
