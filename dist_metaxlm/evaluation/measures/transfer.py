"""Cross-lingual transfer table from scores by seed and language: English, mean of the others, gap, each with its interval.

The gap (XTREME, arXiv 2003.11080, section 5) is English minus the mean of the others, and is never shown alone, because a
model that is bad at English has a small gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dist_metaxlm.reporting.results import Interval, TransferTable

CONFIDENCE = 0.95


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of equal labels, in [0, 1]."""
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def interval(values: Sequence[float]) -> Interval:
    """{mean, half_width, n}: mean and half the 95% confidence interval (Student's t); half_width of one value: None."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return {"mean": mean, "half_width": None, "n": count}
    from scipy.stats import t

    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return {
        "mean": mean,
        "half_width": float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count),
        "n": count,
    }


def xtreme_score(scores: Sequence[Mapping[str, Mapping[str, float]]], metric: str) -> float:
    """A task's score in XTREME's tables: mean over seeds and all languages, the source included, of `metric`; of questions
    the mean of F1 and exact match (arXiv 2003.11080, table 2, whose averages follow from this rule).

    scores: by seed, language -> score -> value.
    """
    rows = [row for of in scores for row in of.values()]
    names = ("f1", "exact_match") if all("exact_match" in row for row in rows) else (metric,)
    return sum(row[name] for row in rows for name in names) / (len(rows) * len(names))


def transfer_table(scores: Sequence[Mapping[str, float]], scripts: Mapping[str, str], source: str = "en") -> TransferTable:
    """The table of one task.

    Args:
        scores: a mapping language -> score for every seed.
        scripts: language -> script.
        source: the language of the training text.

    Returns:
        `source` (None if it was not tested), `others`, `all` (as XTREME averages), `gap`, `languages` {language: ...} and
        `scripts` {script: ...} of the languages other than the source, each {mean, half_width, n} over the seeds.
    """
    languages = sorted(scores[0])
    others = [language for language in languages if language != source]

    def over(members: Sequence[str]) -> list[float]:
        return [sum(row[language] for language in members) / len(members) for row in scores]

    table: TransferTable = {
        "source_language": source,
        "source": interval(over([source])) if source in languages else None,
        "others": interval(over(others)) if others else None,
        "all": interval(over(languages)),
        "gap": None,
        "languages": {language: {**interval(over([language])), "script": scripts[language]} for language in languages},
        "scripts": {
            script: interval(over([language for language in others if scripts[language] == script]))
            for script in sorted({scripts[language] for language in others})
        },
    }
    if table["source"] and others:
        gaps = [english - other for english, other in zip(over([source]), over(others), strict=True)]
        table["gap"] = interval(gaps)
    return table
