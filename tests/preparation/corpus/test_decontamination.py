"""Decontamination: what contains an evaluation text is found wherever it stands, and nothing else is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dist_metaxlm.preparation.corpus import decontamination
from dist_metaxlm.preparation.corpus.decontamination import EvaluationIndex, letters, window_hashes

SENTENCE = "The committee, having met twice in March, decided (by 5 votes to 4) that nothing could be decided."
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
THAI = "บริษัทนี้ก่อตั้งขึ้นเมื่อสามสิบปีก่อนในกรุงเทพมหานคร"
FILLER = "Entirely different words stand before and after it, so that a window must be found inside of a longer line."


def index(*texts: str) -> EvaluationIndex:
    made = EvaluationIndex()
    for text in texts:
        made.add("eval.tsv", text)
    made.freeze()
    return made


def found(made: EvaluationIndex, *documents: list[str]) -> list[str | None]:
    return [hit.sentence if hit else None for hit in made.check(documents)]


@pytest.mark.parametrize("width", [16, 48])
def test_window_hashes_are_those_of_each_window_alone(width: int) -> None:
    codes = np.random.default_rng(1).integers(0, 0x110000, 200).astype(np.uint64)
    together = window_hashes(codes, width)
    alone = [int(window_hashes(codes[start : start + width], width)[0]) for start in range(200 - width + 1)]
    assert together.tolist() == alone
    assert len(set(alone)) == len(alone)


def test_letters_forget_case_width_and_punctuation() -> None:
    assert letters("Ｆｕｌｌ-width, ﬁne\u00a0STRASSE №5!") == letters("full width FINE straße no5")


def test_a_sentence_is_found_inside_a_line_and_across_lines() -> None:
    made = index(SENTENCE)
    documents = [
        [FILLER],
        [f"{FILLER} {SENTENCE.upper()} {FILLER}"],
        [FILLER, SENTENCE[:50], SENTENCE[50:], FILLER],
        [SENTENCE.replace(",", "").replace(" ", "  ")],
        [FILLER],
    ]
    assert found(made, *documents) == [None, SENTENCE, SENTENCE, SENTENCE, None]


def test_half_a_sentence_is_found_by_its_first_or_its_last_window_and_less_is_not() -> None:
    made = index(SENTENCE)
    normal = letters(SENTENCE)
    assert found(made, [normal[:48]], [normal[-48:]], [normal[:47]], [normal[1:40]]) == [SENTENCE, SENTENCE, None, None]


def test_a_window_does_not_reach_into_the_next_document() -> None:
    made = index(SENTENCE)
    normal = letters(SENTENCE)
    assert found(made, [FILLER, normal[:30]], [normal[30:75]], [normal]) == [None, None, SENTENCE]


def test_scripts_without_spaces_have_shorter_windows() -> None:
    made = index(JAPANESE, THAI)
    normal = letters(JAPANESE)
    assert found(made, [f"これは{normal[:16]}と書いてある"], [normal[:15]], ["まったく別の文章がここにあります。"]) == [
        JAPANESE,
        None,
        None,
    ]
    thai = letters(THAI)
    assert len(thai) > 32
    assert [text is not None for text in found(made, [f"ข่าว {thai[:32]} จบ"], [thai[:31]])] == [True, False]


def test_latin_letters_inside_of_chinese_text_need_a_long_window() -> None:
    made = index("中华人民共和国（People's Republic of China and its traditional provinces）位于亚洲东部，太平洋西岸。")
    assert found(made, ["the people's republic of China and others"], ["位于亚洲东部，太平洋西岸，首都。"]) == [None, None]
    assert [
        text is not None
        for text in found(made, ["sinces 位于亚洲东部，太平洋西岸"], ["s Republic of China and its traditional"])
    ] == [True, False]


def test_a_mixed_text_without_any_window_of_its_script_counts_as_a_whole_line() -> None:
    text = "一二三四五六七 abcdefghi 八九十"
    made = index(text)
    assert found(made, [text], [f"x{text}"]) == [text, None]


def test_short_texts_count_as_whole_lines_only_and_very_short_ones_never() -> None:
    made = index("How long are we supposed to stay?", "Yes, please.", "0")
    assert len(made) == 1
    assert found(
        made, ["how long are we supposed to stay"], ["I ask: How long are we supposed to stay?"], ["Yes, please."], ["0"]
    ) == ["How long are we supposed to stay?", None, None, None]


def test_a_text_in_two_files_is_named_by_the_first() -> None:
    made = EvaluationIndex()
    made.add("a.tsv", SENTENCE)
    made.add("b.tsv", SENTENCE.lower())
    made.freeze()
    hit = made.check([[SENTENCE]])[0]
    assert hit is not None
    assert (hit.file, hit.sentence) == ("a.tsv", SENTENCE)


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_agrees_with_a_plain_search_on_random_text(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(decontamination, "PIECE", piece)
    monkeypatch.setattr(decontamination, "_BITS", 6)  # nearly every window passes the filter, so the exact search is tried
    rng = random.Random(5)
    texts = ["".join(rng.choices("ab", k=rng.randrange(24, 70))) for _ in range(40)]
    documents = [
        ["".join(rng.choices("ab", k=60)) + rng.choice(["", "", rng.choice(texts)]) + "b" * rng.randrange(9)]
        for _ in range(200)
    ]
    windows = {
        text[start : start + 48]
        for text in texts
        if len(text) >= 48
        for start in [*range(0, len(text) - 47, 48), len(text) - 48]
    }
    expected = [any(window in line for window in windows) or line in texts for (line,) in documents]
    assert [hit is not None for hit in index(*texts).check(documents)] == expected
    assert 10 < sum(expected) < 150


def test_without_documents_or_texts() -> None:
    assert index(SENTENCE).check([]) == []
    assert found(index(), [SENTENCE], []) == [None, None]
