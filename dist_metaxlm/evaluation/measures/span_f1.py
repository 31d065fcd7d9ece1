"""Scores of tagging: F1 of spans by seqeval, which XTREME uses for named entities and parts of speech alike.

Part-of-speech tags have no B- and I-, so seqeval takes every run of one tag as a span (every SYM and SCONJ by itself,
whose S it reads as "single"; and no X at a sentence's end). The score is therefore not token accuracy; both are reported.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from dist_metaxlm.errors import UserError


def tagging_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """{span_f1, precision, recall, token_accuracy} in [0, 1], over all sentences together.

    Args:
        gold: tags of each sentence.
        predicted: as many tags of as many sentences.
    """
    try:
        from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    except ImportError:
        raise UserError(
            "tagging is scored with seqeval, which is not installed; pip install 'dist-metaxlm[evaluation]'"
        ) from None
    truth, answers = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    with warnings.catch_warnings():
        # suppresses a warning per tag without B- or I-, and one for no predicted span, which correctly scores 0
        warnings.simplefilter("ignore")
        return {
            "span_f1": float(f1_score(truth, answers, zero_division=0)),
            "precision": float(precision_score(truth, answers, zero_division=0)),
            "recall": float(recall_score(truth, answers, zero_division=0)),
            "token_accuracy": float(accuracy_score(truth, answers)),
        }
