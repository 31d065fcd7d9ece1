"""Scores equal independently written references on hundreds of cases, among them CJK, Arabic, Thai and empty answers."""

from __future__ import annotations

import random
import re
import string
import unicodedata

import numpy as np
import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.alignment import alignment, linear_cka
from dist_metaxlm.evaluation.measures.answers import MLQA_LANGUAGES, answer_scores
from dist_metaxlm.evaluation.measures.csls import csls_precision_at_1
from dist_metaxlm.evaluation.measures.retrieval import precision_at_1
from dist_metaxlm.evaluation.measures.span_f1 import tagging_scores

WORDS = {
    language: words.split()
    for language, words in {
        "en": 'the a an House, house; don\'t "quoted" 1,000 U.S. of Anna —',
        "es": "el la los un unas Casa casas ¿qué? niño, 3.5",
        "de": "der die das ein eines Haus, Häuser „Zitat“ größer",
        "vi": "của là cái những Nhà nước, Việt Nam",
        "ar": "البيت بيت ال الكتاب، كتاب؟ في القاهرة",
        "hi": "घर का पानी। दिल्ली, में",
        "zh": "北京 是 中国的首都。 2008年 Olympic 奥运会 、 人",
        "th": "กรุงเทพ มหานคร เป็น เมืองหลวง",
        "ja": "東京は 日本の 首都です。 カタカナ",
    }.items()
}


def phrases(language: str, count: int, rng: random.Random) -> list[str]:
    """Phrases of up to five words; some empty, some of punctuation alone."""
    glue = "" if language in ("zh", "th", "ja") else " "
    made = [glue.join(rng.choices(WORDS[language], k=rng.randrange(0, 6))) for _ in range(count)]
    return [rng.choice(["", "。", " !? ", phrase]) if rng.random() < 0.1 else phrase for phrase in made]


def reference_words(text: str, rules: str) -> list[str]:
    """Words by the rules of the SQuAD and MLQA scripts, written step by step from their description."""
    if rules == "squad":
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return [word for word in text.split() if word not in {"a", "an", "the"}]
    text = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    articles = {
        "en": {"a", "an", "the"},
        "es": {"un", "una", "unos", "unas", "el", "la", "los", "las"},
        "vi": {"của", "là", "cái", "chiếc", "những"},
        "de": {"ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des"},
    }
    if rules == "ar":
        return re.sub("ال", " ", text).split()
    if rules == "zh":
        words, rest = [], ""
        for c in text:
            if 0x4E00 <= ord(c) <= 0x9FA5:
                words += [*rest.split(), c]
                rest = ""
            else:
                rest += c
        return words + rest.split()
    # one word may hold an article between non-word characters; here none does
    return [word for word in text.split() if word not in articles.get(rules, set())]


def reference_scores(prediction: str, answers: list[str], rules: str) -> tuple[float, float]:
    best_f1 = best_exact = 0.0
    for answer in answers:
        said, right = reference_words(prediction, rules), reference_words(answer, rules)
        left, same = list(right), 0
        for word in said:
            if word in left:
                left.remove(word)
                same += 1
        best_f1 = max(best_f1, 2 * same / (len(said) + len(right)) if same else 0.0)
        best_exact = max(best_exact, float(" ".join(said) == " ".join(right)))
    return best_f1, best_exact


@pytest.mark.parametrize(
    ("metric", "language"),
    [*(("mlqa", language) for language in MLQA_LANGUAGES), *(("squad", language) for language in WORDS)],
)
def test_answers_score_as_the_scripts_score_them(metric, language):
    rng = random.Random(f"{metric}{language}")
    right, near = 0, 0
    for number in range(250):
        prediction, *answers = phrases(language, rng.randrange(2, 5), rng)
        if rng.random() < 0.3:
            answers[0] = prediction.upper()
        scores = answer_scores({"q": answers}, {"q": prediction}, metric, language)
        expected = reference_scores(prediction, answers, language if metric == "mlqa" else "squad")
        assert (scores["f1"], scores["exact_match"]) == pytest.approx(expected), (number, prediction, answers)
        right += scores["exact_match"] == 1
        near += 0 < scores["f1"] < 1
    assert right > 20
    # Thai and Japanese have no words for SQuAD's rules: there an answer is right or wrong
    assert near > 20 or (metric == "squad" and language in ("th", "ja", "zh"))


def test_questions_are_averaged_and_one_without_an_answer_scores_0():
    answers = {"a": ["the cat"], "b": ["dog", "a dog"], "c": ["x"]}
    scores = answer_scores(answers, {"a": "Cat!", "b": "big dog"}, "squad", "en")
    assert scores == {"f1": pytest.approx((1 + 2 / 3) / 3), "exact_match": pytest.approx(1 / 3)}


def test_empty_answers_follow_the_scripts():
    # the same text, but no common word: exact match 1, F1 0, as both scripts have it
    assert answer_scores({"a": ["the"]}, {"a": ""}, "squad", "en") == {"f1": 0.0, "exact_match": 1.0}
    assert answer_scores({"a": ["。"]}, {"a": ""}, "mlqa", "zh") == {"f1": 0.0, "exact_match": 1.0}


def test_mlqa_has_rules_for_its_languages_only():
    with pytest.raises(UserError, match="no rules for answers in 'th'"):
        answer_scores({"a": ["x"]}, {"a": "x"}, "mlqa", "th")


