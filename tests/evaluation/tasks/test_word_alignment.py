"""Word alignment: error rate against a reference written on its own, formats of gold files, scores of an encoder."""

from __future__ import annotations

import random
import shutil

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.alignment_scores import (
    dictionary_counts,
    dictionary_figures,
    gold_counts,
    gold_figures,
)
from dist_metaxlm.evaluation.tasks.alignment_files import GoldSettings, read_dictionary, read_gold
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN, TaskSpec
from dist_metaxlm.evaluation.tasks.text_encoder import TextEncoder
from dist_metaxlm.evaluation.tasks.word_alignment import evaluate_alignment, link_words, read_alignment

PAIRS = [("the dog sees a house", "der Hund sieht ein Haus"), ("a river", "Fluss")]


def reference_scores(found, sure, possible):
    """AER, precision, recall and F1 of lists of link sets, by the definition of Och and Ney."""
    a = [(n, link) for n, links in enumerate(found) for link in links]
    s = [(n, link) for n, links in enumerate(sure) for link in links]
    hits_s = len([link for link in a if link in s])
    hits_p = len([(n, link) for n, link in a if link in possible[n] or link in sure[n]])
    precision = hits_p / len(a) if a else 0.0
    recall = hits_s / len(s) if s else 0.0
    f1 = 0.0 if precision + recall == 0 else 2 / (1 / precision + 1 / recall) if precision and recall else 0.0
    aer = 1.0 - (hits_s + hits_p) / (len(a) + len(s)) if a or s else 0.0
    return {"aer": aer, "precision": precision, "recall": recall, "f1": f1}


def test_error_rate_is_that_of_the_definition_on_300_random_cases():
    rng, empty = random.Random(6), 0
    for case in range(300):
        rows, columns, pairs = rng.randint(1, 7), rng.randint(1, 7), rng.randint(1, 4)
        cells = [(i, j) for i in range(rows) for j in range(columns)]

        def drawn(share, cells=cells, pairs=pairs):
            return [{cell for cell in cells if rng.random() < share} for _ in range(pairs)]

        found, sure, also = (drawn(rng.choice([0.0, 0.1, 0.3, 0.6])) for _ in range(3))
        found = [set() for _ in found] if case % 10 == 0 else found
        empty += not any(found) and not any(sure)
        possible = [s | p for s, p in zip(sure, also, strict=True)]
        tensors = []
        for links in (found, sure, possible):
            tensor = torch.zeros(pairs, rows, columns, dtype=torch.bool)
            for n, of in enumerate(links):
                for i, j in of:
                    tensor[n, i, j] = True
            tensors.append(tensor)
        assert gold_figures(gold_counts(*tensors).tolist()) == pytest.approx(reference_scores(found, sure, also), abs=1e-12)
    assert empty > 3


def test_a_dictionary_judges_only_words_with_a_translation_in_the_sentence():
    listed, found = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    listed[0, 0, 0] = listed[0, 1, 1] = listed[0, 1, 2] = True
    found[0, 0, 0] = found[0, 1, 3] = found[0, 2, 1] = found[0, 3, 3] = True
    # links 0-0, 1-3 and 2-1 touch judged words, 0-0 is right; judged are rows 0, 1 and columns 0, 1, 2
    figures = dictionary_figures(dictionary_counts(found, listed).tolist())
    assert figures == pytest.approx({"precision": 1 / 3, "recall": 2 / 5, "f1": 4 / 11})


@pytest.mark.parametrize(
    ("name", "text", "settings", "form", "base"),
    [
        ("a.gold", "0-0 1-1 2p2 3?3\n0p0 1-0\n", GoldSettings(True), "pharaoh", 0),
        ("a.talp", "1-1 2-2 3p3 4p4\n1p1 1-2\n", GoldSettings(False, base=1), "pharaoh", 1),
        ("a.txt", "1 1 1 S\n1 2 2\n1 5 -99 S\n1 3 3 P\n1 4 4 P 0.5\n\n2 1 1 P\n2 2 1 S\n", GoldSettings(True), "naacl", 1),
        ("b.txt", "\n1 0 0 S\n1 1 1\n1 2 2 P\n1 3 3 P\n2 0 0 P\n2 1 0\n", GoldSettings(True, "naacl", 0), "naacl", 0),
    ],
)
def test_gold_formats(tmp_path, name, text, settings, form, base):
    (tmp_path / name).write_text(text, encoding="utf-8")
    read = read_gold(PAIRS, tmp_path / name, settings)
    assert read.sure == [{(0, 0), (1, 1)}, {(1, 0)}]
    assert read.possible == [{(0, 0), (1, 1), (2, 2), (3, 3)}, {(0, 0), (1, 0)}]
    assert read.other[1] == ["Fluss"]
    assert (read.facts["format"], read.facts["base"]) == (form, base)


