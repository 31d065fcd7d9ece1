"""The held-out split: coverage of every language, nothing of it in training text, the same whatever the order."""

from __future__ import annotations

import json
import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dist_metaxlm.preparation.corpus import heldout
from dist_metaxlm.preparation.corpus.heldout import Candidates, choose, text_key, training_documents, training_pairs


def test_keys_forget_case_punctuation_and_space() -> None:
    assert text_key(" Save  THIS page… ") == text_key("save this page") == text_key("“Save this—page!”")
    assert text_key("हिन्दी") != text_key("हनद")


def test_candidates_do_not_depend_on_the_order() -> None:
    pairs = [(f"source number {n}", "de", f"Quelle {n}") for n in range(400)]
    shuffled = random.Random(1).sample(pairs, len(pairs))
    kept = []
    for order in (pairs, shuffled):
        candidates = Candidates(40)
        for pair in order:
            candidates.add(*pair)
        kept.append([key for key, _ in candidates.ordered()])
    assert kept[0] == kept[1]
    assert len(kept[0]) == 40


def test_every_language_gets_its_share_even_a_small_one() -> None:
    candidates = Candidates(10_000)
    for n in range(2000):
        for language in ("de", "fr", "nl") + (("ba",) if n % 10 == 0 else ()):
            candidates.add(f"the source string {n}", language, f"{language} text {n}")
    chosen = choose(candidates, 200)
    assert len(chosen) == 200
    assert sum("ba" in texts for _, texts in chosen) >= 0.8 * 200
    assert all(sum(language in texts for _, texts in chosen) >= 0.8 * 200 for language in ("de", "fr", "nl"))
    assert chosen == choose(candidates, 200)


def test_ambiguous_short_and_too_many_strings_are_not_held_out() -> None:
    candidates = Candidates(1000)
    candidates.add("Two words", "de", "Zwei Wörter")
    candidates.add("Three plain words", "de", "Gleich")
    candidates.add("Three other words", "de", "gleich!")
    for n in range(37):
        candidates.add(f"good source string {n}", "de", f"Satz {n}")
    chosen = choose(candidates, 39)
    assert len(chosen) == int(heldout.MAX_SHARE * 40)
    assert all(texts["en"].startswith("good") for _, texts in chosen)


def make(tmp_path: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    strings = [f"Press the button number {n}." for n in range(100)]
    lines = "".join(f"{text}\tDrücke den Knopf Nummer {n}\n" for n, text in enumerate(strings))
    (tmp_path / "en-de.tsv").write_text(lines + "press the BUTTON number 7\tKnopf Sieben ist zu drücken\n")
    (tmp_path / "de-en.tsv").write_text("".join(f"Anderer Knopf {n}\t{text}\n" for n, text in enumerate(strings)))
    prose = "".join(f"A paragraph about things, {n} of them.\nAnd more of it, {n}.\n\n" for n in range(400))
    (tmp_path / "en.txt").write_text(prose + "\n".join(strings))
    return ({"en": [tmp_path / "en.txt"]}, {"en-de": [tmp_path / "en-de.tsv"], "de-en": [tmp_path / "de-en.tsv"]})


def test_nothing_held_out_is_left_in_training_text(tmp_path: Path, monkeypatch) -> None:
    text, bitext = make(tmp_path)
    monkeypatch.setattr(heldout, "TEXT_MINIMUM", 0)
    about = heldout.write(tmp_path / "h", text, bitext, 12)
    rows = [json.loads(line) for line in (tmp_path / "h" / "strings.jsonl").read_text().splitlines()]
    assert about["strings"] == len(rows) == 12
    assert all(set(row) == {"en", "de"} for row in rows)
    excluded = heldout.read_excluded(tmp_path / "h")
    dropped: dict[str, int] = {}
    pairs = list(training_pairs(heldout.readers.pairs(bitext["en-de"]), "en-de", excluded, dropped))
    assert dropped["held-out pairs"] == 101 - len(pairs) >= 12
    held = {text_key(row["en"]) for row in rows}
    turned = list(training_pairs(heldout.readers.pairs(bitext["de-en"]), "de-en", excluded, {}))
    assert len(turned) == 100 - 12
    assert not held & {text_key(right) for _, right in turned}
    assert not held & {text_key(left) for left, _ in pairs}
    documents = list(heldout.readers.documents(text["en"]))
    trained = list(training_documents(documents, excluded["en"], dropped))
    assert not any(row["en"] in text for row in rows for text in trained)
    prose = (tmp_path / "h" / "text" / "en.txt").read_text().split("\n\n")[:-1]
    assert 5 <= len(prose) <= 60
    assert not {" ".join(document.splitlines()) for document in prose} & set(trained)


def test_translations_of_held_out_strings_are_excluded_from_either_side(tmp_path: Path) -> None:
    excluded = {"en": {"a held out string"}, "de": {"eine übersetzung"}}
    dropped: dict[str, int] = {}
    pairs = [("A held-out string", "Anders"), ("Something else", "Eine Übersetzung!"), ("Kept", "Behalten")]
    assert list(training_pairs(pairs, "en-de", excluded, dropped)) == [("Kept", "Behalten")]
    assert dropped == {"held-out pairs": 2}


LETTERS = st.text(st.sampled_from("aAbß éĖ.,-–ｱアｶﾞ각ㅏ\u0301\u0308 \u200b1½İ"), max_size=150)


@given(texts=st.lists(LETTERS, min_size=1, max_size=8), other=LETTERS)
def test_the_first_characters_tell_what_the_whole_key_tells(texts: list[str], other: str) -> None:
    keys = {text_key(text) for text in texts}
    held = heldout.HeldOut(keys)
    assert all((text in held) == (text_key(text) in keys) for text in [*texts, other, texts[0] + other, other + texts[0]])
