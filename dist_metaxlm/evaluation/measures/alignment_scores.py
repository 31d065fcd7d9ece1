"""Scores of word links against gold alignments or against a dictionary.

Gold (Och and Ney, aclanthology.org/J03-1002, section 5.1) has sure links S and possible links P (S is a subset of P). For
predicted links A: precision |A and P| / |A|, recall |A and S| / |S|, alignment error rate
1 - (|A and S| + |A and P|) / (|A| + |S|), summed over the whole text. A ratio with denominator 0 is 0,
including the error rate when both S and A are empty.

With a dictionary only words that have a translation in the other sentence are scored. Precision: share of the links of
such words that are in the dictionary. Recall: share of such words, on both sides, with a link that is in the dictionary.
"""

from __future__ import annotations

import torch

COUNTS = 4


def gold_counts(found: torch.Tensor, sure: torch.Tensor, possible: torch.Tensor) -> torch.Tensor:
    """[4] int64 |A|, |S|, |A and S|, |A and P| of bool [B, M, N] each."""
    return torch.stack([found.sum(), sure.sum(), (found & sure).sum(), (found & possible).sum()])


def gold_figures(counts: list[int]) -> dict[str, float]:
    """{aer, precision, recall, f1} of `gold_counts`, summed over a text."""
    links, sure, right_sure, right_possible = counts
    error = 1 - (right_sure + right_possible) / (links + sure) if links + sure else 0.0
    return {"aer": error, **_with_f1(_share(right_possible, links), _share(right_sure, sure))}


def dictionary_counts(found: torch.Tensor, listed: torch.Tensor) -> torch.Tensor:
    """[4] int64: links of scored words, those of them in the dictionary, scored words, those with a correct link."""
    rows, columns = listed.any(-1, keepdim=True), listed.any(-2, keepdim=True)
    right = found & listed
    return torch.stack(
        [
            (found & (rows | columns)).sum(),
            right.sum(),
            rows.sum() + columns.sum(),
            right.any(-1).sum() + right.any(-2).sum(),
        ]
    )


def dictionary_figures(counts: list[int]) -> dict[str, float]:
    """{precision, recall, f1} of `dictionary_counts`, summed over a text."""
    links, right, words, right_words = counts
    return _with_f1(_share(right, links), _share(right_words, words))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _with_f1(precision: float, recall: float) -> dict[str, float]:
    both = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0}
