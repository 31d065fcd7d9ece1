"""Near-duplicates: what is almost equal goes, what is not stays, and the estimate is close to the true similarity."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dist_metaxlm.preparation.corpus.near_duplicates import NearDuplicateFinder, shingles
from dist_metaxlm.recipe.data import NearDuplicates

WORDS = [f"word{number}" for number in range(500)]


def text(seed: int, words: int = 200) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def changed(words: list[str], places: list[int]) -> list[str]:
    return [f"other{place}" if place in places else word for place, word in enumerate(words)]


def dropped(documents: list[list[str]], folder: Path, **config) -> list[int]:
    finder = NearDuplicateFinder(folder, NearDuplicates(**config))
    for ordinal, words in enumerate(documents):
        finder.add([" ".join(words[:100]), " ".join(words[100:])], ordinal)
    found = finder.find()
    return [ordinal for ordinal in range(len(documents)) if ordinal in found]


def test_almost_equal_documents_go_and_different_ones_stay(tmp_path: Path) -> None:
    first, second = text(1), text(2)
    documents = [
        first,
        second,
        changed(first, [50]),
        changed(second, list(range(0, 200, 3))),
        text(3),
        changed(second, [9, 99]),
    ]
    assert dropped(documents, tmp_path) == [2, 5]


def test_a_chain_of_small_changes_leaves_its_first_document(tmp_path: Path) -> None:
    documents = [text(1)]
    for place in range(30, 180, 25):
        documents.append(changed(documents[-1], [place]))
    assert dropped(documents, tmp_path, threshold=0.7) == list(range(1, len(documents)))


def test_case_and_line_ends_do_not_count_but_short_documents_stay(tmp_path: Path) -> None:
    words = text(1)
    assert dropped(
        [words, [word.upper() for word in words], ["too", "short"], ["too", "short"], words[:4], words[:4]], tmp_path
    ) == [1]


@pytest.mark.parametrize(("threshold", "gone"), [(0.4, True), (0.9, False)])
def test_the_threshold_decides(tmp_path: Path, threshold: float, gone: bool) -> None:
    first = text(1)
    other = changed(first, [20, 60, 100, 140])
    one, two = (set(shingles(" ".join(words), 5).tolist()) for words in (first, other))
    similarity = len(one & two) / len(one | two)
    assert 0.75 < similarity < 0.85
    assert dropped([first, other], tmp_path, threshold=threshold) == ([1] if gone else [])


def test_the_same_documents_give_the_same_answer(tmp_path: Path) -> None:
    documents = [changed(text(seed % 10), [seed, 2 * seed]) for seed in range(60)]
    assert dropped(documents, tmp_path / "a") == dropped(documents, tmp_path / "b")


def test_scripts_without_spaces_are_cut_into_characters() -> None:
    assert len(shingles("東京都は日本の首都である。", 5)) == 8
    assert len(shingles("กรุงเทพมหานคร", 5)) > 1
    assert len(shingles("one two three four five", 5)) == 1
    assert len(shingles("one two three four", 5)) == 0
    assert shingles("One, two: THREE four five!", 5).tolist() == shingles("one two three four five", 5).tolist()


def test_signatures_leave_nothing_on_the_disk_but_the_answer(tmp_path: Path) -> None:
    dropped([text(1), text(1)], tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["0"]
