"""Sentence retrieval and alignment on any parallel files: every layer, both directions, cosine and CSLS.

All pairs of a file are candidates, as in XTREME's Tatoeba; a duplicate sentence can then be missed through no
fault of the model, so the number of distinct sentences (of the side with fewer) is reported with the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.alignment import alignment
from dist_metaxlm.evaluation.measures.csls import csls_precision_at_1
from dist_metaxlm.evaluation.measures.retrieval import fixed_layer, precision_at_1
from dist_metaxlm.evaluation.tasks.files import read_pairs
from dist_metaxlm.evaluation.tasks.languages import dominant_script
from dist_metaxlm.evaluation.tasks.spec import TaskSpec, files_by_language, pivot_files
from dist_metaxlm.evaluation.tasks.text_encoder import TextEncoder
from dist_metaxlm.reporting.results import LanguageResult, TaskResult, Ways
from dist_metaxlm.text import pluralize

Pairs = dict[str, list[tuple[str, str]]]


def read_parallel(name: str, spec: TaskSpec, root: Path, languages: list[str] | None = None) -> Pairs:
    """Language -> (English, other) sentences of a task's files. Errors: UserError as the readers say."""
    files = files_by_language(root, spec.test, f"task {name}")
    pivots = {}
    if spec.pivot and not all(path.name.endswith(".tsv") or ".tsv." in path.name for path, _ in files.values()):
        pivots = pivot_files(root, spec.pivot, files, f"task {name}")
        files.pop("en", None)
    chosen = {language: of for language, of in files.items() if languages is None or language in languages}
    if not chosen:
        raise UserError(f"task {name}: none of the languages {', '.join(languages or [])} is there, only {', '.join(files)}")
    missing = [language for language in chosen if pivots and language not in pivots]
    if missing:
        raise UserError(
            f"task {name}: {chosen[missing[0]][0]} has no file with the English sentences beside it; add it, or "
            "leave the language out"
        )
    return {
        language: read_pairs(path, language, pivots[language] if pivots else None, spec.pivot_column, spec.pair_columns)
        for language, (path, _) in chosen.items()
    }


def evaluate_parallel(
    encoder: TextEncoder, pairs: Pairs, include_special: bool = True, max_pairs: int | None = None, max_tokens: int = 8192
) -> TaskResult:
    """Score an encoder on parallel sentences.

    Returns:
        `languages` {language: {script, candidates, distinct, cosine {to_english, from_english}, csls {the same},
        translations, random, cka}}, scores as lists over layers; `per_layer` (means over languages: cosine, csls, cka,
        translations, random), `layer` (two thirds of the depth, as XTREME's block 8 of 12), `best_layer` (chosen on these
        same sentences), `pooling`.
    """
    languages: dict[str, LanguageResult] = {}
    for language, rows in pairs.items():
        rows = rows[:max_pairs]
        if len(rows) < 2:
            raise UserError(f"language {language!r} has {pluralize(len(rows), 'pair')}; retrieval needs at least 2")
        english, other = (encoder.embed(list(side), include_special, max_tokens) for side in zip(*rows, strict=True))
        space = alignment(english, other)
        languages[language] = {
            "script": dominant_script(text for _, text in rows),
            "candidates": len(rows),
            "distinct": min(len({a for a, _ in rows}), len({b for _, b in rows})),
            "cosine": {"to_english": precision_at_1(other, english), "from_english": precision_at_1(english, other)},
            "csls": {"to_english": csls_precision_at_1(other, english), "from_english": csls_precision_at_1(english, other)},
            "translations": space["translations"],
            "random": space["random"],
            "cka": space["cka"],
        }
    per_layer = _means(languages)
    depth = len(per_layer["cosine"]) - 1
    return {
        "kind": "retrieval",
        "languages": languages,
        "per_layer": per_layer,
        "layer": fixed_layer(depth),
        "best_layer": max(range(depth + 1), key=per_layer["cosine"].__getitem__),
        "pooling": f"mean over tokens {'with' if include_special else 'without'} special tokens",
    }


def _means(languages: Mapping[str, LanguageResult]) -> dict[str, list[float]]:
    layers = range(len(next(iter(languages.values()))["cka"]))

    def mean(values: list[float | None]) -> float:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else float("nan")

    every = list(languages.values())

    def both_ways(scores: Sequence[Ways]) -> list[float]:
        return [mean([way[layer] for of in scores for way in (of["to_english"], of["from_english"])]) for layer in layers]

    def over(scores: Sequence[Sequence[float | None]]) -> list[float]:
        return [mean([of[layer] for of in scores]) for layer in layers]

    return {
        "cosine": both_ways([of["cosine"] for of in every]),
        "csls": both_ways([of["csls"] for of in every]),
        "cka": over([of["cka"] for of in every]),
        "translations": over([of["translations"] for of in every]),
        "random": over([of["random"] for of in every]),
    }