def test_pairs_are_numbered_as_the_shared_task_wraps_them(tmp_path):
    pairs = [(f"<s snum={n:04d}> {a} </s>", f"<s snum={n:04d}> {b} </s>") for n, (a, b) in zip((7, 9), PAIRS, strict=True)]
    (tmp_path / "a.txt").write_text("0009 2 1\n7 1 1 P\n", encoding="utf-8")
    read = read_gold(pairs, tmp_path / "a.txt", GoldSettings(True))
    assert (read.sure, read.possible) == ([set(), {(1, 0)}], [{(0, 0)}, {(1, 0)}])
    assert read.english == [pair[0].split() for pair in PAIRS]
    # a part of a larger set: as many numbers as pairs, so they are the pairs in order
    (tmp_path / "part.txt").write_text("0044 2 1\n31 1 1 P\n", encoding="utf-8")
    assert read_gold(PAIRS, tmp_path / "part.txt", GoldSettings(True)).possible == [{(0, 0)}, {(1, 0)}]
    (tmp_path / "from0.txt").write_text("0 2 1\n", encoding="utf-8")
    assert read_gold(PAIRS, tmp_path / "from0.txt", GoldSettings(True)).possible == [{(1, 0)}, set()]
    with pytest.raises(UserError, match="pair 1 is numbered 0007 and 8"):
        read_gold([(pairs[0][0], "<s snum=8> x </s>")], tmp_path / "a.txt", GoldSettings(True))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("0-0\n", GoldSettings(True), "has 1 line of links for 2 pairs of sentences"),
        (
            "0-0\n2-0\n",
            GoldSettings(True),
            r"line 2: the link 2-0 is outside the 2 words of its first sentence, counted from 0",
        ),
        ("0-0\n0-1\n", GoldSettings(True), "outside the 1 word of its second sentence"),
        ("0-0\n1-0\n", GoldSettings(False), "outside the 1 word of its first sentence"),
        ("0-0\n\n", GoldSettings(True, base=1), r"outside .* counted from 1; correct it, or set gold_base \(0\)"),
        ("0-0\n0:0\n", GoldSettings(True), "line 2 has '0:0', which is no link"),
        ("1 1 1\n1 2 X\n", GoldSettings(True), "line 2 is no link"),
        ("1 1 1\n2 1 1\n3 1 1\n", GoldSettings(True), "line 3 names pair 3, and there are 2, from 1 to 2"),
        ("1 1 1\n1 6 1\n", GoldSettings(True), "line 2: the link 6-1 is outside the 5 words"),
    ],
)
def test_what_is_wrong_in_a_gold_file_is_named(tmp_path, text, settings, message):
    (tmp_path / "gold").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_gold(PAIRS, tmp_path / "gold", settings)


def test_dictionary(tmp_path):
    (tmp_path / "words").write_text("dog\tHund\nHouse haus\n\nriver\tTHE\n", encoding="utf-8")
    pairs = [("The dog's house, dog!", "Hund Haus."), PAIRS[1]]
    assert read_dictionary(pairs, tmp_path / "words").sure == [{(2, 1), (3, 0)}, set()]
    swapped = [(b, a) for a, b in pairs]
    assert read_dictionary(swapped, tmp_path / "words", 2).sure == [{(1, 2), (0, 3)}, set()]
    with pytest.raises(UserError, match="lists no two words"):
        read_dictionary(swapped, tmp_path / "words")
    (tmp_path / "words").write_text("dog Hund\nto sleep schlafen\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2 has 3 columns"):
        read_dictionary(pairs, tmp_path / "words")


