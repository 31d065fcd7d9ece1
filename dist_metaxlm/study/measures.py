"""Measures of a checkpoint in the study, on the run's held-out strings and, for finished arms, on tasks.

There are many short strings and they are the same for every arm, so the measures need no fine-tuning and can be computed
along the whole curve. The layer of retrieval and alignment is fixed (two thirds of the depth), not chosen by score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.measures.alignment import alignment
from dist_metaxlm.evaluation.measures.csls import csls_precision_at_1
from dist_metaxlm.evaluation.measures.embed import embed
from dist_metaxlm.evaluation.measures.perplexity import mask_sentence, masked_losses
from dist_metaxlm.evaluation.measures.retrieval import MIN_PAIRS, distinct_pairs, fixed_layer, nearest, precision_at_1
from dist_metaxlm.reporting.results import CheckpointFigures, Items

if TYPE_CHECKING:
    from dist_metaxlm.modeling.encoder import Encoder

MEASURES: dict[str, tuple[str, bool]] = {
    "english_nll": ("English, masked-token loss (nats)", False),
    "others_nll": ("others, masked-token loss (nats)", False),
    "retrieval": ("retrieval P@1", True),
    "retrieval_csls": ("retrieval P@1 by CSLS", True),
    "cka": ("CKA of translations", True),
    "margin": ("cosine, translations minus random", True),
}
"""Measure -> (description, whether higher is better); all but English are means over the other languages."""


def measure(
    encoder: Encoder, tokenizer: Tokenizer, heldout: Path, window: int, most: int | None = None
) -> CheckpointFigures:
    """Figures of one checkpoint.

    Args:
        encoder: the model.
        tokenizer: its tokenizer.
        heldout: folder with strings.jsonl.
        window: tokens of a window.
        most: number of strings read, from the start; None: all.

    Returns:
        MEASURES, `by_layer` {retrieval, cka, margin: a list}, `layer`, `languages` {language: {retrieval, nll}}.
    """
    return measure_items(encoder, tokenizer, heldout, window, most)[0]


def measure_items(
    encoder: Encoder, tokenizer: Tokenizer, heldout: Path, window: int, most: int | None = None
) -> tuple[CheckpointFigures, Items]:
    """The figures of `measure`, and the outcome of every string, from which anybody can test again."""
    rows = read_strings(heldout / "strings.jsonl")[:most]
    codes = sorted({code for row in rows for code in row} - {"en"})
    nll = {code: _losses(encoder, tokenizer, [row[code] for row in rows if code in row], window) for code in ("en", *codes)}
    losses = {code: _mean_loss(of) for code, of in nll.items()}
    right: dict[str, list[tuple[float, int]]] = {}
    layers: dict[str, list[list[float]]] = {}
    languages: dict[str, dict[str, float | None]] = {}
    depth = 0
    for code in codes:
        both = [(row["en"], row[code]) for row in rows if "en" in row and code in row]
        measured = _pairs(encoder, tokenizer, both, window)
        if measured is None:
            continue
        figures, outcomes = measured
        depth = len(figures["retrieval"]) - 1
        right[code] = outcomes
        for name, values in figures.items():
            layers.setdefault(name, []).append(values)
        languages[code] = {"retrieval": figures["retrieval"][fixed_layer(depth)], "nll": losses[code]}
    by_layer = {name: [sum(column) / len(column) for column in zip(*of, strict=True)] for name, of in layers.items()}
    layer = fixed_layer(depth)
    others = [loss for code in codes if (loss := losses[code]) is not None]

    def at_layer(name: str) -> float | None:
        return by_layer[name][layer] if by_layer else None

    figures_of: CheckpointFigures = {
        "english_nll": losses["en"],
        "others_nll": sum(others) / len(others) if others else None,
        "retrieval": at_layer("retrieval"),
        "retrieval_csls": at_layer("retrieval_csls"),
        "cka": at_layer("cka"),
        "margin": at_layer("margin"),
        "by_layer": by_layer,
        "layer": layer,
        "languages": languages,
    }
    return figures_of, {"retrieval": right, "nll": nll}


def _losses(encoder: Encoder, tokenizer: Tokenizer, texts: list[str], window: int) -> list[tuple[float, int]]:
    distinct = list(dict.fromkeys(texts))
    asked = [
        mask_sentence(text, ids, tokenizer.special)
        for text, ids in zip(distinct, tokenizer.encode_batch(distinct), strict=True)
    ]
    return masked_losses(encoder, asked, tokenizer.mask_id, window)


def _mean_loss(losses: list[tuple[float, int]]) -> float | None:
    count = sum(hidden for _, hidden in losses)
    return sum(nats for nats, _ in losses) / count if count else None


def _pairs(
    encoder: Encoder, tokenizer: Tokenizer, rows: list[tuple[str, str]], window: int
) -> tuple[dict[str, list[float]], list[tuple[float, int]]] | None:
    """(figures by layer, outcome of every pair) of one language against English; None if there are too few pairs."""
    sides = [[ids[: window - 2] for ids in tokenizer.encode_batch([row[side] for row in rows])] for side in (0, 1)]
    kept = distinct_pairs(*sides)
    if len(kept) < MIN_PAIRS:
        return None
    english, other = (embed(encoder, [side[place] for place in kept], window) for side in sides)
    space = alignment(english, other)

    def both(score: Callable[[torch.Tensor, torch.Tensor], list[float]]) -> list[float]:
        return [(a + b) / 2 for a, b in zip(score(other, english), score(english, other), strict=True)]

    layer = fixed_layer(english.shape[0] - 1)
    ways = zip(nearest(other[layer], english[layer]), nearest(english[layer], other[layer]), strict=True)
    outcomes = [(((to == n) + (back == n)) / 2, 1) for n, (to, back) in enumerate(ways)]
    return {
        "retrieval": both(precision_at_1),
        "retrieval_csls": both(csls_precision_at_1),
        "cka": [value or 0.0 for value in space["cka"]],
        "margin": [a - b for a, b in zip(space["translations"], space["random"], strict=True) if b is not None],
    }, outcomes
