"""What needs no model: overlap of tokens, word frequencies and chance on a run's held-out text.

A run whose figures are not above these has learnt nothing that they do not have. They are measured once and kept in
evaluation/baselines.json of the run.

Shapes: N sentences, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.manifest import NAME as MANIFEST
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import masked_prose, masked_strings, read_strings
from dist_metaxlm.evaluation.measures.bits import FrequencyTable, token_counts
from dist_metaxlm.evaluation.measures.embed import SPECIALS
from dist_metaxlm.evaluation.measures.perplexity import MaskedSentence
from dist_metaxlm.evaluation.measures.retrieval import distinct_pairs
from dist_metaxlm.evaluation.word_filling import hide_words, table_accuracy
from dist_metaxlm.reporting.metrics import read_json, write_json
from dist_metaxlm.reporting.results import Baselines, Frequencies, OverlapScores

NAME = "baselines.json"
_VERSION = 1


def run_baselines(run_dir: Path, data: Path, tokenizer: Tokenizer, window: int, min_candidates: int) -> Baselines:
    """The baselines of a run, read from its folder if they were measured on the same data and settings, else measured.

    Returns:
        `overlap` {retrieval {language: {candidates, counted, to_english, from_english}}, mean_p_at_1} and `chance` (mean of
        1/N over the counted languages), both None without held-out strings; `frequencies` {perplexity, prose_perplexity,
        fill_mask}, None without a training store.
    """
    path = run_dir / "evaluation" / NAME
    key = _key(data, tokenizer, window, min_candidates)
    try:
        known = read_json(path)
    except UserError:  # damaged: it is measured again
        known = None
    if isinstance(known, dict) and known.get("key") == key:
        return cast(Baselines, known)
    heldout = data / "heldout"
    strings = heldout / "strings.jsonl"
    rows = read_strings(strings, english=False) if strings.is_file() and strings.stat().st_size else []
    retrieval = overlap_retrieval(rows, tokenizer, window, min_candidates)
    counted = [scores for scores in retrieval.values() if scores["counted"]]
    both = [score for scores in counted for score in (scores["to_english"], scores["from_english"])]
    result: Baselines = {
        "key": key,
        "overlap": {"retrieval": retrieval, "mean_p_at_1": sum(both) / len(both) if both else None} if retrieval else None,
        "chance": sum(1 / scores["candidates"] for scores in counted) / len(counted) if counted else None,
        "frequencies": _frequencies(data, tokenizer, rows, window),
    }
    write_json(path, result)
    return result


def _key(data: Path, tokenizer: Tokenizer, window: int, min_candidates: int) -> str:
    """Names data and settings; other ones give another key."""
    digest = hashlib.sha256(f"{_VERSION} {tokenizer.hash} {window} {min_candidates}".encode())
    for path in (
        data / "heldout" / "strings.jsonl",
        *sorted((data / "heldout" / "text").glob("*.txt")),
        data / "store" / MANIFEST,
    ):
        digest.update(f"\n{path.name} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"absent")
    return digest.hexdigest()[:16]


def overlap_retrieval(
    rows: Sequence[dict[str, str]], tokenizer: Tokenizer, window: int, min_candidates: int
) -> dict[str, OverlapScores]:
    """Retrieval of `evaluate_heldout` by the tokens that two sentences share, weighted by tf-idf, without any model."""
    result: dict[str, OverlapScores] = {}
    for code in sorted({code for row in rows for code in row} - {"en"}):
        both = [(row["en"], row[code]) for row in rows if "en" in row and code in row]
        sides = [
            [ids[: window - SPECIALS] for ids in tokenizer.encode_batch([pair[side] for pair in both])] for side in (0, 1)
        ]
        kept = distinct_pairs(*sides)
        if not kept:
            continue
        english, other = ([side[number] for number in kept] for side in sides)
        to_english, from_english = _shared_tokens(other, english, tokenizer.vocab_size)
        result[code] = {
            "candidates": len(kept),
            "counted": len(kept) >= min_candidates,
            "to_english": to_english,
            "from_english": from_english,
        }
    return result


def _shared_tokens(first: list[list[int]], second: list[list[int]], vocabulary: int) -> tuple[float, float]:
    """P@1 from `first` to `second` and back, cosine of tf-idf vectors; a tie counts for the candidate that comes first."""
    tokens, places = np.unique(np.concatenate([np.array(ids, np.int64) for ids in (*first, *second)]), return_inverse=True)
    owners = np.repeat(np.arange(2 * len(first)), [len(ids) for ids in (*first, *second)])
    counts = np.zeros((2 * len(first), len(tokens)), np.float32)
    np.add.at(counts, (owners, places), 1.0)
    weights = counts * np.log(len(counts) / (counts > 0).sum(0)).astype(np.float32)
    weights /= np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-9)
    one, two = weights[: len(first)], weights[len(first) :]
    shared = (one.any(0)) & (two.any(0))
    cosines = one[:, shared] @ two[:, shared].T
    right = np.arange(len(first))
    return float((cosines.argmax(1) == right).mean()), float((cosines.argmax(0) == right).mean())


def _frequencies(data: Path, tokenizer: Tokenizer, rows: list[dict[str, str]], window: int) -> Frequencies | None:
    """Perplexity and fill-mask accuracy of a table of word frequencies for each language, from all training text."""
    if not (data / "store" / MANIFEST).is_file():
        return None
    heldout = data / "heldout"
    strings, prose = masked_strings(rows, tokenizer), masked_prose(heldout, tokenizer, window)
    words = hide_words(heldout, tokenizer, window)
    counts = token_counts(TokenStore.open(data / "store"), tokenizer, list({*strings, *prose, *words}))
    tables = {code: FrequencyTable(table, tokenizer) for code, table in counts.items()}
    return {
        "perplexity": {code: _perplexity(tables[code], of, window) for code, of in strings.items() if code in tables},
        "prose_perplexity": {code: _perplexity(tables[code], of, window) for code, of in prose.items() if code in tables},
        "fill_mask": table_accuracy(tables, words),
    }


def _perplexity(table: FrequencyTable, sentences: Sequence[MaskedSentence], window: int) -> float | None:
    """As `masked_perplexity`, on the same hidden tokens."""
    hidden = [s.ids[place] for s in sentences for place in s.hidden if place < window - SPECIALS]
    return math.exp(table.nats(hidden) / len(hidden)) if hidden else None
