"""Exact duplicates: the first stays, whatever the sizes of partitions and blocks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.preparation.corpus import deduplication
from dist_metaxlm.preparation.corpus.deduplication import Dropped, Repeated, find_repeated, text_digest


def repeated(texts: list[str], folder: Path) -> list[int]:
    records = Repeated(folder / "keys")
    for ordinal, text in enumerate(texts):
        records.add(text_digest(text), ordinal)
    dropped = find_repeated(records, folder / "dropped")
    return [ordinal for ordinal in range(len(texts)) if ordinal in dropped]


def reference(texts: list[str]) -> list[int]:
    seen: set[str] = set()
    return [n for n, text in enumerate(texts) if text in seen or seen.add(text)]  # type: ignore[func-returns-value]


def shrink(patch: pytest.MonkeyPatch, buffer: int = 7, partition: int = 240, block: int = 16) -> None:
    """Sizes at which a few hundred texts go through every path: many buffers, split partitions, many blocks."""
    patch.setattr(deduplication, "BUFFER_RECORDS", buffer)
    patch.setattr(deduplication, "PARTITION_BYTES", partition)
    patch.setattr(deduplication, "BLOCK", block)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12).map(str), max_size=120), st.sampled_from([1, 7, 1000]))
def test_first_of_equal_texts_stays(tmp_path_factory: pytest.TempPathFactory, texts: list[str], buffer: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, buffer)
        assert repeated(texts, tmp_path_factory.mktemp("keys")) == reference(texts)


def test_one_text_a_thousand_times_needs_no_deeper_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    texts = ["same"] * 1000
    assert repeated(texts, tmp_path) == list(range(1, 1000))


def test_many_texts_split_partitions_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, buffer=500)
    rng = random.Random(3)
    texts = [str(rng.randrange(4000)) for _ in range(6000)]
    assert repeated(texts, tmp_path) == reference(texts)
    assert list((tmp_path / "keys").iterdir()) == []


def test_keys_that_share_all_but_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, partition=48)
    records = Repeated(tmp_path / "keys")
    for ordinal in range(40):
        records.add(bytes(15) + bytes([ordinal % 20]), ordinal)
    dropped = find_repeated(records, tmp_path / "dropped")
    assert [ordinal for ordinal in range(40) if ordinal in dropped] == list(range(20, 40))


def test_the_pairs_name_an_earlier_record_with_the_same_key(tmp_path: Path) -> None:
    records = Repeated(tmp_path / "keys")
    texts = ["a", "b", "a", "c", "b", "a"]
    for ordinal, text in enumerate(texts):
        records.add(text_digest(text), ordinal)
    found = {(int(later), int(first)) for some in records.find() for later, first in zip(*some, strict=True)}
    assert found == {(2, 0), (5, 0), (4, 1)}


def test_dropped_ordinals_may_be_asked_again_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    shrink(monkeypatch)
    dropped = Dropped(tmp_path / "dropped")
    dropped.add(np.array([40, 3, 17, 3], np.uint64))
    dropped.add(np.array([], np.uint64))
    for _ in range(2):
        assert [n for n in range(60) if n in dropped] == [3, 17, 40]
