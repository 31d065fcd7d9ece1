"""Inspection shows the batch of the trainer, and names where in the store each document is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dist_metaxlm.data.inspection import as_text, inspect
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


@pytest.mark.parametrize("sample", [0, 7, 12345, 10**9])
def test_documents_are_where_it_says(recipe: Recipe, sample: int) -> None:
    directory = Path(recipe.data.directory)
    store, tokenizer = TokenStore.open(directory / "store"), Tokenizer.load(directory / "tokenizer.model")
    for name in ("mlm", "tlm"):
        found = inspect(recipe, "cross", name, sample)
        corpus = store.text(found["corpus"]) if name == "mlm" else store.bitext(found["corpus"])
        pieces, shown = tokenizer.pieces(), 0
        for document in found["documents"]:
            first, last = document["positions"]
            seen = document["seen"].split(" ")
            assert len(seen) == last - first
            for target in document["targets"]:
                assert seen[target["position"] - first] == target["seen"]
                seen[target["position"] - first] = target["piece"]
            shown += len(document["targets"])
            if document["document"] is None:
                continue
            begin, end = corpus.document_starts[document["document"] : document["document"] + 2]
            assert begin <= document["offset"] < end
            stored = [pieces[token] for token in corpus.tokens[document["offset"] : document["offset"] + last - first]]
            assert sorted(stored) == sorted(seen) if name == "tlm" else stored == seen
            assert document["part"].startswith("whole") == ((document["offset"], last - first) == (begin, end - begin))
        assert shown == found["targets"]


def test_it_is_the_trainers_batch(recipe: Recipe) -> None:
    directory = Path(recipe.data.directory)
    store, tokenizer = TokenStore.open(directory / "store"), Tokenizer.load(directory / "tokenizer.model")
    phase = recipe.phases["cross"]
    batch = PhaseData(store, tokenizer, "cross", phase, recipe.seed).batch(phase.objectives[0], 40, 4)
    found = inspect(recipe, "cross", "mlm", 42)
    pieces = tokenizer.pieces()
    length = phase.sequence_length
    seen = [piece for document in found["documents"] for piece in document["seen"].split(" ")]
    assert seen == [pieces[token] for token in batch.tokens[2 * length : 3 * length].tolist()]
    inside = (batch.targets >= 2 * length) & (batch.targets < 3 * length)
    assert [target["piece"] for document in found["documents"] for target in document["targets"]] == [
        pieces[token] for token in batch.target_tokens[inside].tolist()
    ]


def test_xlco_shows_query_and_key_with_their_masks(recipe: Recipe) -> None:
    tree = recipe.model_dump(mode="json")
    tree["phases"]["cross"]["objectives"] = [{"name": "xlco", "pairs": 16, "layer": 1, "max_tokens": 16}]
    found = inspect(Recipe.model_validate(tree), "cross", None, 7)
    assert [document["part"] for document in found["documents"]] == ["query", "key"]
    for document in found["documents"]:
        seen = document["seen"].split(" ")
        assert seen[0] == "<s>"
        assert seen.count("</s>") == 2, "two sentences"
        assert "<mask>" not in document["text"]
    assert any("<mask>" in document["seen"] for document in found["documents"])
    assert inspect(Recipe.model_validate(tree), "cross", "xlco", 6)["documents"] == found["documents"]
    assert "query" in as_text(found)


def test_contrast_names_the_pair_and_its_sides(recipe: Recipe) -> None:
    found = inspect(recipe, "cross", "contrast", 5)
    store = TokenStore.open(Path(recipe.data.directory) / "store")
    tokenizer = Tokenizer.load(Path(recipe.data.directory) / "tokenizer.model")
    corpus = store.bitext(found["corpus"])
    sides = {document["part"]: document for document in found["documents"]}
    assert set(sides) == {"first side", "second side"}
    number = sides["first side"]["document"]
    begin, middle, end = corpus.document_starts[number], corpus.second_starts[number], corpus.document_starts[number + 1]
    assert sides["first side"]["offset"] == begin
    for side, tokens in (("first side", corpus.tokens[begin:middle]), ("second side", corpus.tokens[middle:end])):
        assert tokenizer.decode(tokens.astype(np.int64)).startswith(sides[side]["text"])


def test_text_form_and_errors(recipe: Recipe) -> None:
    text = as_text(inspect(recipe, "meta", None, 3))
    assert text.startswith("phase meta, objective mlm, sample 3: en, 32 tokens, 6 targets\ncorpus en, from en.txt\n")
    assert "<mask>" in text
    for arguments, said in (
        (("best", None, 0), "has no phase 'best'; it has"),
        (("meta", "tlm", 0), "no objective 'tlm'"),
        (("meta", None, -1), "--sample -1 is negative"),
        (("meta", None, 1 << 64), "negative or more than any phase has"),
    ):
        with pytest.raises(UserError, match=said):
            inspect(recipe, *arguments)
