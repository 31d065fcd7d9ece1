"""Sentence retrieval and alignment on any parallel files: every layer, both directions, cosine and CSLS.

All pairs of a file are candidates, as in XTREME's Tatoeba; a duplicate sentence can then be missed through no
fault of the model, so the number of distinct sentences (of the side with fewer) is reported with the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dist_metaxlm import failpoints
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.files.locate import files_by_language, pivot_files
from dist_metaxlm.evaluation.files.predictions import write_rows
from dist_metaxlm.evaluation.measures.alignment import alignment
from dist_metaxlm.evaluation.measures.csls import csls_precision_at_1
from dist_metaxlm.evaluation.measures.retrieval import fixed_layer, nearest, precision_at_1
from dist_metaxlm.evaluation.resume.parts import Parts, examples_digest
from dist_metaxlm.evaluation.resume.progress import Progress
from dist_metaxlm.evaluation.tasks.files import read_pairs
from dist_metaxlm.evaluation.tasks.languages import dominant_script
from dist_metaxlm.evaluation.tasks.spec import TaskSpec
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


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where finished languages and predictions are kept."""

    parts: Parts = field(default_factory=Parts)
    """Finished languages."""
    predictions: Path | None = None
    """Beginning of the names of files for the nearest sentence of every sentence; None: they are not written."""
    log: Callable[[str], None] = lambda line: None

    def rows_of(self, language: str) -> Path | None:
        """File for the predictions of a language."""
        of = self.predictions
        return None if of is None else of.with_name(f"{of.name}-{language}.jsonl")


def evaluate_parallel(
    encoder: TextEncoder,
    pairs: Pairs,
    include_special: bool = True,
    max_pairs: int | None = None,
    max_tokens: int = 8192,
    layer: int | None = None,
    keeping: Keeping | None = None,
) -> TaskResult:
    """Score an encoder on parallel sentences.

    Args:
        encoder: the encoder.
        pairs: language -> (English, other) sentences.
        include_special: pool over special tokens too.
        max_pairs: number of pairs of every language, from the start; None: all.
        max_tokens: tokens, padding included, that go through the encoder at once.
        layer: of the tables, 0: the embedding; None: two thirds of the depth.
        keeping: finished languages and predictions.

    Returns:
        `languages` {language: {script, candidates, distinct, cut, cosine {to_english, from_english}, csls {the same},
        translations, random, cka}}, scores as lists over layers; `per_layer` (means over languages: cosine, csls, cka,
        translations, random), `layer` (two thirds of the depth, as XTREME's block 8 of 12, unless one is asked for),
        `best_layer` (chosen on these same sentences), `pooling`, `xtreme` (at `layer`, from English, mean over languages).

    Errors: UserError for a language of one pair, or a layer that the encoder does not have.
    """
    keeping = keeping or Keeping()
    depth = encoder.layers
    layer = chosen_layer(layer, depth, encoder.folder)
    pairs = {language: rows[:max_pairs] for language, rows in pairs.items()}
    for language, rows in pairs.items():
        if len(rows) < 2:
            raise UserError(f"language {language!r} has {pluralize(len(rows), 'pair')}; retrieval needs at least 2")
    languages: dict[str, LanguageResult] = {}
    progress = Progress(keeping.log, "retrieval", len(pairs))
    for language, rows in pairs.items():
        work = partial(_language, encoder, rows, include_special, max_tokens, layer, keeping.rows_of(language))
        languages[language] = keeping.parts.compute(f"{language}-{examples_digest(rows)}", work)
        failpoints.reach("evaluating.language", len(languages))
        progress.reach(len(languages), "languages")
    per_layer = _means(languages)
    asked = [of["cosine"]["from_english"][layer] for of in languages.values()]
    return {
        "xtreme": sum(asked) / len(asked),
        "kind": "retrieval",
        "languages": languages,
        "per_layer": per_layer,
        "layer": layer,
        "best_layer": max(range(depth + 1), key=per_layer["cosine"].__getitem__),
        "pooling": f"mean over tokens {'with' if include_special else 'without'} special tokens",
    }


def chosen_layer(asked: int | None, depth: int, folder: Path) -> int:
    """The layer of the tables. Errors: UserError if the encoder does not have the layer that was asked for."""
    if asked is not None and not 0 <= asked <= depth:
        raise UserError(f"--layer {asked}: {folder} has layers 0 (the embedding) to {depth}; give one of them")
    return fixed_layer(depth) if asked is None else asked


def _language(
    encoder: TextEncoder,
    rows: list[tuple[str, str]],
    include_special: bool,
    max_tokens: int,
    layer: int,
    predictions: Path | None,
) -> LanguageResult:
    """Figures of one language; writes the nearest sentence of every sentence at `layer` to `predictions`, if given."""
    english, other = (encoder.embed(list(side), include_special, max_tokens) for side in zip(*rows, strict=True))
    space = alignment(english, other)
    if predictions is not None:
        ways = zip(nearest(other[layer], english[layer]), nearest(english[layer], other[layer]), strict=True)
        write_rows(predictions, ({"gold": n, "to_english": a, "from_english": b} for n, (a, b) in enumerate(ways)))
    return {
        "script": dominant_script(text for _, text in rows),
        "candidates": len(rows),
        "distinct": min(len({a for a, _ in rows}), len({b for _, b in rows})),
        "cut": encoder.count_cut(text for row in rows for text in row),
        "cosine": {"to_english": precision_at_1(other, english), "from_english": precision_at_1(english, other)},
        "csls": {"to_english": csls_precision_at_1(other, english), "from_english": csls_precision_at_1(english, other)},
        "translations": space["translations"],
        "random": space["random"],
        "cka": space["cka"],
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
