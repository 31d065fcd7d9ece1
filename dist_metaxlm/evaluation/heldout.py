"""Evaluation of a checkpoint on unseen text: perplexity and retrieval on the held-out strings of every language."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.embed import SPECIALS, embed
from dist_metaxlm.evaluation.measures.perplexity import MaskedSentence, mask_sentence, masked_perplexity, read_prose
from dist_metaxlm.evaluation.measures.retrieval import distinct_pairs, precision_at_1
from dist_metaxlm.preparation.readers.files import lines
from dist_metaxlm.reporting.results import Evaluation, LanguageRetrieval, RetrievalMeans

if TYPE_CHECKING:
    from dist_metaxlm.modeling.encoder import Encoder

TASKS = ("perplexity", "retrieval", "fill_mask")
"""Tasks on held-out text; the last one is in evaluation/word_filling.py."""
MIN_CANDIDATES = 400
"""Languages with fewer candidates are reported but are not part of the mean: among few candidates chance is high."""


def read_strings(path: Path, english: bool = True) -> list[dict[str, str]]:
    """Held-out strings, one `{"en": ..., "de": ...}` a line.

    Raises:
        UserError: the file is missing, not such JSON (names the line), or has no English although `english` is set.
    """
    if not path.is_file():
        raise UserError(f"no held-out strings at {path}; prepare the data first: metaxlm prepare store")
    rows = []
    for number, line in lines(path):  # not str.splitlines: a string may hold U+2028, which is not a line end in JSON
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(isinstance(text, str) for text in row.values()):
            raise UserError(f"{path} line {number} is not an object of language: string; prepare the data again")
        rows.append(row)
    if english and not any("en" in row for row in rows):
        raise UserError(
            f"{path} has no English strings, and retrieval is against 'en'; name translations of English in "
            "data.bitext and prepare the data again, or run --tasks perplexity, which does not need them"
        )
    return rows


def evaluate_heldout(
    encoder: Encoder,
    tokenizer: Tokenizer,
    heldout_dir: Path | str,
    tasks: Sequence[str] = ("perplexity", "retrieval"),
    window: int = 128,
    max_tokens: int = 8192,
    min_candidates: int = MIN_CANDIDATES,
) -> Evaluation:
    """Evaluate one model on `strings.jsonl` and `text/*.txt` of a folder; the result is ready for JSON.

    Returns:
        `perplexity` and `prose_perplexity` {language: x}; `retrieval` {language: {candidates, counted, to_english,
        from_english (P@1 per layer)}}; `per_layer_mean`, `best_layer` and `mean_p_at_1` over the counted languages
        and both directions (None if no language has `min_candidates`). The best layer is chosen on these same
        strings, as is usual.
    """
    folder = Path(heldout_dir)
    rows = _rows(folder, tasks)
    languages = _languages(rows)
    result: Evaluation = {}
    if "perplexity" in tasks:
        strings, prose = (
            {
                language: masked_perplexity(encoder, sentences, tokenizer.mask_id, window, max_tokens)
                for language, sentences in masked.items()
            }
            for masked in (masked_strings(rows, tokenizer), masked_prose(folder, tokenizer, window))
        )
        result["perplexity"], result["prose_perplexity"] = strings, prose
    if "retrieval" in tasks:
        texts = {language: {n: row[language] for n, row in enumerate(rows) if language in row} for language in languages}
        cut = {
            language: {
                n: ids[: window - SPECIALS] for n, ids in zip(of, tokenizer.encode_batch(list(of.values())), strict=True)
            }
            for language, of in texts.items()
        }
        result["retrieval"] = _retrieve(encoder, cut, window, max_tokens, min_candidates)
        means = retrieval_means(result["retrieval"])
        result["per_layer_mean"] = means["per_layer_mean"]
        result["best_layer"] = means["best_layer"]
        result["mean_p_at_1"] = means["mean_p_at_1"]
        result["min_candidates"] = min_candidates
    return result


def _rows(folder: Path, tasks: Sequence[str]) -> list[dict[str, str]]:
    """The held-out strings; none if there are no translations and only the perplexity of prose is measured."""
    path = folder / "strings.jsonl"
    no_strings = path.is_file() and not path.stat().st_size
    if no_strings and tuple(tasks) == ("perplexity",) and any((folder / "text").glob("*.txt")):
        return []
    return read_strings(path)


def _languages(rows: Sequence[dict[str, str]]) -> list[str]:
    """English, if there are any strings, then the others."""
    return [*(["en"] if rows else []), *sorted({language for row in rows for language in row} - {"en"})]


def masked_strings(rows: Sequence[dict[str, str]], tokenizer: Tokenizer) -> dict[str, list[MaskedSentence]]:
    """The distinct held-out strings of every language, with hidden tokens."""
    masked = {}
    for language in _languages(rows):
        texts = list(dict.fromkeys(row[language] for row in rows if language in row))
        masked[language] = [
            mask_sentence(text, ids, tokenizer.special)
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)
        ]
    return masked


def masked_prose(folder: Path, tokenizer: Tokenizer, window: int) -> dict[str, list[MaskedSentence]]:
    """Windows of the held-out prose of every language that has some, with hidden tokens."""
    return {path.stem: read_prose(path, tokenizer, window) for path in sorted((folder / "text").glob("*.txt"))}


def _retrieve(
    encoder: Encoder, ids: dict[str, dict[int, list[int]]], window: int, max_tokens: int, min_candidates: int
) -> dict[str, LanguageRetrieval]:
    numbers = list(ids["en"])
    english = embed(encoder, list(ids["en"].values()), window, max_tokens)
    column = {number: place for place, number in enumerate(numbers)}
    result: dict[str, LanguageRetrieval] = {}
    for language in sorted(set(ids) - {"en"}):
        common = [number for number in numbers if number in ids[language]]
        kept = distinct_pairs([ids["en"][n] for n in common], [ids[language][n] for n in common])
        pairs = [common[place] for place in kept]
        if not pairs:
            continue
        foreign = embed(encoder, [ids[language][n] for n in pairs], window, max_tokens)
        own = english[:, torch.tensor([column[n] for n in pairs], device=english.device)]
        result[language] = {
            "candidates": len(pairs),
            "counted": len(pairs) >= min_candidates,
            "to_english": precision_at_1(foreign, own),
            "from_english": precision_at_1(own, foreign),
        }
    return result


def retrieval_means(retrieval: Mapping[str, LanguageRetrieval]) -> RetrievalMeans:
    """Mean P@1 per layer over the counted languages and both directions, the best layer, and its mean."""
    counted = [scores for scores in retrieval.values() if scores["counted"]]
    if not counted:
        return {"per_layer_mean": [], "best_layer": None, "mean_p_at_1": None}
    directions = [direction for scores in counted for direction in (scores["to_english"], scores["from_english"])]
    per_layer = [sum(layer) / len(layer) for layer in zip(*directions, strict=True)]
    best = max(range(len(per_layer)), key=per_layer.__getitem__)
    return {"per_layer_mean": per_layer, "best_layer": best, "mean_p_at_1": per_layer[best]}