def spans_iob2(tags: list[str]) -> set[tuple[str, int, int]]:
    """Spans of IOB2 tags; an I- that follows another type or O begins a span, as conlleval has it."""
    found, start, kind = set(), 0, None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and kind == name
        if kind is not None and not goes_on:
            found.add((kind, start, place))
        if not goes_on:
            start, kind = place, None if prefix == "O" else name
    return found


def spans_of_runs(tags: list[str]) -> set[tuple[str, int, int]]:
    """Every run of one tag is a span: what seqeval makes of tags without prefixes that do not begin with S or X."""
    starts = [place for place, tag in enumerate(tags) if place == 0 or tags[place - 1] != tag]
    return {(tags[start], start, end) for start, end in zip(starts, [*starts[1:], len(tags)], strict=True)}


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        (["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"], spans_iob2),
        (["NOUN", "VERB", "ADJ", "PUNCT", "DET"], spans_of_runs),
    ],
)
def test_tagging_scores_are_those_of_spans(labels, spans):
    rng = random.Random(5)
    for _ in range(220):
        gold = [rng.choices(labels, k=rng.randrange(1, 15)) for _ in range(rng.randrange(1, 6))]
        predicted = [[tag if rng.random() < 0.6 else rng.choice(labels) for tag in tags] for tags in gold]
        truth = {(n, *span) for n, tags in enumerate(gold) for span in spans(tags)}
        found = {(n, *span) for n, tags in enumerate(predicted) for span in spans(tags)}
        same, scores = len(truth & found), tagging_scores(gold, predicted)
        assert scores["precision"] == pytest.approx(same / len(found) if found else 0)
        assert scores["recall"] == pytest.approx(same / len(truth) if truth else 0)
        assert scores["span_f1"] == pytest.approx(2 * same / (len(found) + len(truth)) if same else 0)
        pairs = [a == b for one, other in zip(gold, predicted, strict=True) for a, b in zip(one, other, strict=True)]
        assert scores["token_accuracy"] == pytest.approx(sum(pairs) / len(pairs))


def test_what_seqeval_makes_of_s_and_x_is_kept():
    # it reads a leading S as "single": every SYM is a span of its own; and an X that ends a sentence is no span at all
    assert tagging_scores([["SYM", "SYM"]], [["SYM", "NOUN"]])["recall"] == 0.5
    assert tagging_scores([["NOUN", "X"]], [["NOUN", "X"]])["span_f1"] == 1.0
    assert tagging_scores([["X"]], [["X"]])["span_f1"] == 0.0


def test_retrieval_is_what_loops_over_all_pairs_find():
    generator = torch.Generator().manual_seed(3)
    for case in range(200):
        n, k = 4 + case % 9, 1 + case % 12
        queries = torch.randn(2, n, 5, generator=generator)
        candidates = queries + torch.randn(2, n, 5, generator=generator) * (0.5 + case % 4)
        for layer in range(2):
            a, b = (side[layer].double().numpy() for side in (queries, candidates))
            cosine = [[np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
            near_a = [np.mean(sorted(row)[-k:]) for row in cosine]
            near_b = [np.mean(sorted(row[j] for row in cosine)[-k:]) for j in range(n)]
            csls = [[2 * cosine[i][j] - near_a[i] - near_b[j] for j in range(n)] for i in range(n)]
            expected = [sum(int(np.argmax(row)) == i for i, row in enumerate(table)) / n for table in (cosine, csls)]
            assert precision_at_1(queries, candidates)[layer] == pytest.approx(expected[0])
            assert csls_precision_at_1(queries, candidates, k)[layer] == pytest.approx(expected[1])


def test_csls_forgives_a_hub():
    # the third candidate is near everything; only CSLS sees through it
    queries = torch.tensor([[[1.0, 0.0, 0.4], [0.0, 1.0, 0.4], [0.5, 0.5, 1.0]]])
    candidates = torch.tensor([[[1.0, -0.9, 0.0], [-0.9, 1.0, 0.0], [0.6, 0.6, 0.6]]])
    assert precision_at_1(queries, candidates)[0] < csls_precision_at_1(queries, candidates, 3)[0] == 1.0


def test_alignment_of_known_spaces():
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(1, 60, 8, generator=generator)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    same = alignment(base, base * 3)
    assert same["translations"][0] == pytest.approx(1.0, abs=1e-5)
    assert abs(same["random"][0]) < 0.1
    turned = alignment(base, base @ turn)
    assert turned["cka"][0] == pytest.approx(1.0, abs=1e-6)
    assert abs(turned["translations"][0]) < 0.6
    unrelated = torch.randn(60, 8, generator=generator)
    assert linear_cka(base[0], unrelated) < 0.3
    assert linear_cka(base[0], torch.ones(60, 8)) is None
    cosines = torch.nn.functional.cosine_similarity(base[0][:, None], unrelated[None], dim=-1)
    off = (cosines.sum() - cosines.diagonal().sum()) / (60 * 59)
    assert alignment(base, unrelated[None])["random"][0] == pytest.approx(float(off), abs=1e-6)


def test_accuracy_is_that_of_scikit_learn():
    from sklearn.metrics import accuracy_score

    from dist_metaxlm.evaluation.measures.transfer import accuracy

    rng = random.Random(6)
    for _ in range(200):
        gold = rng.choices("abc", k=rng.randrange(1, 40))
        predicted = rng.choices("abc", k=len(gold))
        assert accuracy(gold, predicted) == pytest.approx(accuracy_score(gold, predicted))
