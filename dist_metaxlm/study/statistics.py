"""Statistics of a study: bootstrap over seeds, items and languages, Holm's correction, and power.

Shapes: S seeds, N items of a language, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dist_metaxlm.reporting.results import Items

RESAMPLES = 2000
POWER = 0.8
LEVEL = 0.05
_OUTCOMES = {"retrieval": "retrieval", "english_nll": "nll", "others_nll": "nll"}
"""Measures with outcomes of every item -> name in Items."""


def bootstrap(
    ours: Mapping[int, Items], theirs: Mapping[int, Items], measure: str, seed: int = 0
) -> tuple[float, float, float] | None:
    """(lower end, upper end, p) of the difference of two arms in a measure; None for a measure without outcomes of items.

    Seeds, languages and items are drawn with replacement, each independently: seeds are paired, and both arms have the same
    items. The ends are the 2.5 % and 97.5 % quantiles, p is two-sided.

    Args:
        ours: seed -> outcomes of one arm.
        theirs: of the other arm, with the same seeds.
        measure: retrieval, english_nll or others_nll.
        seed: of the draws.
    """
    if measure not in _OUTCOMES or not ours:
        return None
    generator = np.random.default_rng(seed)
    seeds = sorted(ours)
    name = _OUTCOMES[measure]
    first = ours[seeds[0]][name]  # type: ignore[literal-required]
    codes = [code for code in first if (code == "en") == (measure == "english_nll") and first[code]]
    if not codes:
        return None
    differences = []
    for code in codes:
        mine, other = (
            np.array([of[number][name][code] for number in seeds], np.float64)  # type: ignore[literal-required]
            for of in (ours, theirs)
        )
        # [S, N, 2]: outcome and weight of an item; the weight is the number of hidden tokens, or 1
        draws = generator.multinomial(mine.shape[1], np.full(mine.shape[1], 1 / mine.shape[1]), RESAMPLES).T.astype(
            np.float64
        )
        weights = mine[0, :, 1] @ draws
        differences.append(((mine[:, :, 0] - other[:, :, 0]) @ draws) / np.maximum(weights, 1e-9))
    stacked = np.stack(differences, axis=1)  # [S, languages, R]
    of_seeds = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), RESAMPLES) / len(seeds)
    of_codes = generator.multinomial(len(codes), np.full(len(codes), 1 / len(codes)), RESAMPLES) / len(codes)
    values = np.einsum("slr,rs,rl->r", stacked, of_seeds, of_codes)
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (1 + int(tail)) / (RESAMPLES + 1))


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's t test of paired differences over seeds; None for one seed."""
    if len(differences) < 2:
        return None
    from scipy.stats import t

    values = np.asarray(differences, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values))
    if error == 0:
        return 0.0 if values.mean() else 1.0
    return float(2 * t.sf(abs(values.mean()) / error, len(values) - 1))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's method (Scandinavian Journal of Statistics 6, 1979), in their order."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def detectable(seeds: int) -> float | None:
    """The true difference, in standard deviations of the difference between paired seeds, that a t test over this many
    seeds shows with a probability of POWER at LEVEL; None for one seed."""
    if seeds < 2:
        return None
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    bar = t.ppf(1 - LEVEL / 2, seeds - 1)

    def lacking(size: float) -> float:
        shift = size * math.sqrt(seeds)
        upper, lower = nct.sf(bar, seeds - 1, shift), nct.cdf(-bar, seeds - 1, shift)
        # far from zero SciPy gives NaN in place of the tails, which are 1 and 0
        return float(np.nan_to_num(upper, nan=1.0) + np.nan_to_num(lower, nan=0.0)) - POWER

    return float(brentq(lacking, 0.01, 60.0))