@pytest.fixture
def data(tmp_path):
    """A sentence beside itself as German (gold) and as Thai (dictionary); French has nothing to compare with."""
    english = ["house dog river stone sees", "takes makes", "stone house"]
    more = {
        "de-en": {"test.de": english, "test.gold": ["0-0 1-1 2-2 3-3 4-4", "0-0 1p1", ""]},
        "en-th": {"test.th": english, "dictionary.txt": ["house house", "dog dog"]},
        "fr-en": {"test.fr": english},
    }
    for place, files in more.items():
        files["test.en"] = english
        (tmp_path / "alignment" / place).mkdir(parents=True)
        for name, lines in files.items():
            (tmp_path / "alignment" / place / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("words", ["mean", "first", "pieces"])
@pytest.mark.parametrize("extraction", ["argmax", "itermax", "sinkhorn"])
def test_a_sentence_beside_itself_is_linked_word_by_word(model_folder, data, words, extraction):
    texts = read_alignment("alignment", BUILT_IN["alignment"], data, ["de", "th"])
    assert texts["de"].facts["first"] == "other"
    result = evaluate_alignment(TextEncoder(model_folder), texts, extraction, words, max_tokens=20)
    assert (result["layer"], len(result["per_layer"]["f1"])) == (1, 3)
    german, thai = result["languages"]["de"], result["languages"]["th"]
    assert (german["sentences"], german["words"], german["cut"]) == (3, 18, 0)
    if extraction != "sinkhorn":  # an inner product may be larger with another word than with itself
        # nine links are found; gold has six sure and one possible, and nothing of the last sentence
        assert german["aer"] == pytest.approx([1 - (6 + 7) / (9 + 6)] * 3)
        assert german["recall"] == [1.0] * 3
        assert thai["f1"] == [1.0] * 3
    assert "aer" not in thai
    assert result["per_layer"]["aer"] == german["aer"]


def test_words_that_are_cut_are_counted_and_linked_with_nothing(model_folder, tmp_path):
    long = " ".join(["house", "dog"] * 60)
    (tmp_path / "x.tsv").write_text(f"{long}\t{long}\n", encoding="utf-8")
    (tmp_path / "x.gold").write_text(" ".join(f"{n}-{n}" for n in range(120)) + "\n", encoding="utf-8")
    spec = TaskSpec(kind="alignment", test=["{lang}.tsv"], gold=["{lang}.gold"])
    for name in ("tsv", "gold"):
        shutil.move(tmp_path / f"x.{name}", tmp_path / f"de.{name}")
    result = evaluate_alignment(TextEncoder(model_folder), read_alignment("mine", spec, tmp_path))
    german = result["languages"]["de"]
    kept = (german["words"] - german["cut"]) // 2
    assert 10 <= kept < 60
    assert german["recall"][0] == pytest.approx(kept / 120)
    assert german["precision"][0] == 1.0


def test_pieces_link_words_where_any_of_them_are_linked():
    states = torch.eye(6)[None, :4]
    other = torch.eye(6)[None, [0, 2, 3, 5]]
    owned = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]])
    other_owned = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]])
    found = link_words(states, other, owned, other_owned, "argmax", "pieces")[0].nonzero().tolist()
    # the other side's last piece is like none, and 0 is what it shares with piece 1 of the first word
    assert [pair for pair in found if pair != [0, 3]] == [[0, 0], [1, 1], [1, 2]]


def test_missing_files_and_unknown_codes_are_named(data):
    spec = BUILT_IN["alignment"]
    with pytest.raises(UserError, match="fr has neither a gold alignment nor a dictionary beside it"):
        read_alignment("alignment", spec, data)
    with pytest.raises(UserError, match="none of the languages sw is there, only de, fr, th"):
        read_alignment("alignment", spec, data, ["sw"])
    with pytest.raises(UserError, match="task alignment: there is no folder"):
        read_alignment("alignment", spec, data / "nothing")
    with (data / "alignment" / "de-en" / "test.en").open("a") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match="ends after line 3"):
        read_alignment("alignment", spec, data, ["de"])
    shutil.move(data / "alignment" / "fr-en", data / "alignment" / "qq-en")
    shutil.move(data / "alignment" / "qq-en" / "test.fr", data / "alignment" / "qq-en" / "test.qq")
    with pytest.raises(UserError, match="'qq' is no known language code"):
        read_alignment("alignment", spec, data)
