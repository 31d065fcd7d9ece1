"""What the trainer sees for one sample: its documents with text, masks, targets and their place in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokenizer import PAD, Tokenizer
from dist_metaxlm.data.tokens.store import Corpus, TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import AnyObjective, CrossLingualContrast, MaskedLM, PhaseConfig, Recipe
from dist_metaxlm.text import counted

LAST = 1 << 40
"""No phase has as many samples; beyond this their numbers are not computed exactly."""


def inspect(recipe: Recipe, phase_name: str, objective_name: str | None, sample: int) -> dict[str, Any]:
    """Sample number `sample` of an objective of a phase (by default its first), as the trainer gets it; JSON-ready.

    Positions count tokens of the sample, offsets tokens of the corpus. Errors: UserError for a phase or objective that
    the recipe has not, a negative number, or data that are not prepared.
    """
    phase = _phase(recipe, phase_name)
    objective = _objective(phase_name, phase, objective_name)
    if not 0 <= sample < LAST:
        raise UserError(f"--sample {sample} is negative or more than any phase has; samples count from 0")
    directory = Path(recipe.data.directory)
    store, tokenizer = TokenStore.open(directory / "store"), Tokenizer.load(directory / "tokenizer.model")
    data = PhaseData(store, tokenizer, phase_name, phase, recipe.seed)
    name, runs = data.origin(objective, sample)
    corpus = store.text(name) if isinstance(objective, MaskedLM) else store.bitext(name)
    entry = store.manifest["text" if isinstance(objective, MaskedLM) else "bitext"][name]
    facts = {
        "phase": phase_name,
        "objective": objective.name,
        "sample": sample,
        "language": entry.get("language", name),
        "corpus": name,
        "files": [source["file"] for source in entry.get("source", [])],
        "normalisation": tokenizer.normalisation,
    }
    if isinstance(objective, CrossLingualContrast):
        documents = _example(data, objective, sample, tokenizer)
        return {
            **facts,
            "tokens": sum(last - first for first, last in (d["positions"] for d in documents)),
            "targets": 0,
            "documents": documents,
        }
    batch = data.batch(objective, sample, 1)
    return {
        **facts,
        "tokens": batch.tokens.numel(),
        "targets": batch.targets.numel(),
        "documents": _documents(batch, runs, corpus, tokenizer),
    }


def _phase(recipe: Recipe, wanted: str) -> PhaseConfig:
    for name, phase in recipe.phases.items():
        if name == wanted:
            return phase
    raise UserError(f"recipe {recipe.name} has no phase {wanted!r}; it has {', '.join(recipe.phases)}")


def _objective(phase_name: str, phase: PhaseConfig, name: str | None) -> AnyObjective:
    objectives = phase.objectives
    for objective in objectives:
        if name in (None, objective.name):
            return objective
    raise UserError(
        f"phase {phase_name} has no objective {name!r}; it has {', '.join(objective.name for objective in objectives)}"
    )


def _documents(
    batch: PackedBatch, runs: list[tuple[int, int]], corpus: Corpus, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    pieces = tokenizer.pieces()
    seen, bounds = batch.tokens.numpy(), batch.cu_seqlens.tolist()
    whole = seen.copy()
    whole[batch.targets.numpy()] = batch.target_tokens.numpy()
    result = []
    for number, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if (whole[first:last] == PAD).all():
            continue
        if batch.pairs is None:
            place = _place(_offset(first, runs), last - first, corpus)
        else:
            place = {**_place(runs[0][1], 0, corpus), "part": "second side" if number == batch.pairs[0, 1] else "first side"}
        targets = [
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


def _example(data: PhaseData, objective: CrossLingualContrast, sample: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Query and key of the example that pair `sample` is in, each at the start of a window."""
    together, pieces = objective.pairs_together, tokenizer.pieces()
    masked, plain = (
        data.batch(one, sample // together * together, together)
        for one in (objective, objective.model_copy(update={"mask_rate": 0.0}))
    )
    assert masked.keys is not None
    assert plain.keys is not None
    result = []
    for part, batch, words in (("query", masked, plain), ("key", masked.keys, plain.keys)):
        end = int(batch.cu_seqlens[1])
        result.append(
            {
                "positions": [0, end],
                "document": None,
                "offset": None,
                "part": part,
                "text": tokenizer.decode(words.tokens[:end].tolist()),
                "seen": " ".join(pieces[token] for token in batch.tokens[:end].tolist()),
                "targets": [],
            }
        )
    return result


def _offset(first: int, runs: list[tuple[int, int]]) -> int | None:
    """Offset in the corpus of flat position `first`; None in front of all runs."""
    before = [(place, source) for place, source in runs if place <= first]
    return before[-1][1] + first - before[-1][0] if before else None


def _place(offset: int | None, length: int, corpus: Corpus) -> dict[str, Any]:
    """Number of the store's document, offset of its part in the corpus, and which part the sample shows."""
    if offset is None:
        return {"document": None, "offset": None, "part": "part of a pair that the window's edge cuts"}
    starts = corpus.document_starts
    document = int(np.searchsorted(starts, offset, side="right")) - 1
    begin, end = int(starts[document]), int(starts[document + 1])
    part = "whole" if (offset, length) == (begin, end - begin) else f"tokens {offset - begin} to {offset - begin + length}"
    return {"document": document, "offset": offset, "part": f"{part} of {end - begin}"}


def as_text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"phase {found['phase']}, objective {found['objective']}, sample {found['sample']}: {found['language']}, "
        f"{counted(found['tokens'], 'token')}, {counted(found['targets'], 'target')}",
        f"corpus {found['corpus']}, from {', '.join(found['files']) or 'files that the store does not name'}",
        f"text after the tokenizer's normalisation, {found['normalisation']}",
    ]
    for document in found["documents"]:
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
