"""What the trainer sees for one sample: its documents with text, masks, targets and their place in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.objectives.base import Shown
from dist_metaxlm.data.special_tokens import PAD
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import Corpus, TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Objective, PhaseConfig, Recipe
from dist_metaxlm.text import pluralize

LAST = 1 << 40
"""No phase has this many samples; sample numbers beyond it are not computed exactly."""


class Target(TypedDict):
    """A masked position."""

    position: int
    piece: str
    seen: str
    """The piece in its place."""


class Place(TypedDict):
    """Where a document of a sample is in the store; None if it is not known."""

    document: int | None
    offset: int | None
    part: str


class Document(Place):
    """A document of a sample."""

    positions: list[int]
    text: str
    seen: str
    targets: list[Target]


class Sample(TypedDict):
    """The result of `inspect`."""

    phase: str
    objective: str
    sample: int
    language: str
    corpus: str
    files: list[str]
    normalisation: str
    tokens: int
    targets: int
    documents: list[Document]


def inspect(recipe: Recipe, phase_name: str, objective_name: str | None, sample: int) -> Sample:
    """Sample number `sample` of an objective of a phase (by default its first), as the trainer gets it; JSON-ready.

    Positions count tokens of the sample, offsets tokens of the corpus. Errors: UserError for a phase or objective that
    the recipe does not have, a negative number, or data that are not prepared.
    """
    phase = recipe.phase(phase_name)
    objective = _objective(phase_name, phase, objective_name)
    if not 0 <= sample < LAST:
        raise UserError(f"--sample {sample} is negative or more than any phase has; samples count from 0")
    directory = Path(recipe.data.directory)
    store, tokenizer = TokenStore.open(directory / "store"), Tokenizer.load(directory / "tokenizer.model")
    data = PhaseData(store, tokenizer, phase_name, phase, recipe.seed)
    origin, text = data.origin(objective, sample), objective.reads == "text"
    corpus = store.text(origin.corpus) if text else store.bitext(origin.corpus)
    entry = (store.manifest["text"] if text else store.manifest["bitext"])[origin.corpus]
    parts = data.shown(objective, sample)
    return {
        "phase": phase_name,
        "objective": objective.name,
        "sample": sample,
        "language": entry.get("language", origin.corpus),
        "corpus": origin.corpus,
        "files": [source["file"] for source in entry.get("source", [])],
        "normalisation": tokenizer.normalisation,
        "tokens": sum(_shown_tokens(shown) for shown in parts),
        "targets": sum(shown.batch.targets.numel() for shown in parts),
        "documents": [row for shown in parts for row in _documents(shown, origin.runs, corpus, tokenizer)],
    }


def _objective(phase_name: str, phase: PhaseConfig, name: str | None) -> Objective:
    objectives = phase.objectives
    for objective in objectives:
        if name in (None, objective.name):
            return objective
    raise UserError(
        f"phase {phase_name} has no objective {name!r}; it has {', '.join(objective.name for objective in objectives)}"
    )


def _shown_tokens(shown: Shown) -> int:
    """Tokens of the windows, or of the documents only if these were assembled for display."""
    return shown.batch.tokens.numel() if shown.part is None else int((shown.words != PAD).sum())


def _documents(shown: Shown, runs: list[tuple[int, int]], corpus: Corpus, tokenizer: Tokenizer) -> list[Document]:
    batch, whole, pieces = shown.batch, shown.words, tokenizer.pieces()
    seen, bounds = batch.tokens.numpy(), batch.cu_seqlens.tolist()
    result: list[Document] = []
    for number, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if (whole[first:last] == PAD).all():
            continue
        if shown.part is not None:
            place: Place = {"document": None, "offset": None, "part": shown.part}
        elif batch.pairs is None:
            place = _place(_offset(first, runs), last - first, corpus)
        else:
            place = {**_place(runs[0][1], 0, corpus), "part": "second side" if number == batch.pairs[0, 1] else "first side"}
        targets: list[Target] = [
            {"position": position, "piece": pieces[token], "seen": pieces[seen[position]]}
            for position, token in zip(batch.targets.tolist(), batch.target_tokens.tolist(), strict=True)
            if first <= position < last
        ]
        result.append(
            {
                "positions": [first, last],
                **place,
                "text": tokenizer.decode(whole[first:last].tolist()),
                "seen": " ".join(pieces[token] for token in seen[first:last]),
                "targets": targets,
            }
        )
    return result


def _offset(first: int, runs: list[tuple[int, int]]) -> int | None:
    """Offset in the corpus of flat position `first`; None if it precedes all runs."""
    before = [(place, source) for place, source in runs if place <= first]
    return before[-1][1] + first - before[-1][0] if before else None


def _place(offset: int | None, length: int, corpus: Corpus) -> Place:
    """The document's number in the store, the offset of its part in the corpus, and which part the sample shows."""
    if offset is None:
        return {"document": None, "offset": None, "part": "part of a pair that the window's edge cuts"}
    starts = corpus.document_starts
    document = int(np.searchsorted(starts, offset, side="right")) - 1
    begin, end = int(starts[document]), int(starts[document + 1])
    part = "whole" if (offset, length) == (begin, end - begin) else f"tokens {offset - begin} to {offset - begin + length}"
    return {"document": document, "offset": offset, "part": f"{part} of {end - begin}"}


def as_text(sample: Sample) -> str:
    """The inspected sample as readable text."""
    lines = [
        f"phase {sample['phase']}, objective {sample['objective']}, sample {sample['sample']}: {sample['language']}, "
        f"{pluralize(sample['tokens'], 'token')}, {pluralize(sample['targets'], 'target')}",
        f"corpus {sample['corpus']}, from {', '.join(sample['files']) or 'files that the store does not name'}",
        f"text after the tokenizer's normalisation, {sample['normalisation']}",
    ]
    for document in sample["documents"]:
        first, last = document["positions"]
        where = "" if document["document"] is None else f"document {document['document']} at token {document['offset']}, "
        lines += [
            "",
            f"positions {first} to {last}: {where}{document['part']}",
            f"  text: {document['text']}",
            f"  seen: {document['seen']}",
        ]
        if document["targets"]:
            targets = (f"{row['position']} {row['piece']} (sees {row['seen']})" for row in document["targets"])
            lines.append("  targets: " + ", ".join(targets))
    return "\n".join(lines)
