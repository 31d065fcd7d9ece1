"""Queries and keys of xlco: sentences of the store, mixed and masked by the example's number alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.packing.contrast import ContrastPairs
from dist_metaxlm.data.packing.masking import Masker
from dist_metaxlm.data.packing.xlco import xlco_batch
from dist_metaxlm.recipe.schema import CrossLingualContrast

VOCAB, LENGTH, COUNT = 30_000, 48, 64
TOKENIZER = SimpleNamespace(
    special=np.isin(np.arange(VOCAB), [0, 1, 2, 3, VOCAB - 1]), word_begin=np.ones(VOCAB, bool), mask_id=VOCAB - 1
)
MASKER = Masker(TOKENIZER, 1, False, 5)  # type: ignore[arg-type]


@pytest.fixture()
def pairs(bitext) -> ContrastPairs:
    """Sentences of 3 to 14 words without repeated words; the words identify the side of a pair."""
    sizes = [(3 + number % 12, 4 + number % 7) for number in range(40)]
    return ContrastPairs([bitext(sizes, 100), bitext(sizes, 10_000)], ["a-b", "a-c"], LENGTH, (1,))


def batch(pairs: ContrastPairs, first: int = 0, count: int = COUNT, **fields: object) -> PackedBatch:
    config = CrossLingualContrast.model_validate({"pairs": COUNT, "layer": 1, "max_tokens": 12, "mask_rate": 0.0, **fields})
    samples = np.arange(first, first + count)
    return xlco_batch(pairs, MASKER, 77, config, samples, samples % 2, samples // 2)


def documents(found: PackedBatch) -> list[tuple[int, ...]]:
    bounds = found.cu_seqlens.tolist()
    ends = dict(zip(bounds, bounds[1:], strict=False))
    return [tuple(found.tokens[start : ends[start]].tolist()) for start in found.starts.tolist()]


def sides(pairs: ContrastPairs, sample: int, most: int = 11) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both sentences of a pair without `<s>`, as the store holds them, cut."""
    corpus, ordinal = np.array([sample % 2]), np.array([sample // 2])
    document = pairs.locate(corpus, ordinal)[0]
    starts, second = pairs._document_starts[sample % 2], pairs._second_starts[sample % 2][document]
    stream = pairs.tokens_of(sample % 2)
    whole = stream[starts[document] + 1 : second].tolist(), stream[second : starts[document + 1]].tolist()
    return tuple(tuple(side) if len(side) <= most else (*side[: most - 1], 2) for side in whole)  # type: ignore[return-value]


def test_without_mixup_an_example_is_a_pair_in_either_direction(pairs: ContrastPairs) -> None:
    found = batch(pairs, mixup="none")
    forth = 0
    for sample, (query, key) in enumerate(zip(documents(found), documents(found.keys), strict=True)):
        first, second = sides(pairs, sample)
        assert {query, key} == {(0, *first), (0, *second)}
        forth += query == (0, *first)
    assert COUNT / 4 < forth < COUNT * 3 / 4
    assert found.pair_languages.tolist() == [0, 1] * (COUNT // 2)


@pytest.mark.parametrize("mixup", ["order", "sides"])
def test_mixup_puts_two_pairs_together_as_published(pairs: ContrastPairs, mixup: str) -> None:
    found = batch(pairs, mixup=mixup)
    assert len(found.starts) == COUNT // 2
    shapes = set()
    for number, (query, key) in enumerate(zip(documents(found), documents(found.keys), strict=True)):
        (x1, x2), (d1, d2) = sides(pairs, 2 * number), sides(pairs, 2 * number + 1)
        ways = {
            (0, *a, *b): name
            for name, (a, b) in {
                "x1d1": (x1, d1),
                "d1x1": (d1, x1),
                "x2d2": (x2, d2),
                "d2x2": (d2, x2),
                "x1d2": (x1, d2),
                "d2x1": (d2, x1),
                "x2d1": (x2, d1),
                "d1x2": (d1, x2),
            }.items()
        }
        shapes.add((ways[query], ways[key]))
    straight = {(a, b) for a in ("x1d1", "d1x1") for b in ("x2d2", "d2x2")}
    crossed = {(a, b) for a in ("x1d2", "d2x1") for b in ("x2d1", "d1x2")}
    allowed = straight | (crossed if mixup == "sides" else set())
    allowed |= {(b, a) for a, b in allowed}
    assert shapes <= allowed
    assert len(shapes) > len(allowed) / 2, "all ways occur"
    assert bool(shapes & crossed) == (mixup == "sides")


@pytest.mark.parametrize("mixup", ["none", "sides"])
def test_an_example_does_not_depend_on_the_batch_it_is_in(pairs: ContrastPairs, mixup: str) -> None:
    fields = {"mixup": mixup, "mask_rate": 0.3}
    whole, parts = batch(pairs, **fields), [batch(pairs, first, 8, **fields) for first in range(0, COUNT, 8)]
    assert documents(whole) == [one for part in parts for one in documents(part)]
    assert documents(whole.keys) == [one for part in parts for one in documents(part.keys)]
    assert whole.texts.tolist() == [row for part in parts for row in part.texts.tolist()]
    numbers = [
        [int(part.samples[part.cu_seqlens.tolist().index(start)]) for start in part.starts.tolist()]
        for side in ("queries", "keys")
        for part in ([whole] if side == "queries" else [whole.keys])
    ]
    assert numbers == [list(range(0, 2 * len(whole.starts), 2)), list(range(1, 2 * len(whole.starts), 2))]


def test_both_sides_are_masked_but_for_special_tokens_and_the_words_hash_as_they_were(pairs: ContrastPairs) -> None:
    plain, masked = batch(pairs), batch(pairs, mask_rate=0.2)
    assert plain.texts.tolist() == masked.texts.tolist()
    assert masked.targets.numel() == masked.keys.targets.numel() == 0
    shown = [documents(found) + documents(found.keys) for found in (plain, masked)]
    for before, after in zip(*shown, strict=True):
        assert len(before) == len(after)
        changed = [place for place, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert not any(before[place] in (0, 2) for place in changed)
        words = sum(token not in (0, 2) for token in before)
        assert len(changed) <= round(0.2 * words)
    share = (masked.tokens == VOCAB - 1).sum() / (plain.tokens > 3).sum()
    assert 0.1 < share < 0.2


def test_texts_are_equal_for_equal_words_whichever_is_the_query(pairs: ContrastPairs) -> None:
    straight = batch(pairs, mixup="order")
    assert len(set(straight.texts.flatten().tolist())) == COUNT
    # samples 80 to 159 are the next epoch of both language pairs
    first, second = batch(pairs, count=80, mixup="none"), batch(pairs, first=80, count=80, mixup="none")
    assert set(map(frozenset, first.texts.tolist())) == set(map(frozenset, second.texts.tolist()))
    assert set(map(tuple, first.texts.tolist())) != set(map(tuple, second.texts.tolist()))
