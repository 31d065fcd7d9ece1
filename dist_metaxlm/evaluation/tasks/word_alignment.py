"""Word alignment from hidden states, by layer: a word and its translation should be mutual nearest neighbours.

The two sentences are encoded separately (as in SimAlign, arXiv 2004.08728), so the score measures the shared space and not
attention between them. A word is the mean or the first of its pieces; with `pieces`, words are linked if any of their
pieces are.

Shapes: K layers + 1, B pairs of a batch, M English and N other words (with `pieces`: pieces), L pieces of a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.files.locate import files_of_all_patterns, nothing_there
from dist_metaxlm.evaluation.measures import alignment_scores
from dist_metaxlm.evaluation.measures.embed import inference
from dist_metaxlm.evaluation.tasks.alignment_files import AlignedText, GoldSettings, Link, read_dictionary, read_gold
from dist_metaxlm.evaluation.tasks.files import read_pairs
from dist_metaxlm.evaluation.tasks.languages import dominant_script
from dist_metaxlm.evaluation.tasks.retrieval import chosen_layer
from dist_metaxlm.evaluation.tasks.spec import TaskSpec
from dist_metaxlm.evaluation.tasks.text_encoder import TextEncoder, batches
from dist_metaxlm.objectives.word_alignment import Extraction, extract
from dist_metaxlm.reporting.results import LanguageResult, TaskResult

Texts = dict[str, AlignedText]
Words = Literal["mean", "first", "pieces"]


@dataclass(frozen=True)
class Pieces:
    """A sentence as input of the encoder."""

    ids: list[int]
    owners: list[int | None]
    """Word that each piece belongs to; None: a special token."""


def read_alignment(
    name: str, spec: TaskSpec, root: Path, languages: list[str] | None = None, max_pairs: int | None = None
) -> Texts:
    """Language -> its pairs of sentences with gold links, or with a dictionary's if there are no gold ones.

    Errors: UserError of the readers, and for a language with neither.
    """
    what = f"task {name}"
    files = files_of_all_patterns(root, spec.test, what)
    pivots = files_of_all_patterns(root, spec.pivot, what)
    gold, dictionaries = (files_of_all_patterns(root, patterns, what) for patterns in (spec.gold, spec.dictionary))
    if not files:
        raise nothing_there(root, spec.test, what)
    chosen = {language: of for language, of in files.items() if languages is None or language in languages}
    if not chosen:
        raise UserError(f"{what}: none of the languages {', '.join(languages or [])} is there, only {', '.join(files)}")
    texts = {}
    for language, (path, _) in chosen.items():
        pairs = read_pairs(
            path, language, pivots[language][0] if language in pivots else None, spec.pivot_column, spec.pair_columns
        )
        if language in gold:
            file, pattern = gold[language]
            english_first = "en-{lang}" in pattern if spec.gold_first is None else spec.gold_first == "pivot"
            text = read_gold(pairs, file, GoldSettings(english_first, spec.gold_format, spec.gold_base))
        elif language in dictionaries:
            text = read_dictionary(pairs, dictionaries[language][0], spec.pivot_column)
        else:
            raise UserError(
                f"{what}: {path} has neither a gold alignment nor a dictionary beside it; add one, or say in "
                "gold or dictionary of --tasks_file where it is"
            )
        texts[language] = _first(text, max_pairs)
    return texts


def evaluate_alignment(
    encoder: TextEncoder,
    texts: Texts,
    extraction: Extraction = "argmax",
    words: Words = "mean",
    max_tokens: int = 8192,
    layer: int | None = None,
) -> TaskResult:
    """Score an encoder on word alignment.

    Returns:
        `languages` {language: {script, sentences, words, cut, reference..., aer (of gold only), precision, recall, f1}},
        scores as lists over layers; `per_layer` (means over languages), `layer` (two thirds of the depth unless asked for),
        `best_layer` (by F1, chosen on these same sentences), `extraction`, `words`.
    """
    languages: dict[str, dict[str, Any]] = {}
    for language, text in texts.items():
        sides = [[_pieces(encoder, sentence) for sentence in side] for side in (text.english, text.other)]
        counts = _counts(encoder, text, sides, extraction, words, max_tokens)
        score = alignment_scores.gold_figures if text.facts["reference"] == "gold" else alignment_scores.dictionary_figures
        figures = [score(row) for row in counts.tolist()]
        total = sum(map(len, (*text.english, *text.other)))
        seen = sum(len(set(piece.owners) - {None}) for side in sides for piece in side)
        languages[language] = {
            "script": dominant_script(word for sentence in text.other for word in sentence),
            "sentences": len(text.other),
            "words": total,
            "cut": total - seen,
            **text.facts,
            **{name: [figure[name] for figure in figures] for name in figures[0]},
        }
    per_layer = {}
    for name in ("aer", "precision", "recall", "f1"):
        rows = [of[name] for of in languages.values() if name in of]
        if rows:
            per_layer[name] = [sum(layer) / len(rows) for layer in zip(*rows, strict=True)]
    depth = len(per_layer["f1"]) - 1
    return {
        "kind": "alignment",
        "languages": cast(dict[str, LanguageResult], languages),
        "per_layer": per_layer,
        "layer": chosen_layer(layer, depth, encoder.folder),
        "best_layer": max(range(depth + 1), key=per_layer["f1"].__getitem__),
        "extraction": extraction,
        "words": words,
    }


def _counts(
    encoder: TextEncoder, text: AlignedText, sides: list[list[Pieces]], extraction: Extraction, words: Words, max_tokens: int
) -> torch.Tensor:
    """[K, 4] int64 counts of alignment_scores over all pairs, by layer."""
    total: torch.Tensor | None = None
    longest = [max(len(a.ids), len(b.ids)) for a, b in zip(*sides, strict=True)]
    with inference(encoder.model):
        for members in batches(longest, max_tokens):
            both = [[side[n] for n in members] for side in sides]
            owned = [
                _membership(pieces, [len(of[n]) for n in members], words).to(encoder.device)
                for pieces, of in zip(both, (text.english, text.other), strict=True)
            ]
            states = [encoder.states([piece.ids for piece in pieces]) for pieces in both]
            size = (len(members), owned[0].shape[1], owned[1].shape[1])
            sure, possible = (
                _marked([of[n] for n in members], size).to(encoder.device) for of in (text.sure, text.possible)
            )
            rows = []
            for english, other in zip(*states, strict=True):
                links = link_words(english.float(), other.float(), owned[0], owned[1], extraction, words)
                rows.append(
                    alignment_scores.gold_counts(links, sure, possible)
                    if text.facts["reference"] == "gold"
                    else alignment_scores.dictionary_counts(links, sure)
                )
            counts = torch.stack(rows)
            total = counts if total is None else total + counts
    assert total is not None
    return total.cpu()


def link_words(
    english: torch.Tensor,
    other: torch.Tensor,
    english_owned: torch.Tensor,
    other_owned: torch.Tensor,
    extraction: Extraction,
    words: Words,
) -> torch.Tensor:
    """[B, M, N] bool links of words, from states of pieces [B, L, H] and the weights of pieces in words [B, M or N, L].

    A word without pieces, or in the batch's padding, gets no link.
    """
    if words != "pieces":
        present = [owned.any(-1) for owned in (english_owned, other_owned)]
        allowed = present[0].unsqueeze(-1) & present[1].unsqueeze(-2)
        return extract(english_owned @ english, other_owned @ other, allowed, extraction)
    present = [owned.any(-2) for owned in (english_owned, other_owned)]
    links = extract(english, other, present[0].unsqueeze(-1) & present[1].unsqueeze(-2), extraction)
    return (english_owned @ links.float() @ other_owned.transpose(-1, -2)) > 0


def _membership(sentences: Sequence[Pieces], counts: Sequence[int], words: Words) -> torch.Tensor:
    """[B, most words, most pieces] float: share of each piece in each word's state (with `pieces`: 1 in its word's row)."""
    owned = torch.zeros(len(sentences), max(counts), max(len(sentence.ids) for sentence in sentences))
    for row, sentence in enumerate(sentences):
        before = None
        for place, owner in enumerate(sentence.owners):
            if owner is not None and (words != "first" or owner != before):
                owned[row, owner, place] = 1
            before = owner
    return owned / owned.sum(-1, keepdim=True).clamp(min=1) if words == "mean" else owned


def _marked(links: Sequence[set[Link]], size: tuple[int, int, int]) -> torch.Tensor:
    """[B, M, N] bool."""
    marked = torch.zeros(size, dtype=torch.bool)
    for row, pairs in enumerate(links):
        for i, j in pairs:
            marked[row, i, j] = True
    return marked


def _pieces(encoder: TextEncoder, words: list[str]) -> Pieces:
    """Tokenise a sentence of words, cut at the encoder's longest input."""
    encoded = encoder.tokenizer(words, is_split_into_words=True, truncation=True, max_length=encoder.max_length)
    if not encoded.is_fast:
        raise UserError(
            f"{encoder.folder} has a tokenizer that does not tell which word a piece is of; add its "
            "tokenizer.json, as save_pretrained of a fast tokenizer writes it"
        )
    return Pieces(encoded["input_ids"], encoded.word_ids())


def _first(text: AlignedText, count: int | None) -> AlignedText:
    return AlignedText(text.english[:count], text.other[:count], text.sure[:count], text.possible[:count], text.facts)
