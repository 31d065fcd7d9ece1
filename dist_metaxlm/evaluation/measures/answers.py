"""Scores of extracted answers: exact match and word F1 by the rules of SQuAD 1.1 and MLQA.

SQuAD (arXiv 1606.05250, its script v1.1): lower case, without ASCII punctuation and the English articles, words at white
space. XTREME scores XQuAD and TyDiQA this way in every language. MLQA (arXiv 1910.07475, facebookresearch/MLQA
mlqa_evaluation_v1.py): without Unicode punctuation and the articles of the answer's language; in Chinese every Han
character is a word.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dist_metaxlm.errors import UserError

_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"\sال^|ال",
}
MLQA_LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
_HAN = re.compile("[\u4e00-\u9fa5]")


def squad_normal(text: str) -> str:
    """Normalise a text as SQuAD 1.1 does before comparing."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(_ARTICLES["en"], " ", bare).split())


def mlqa_normal(text: str, language: str) -> str:
    """Normalise a text as MLQA does before comparing. Errors: UserError for a language that MLQA has no rules for."""
    if language not in MLQA_LANGUAGES:
        raise UserError(
            f"MLQA has no rules for answers in {language!r}, only for {', '.join(MLQA_LANGUAGES)}; set metric: "
            "squad in --tasks_file"
        )
    bare = "".join(character for character in text.lower() if not _is_punctuation(character))
    if language in _ARTICLES:
        bare = re.sub(_ARTICLES[language], " ", bare)
    if language == "zh":
        bare = _HAN.sub(lambda match: f" {match[0]} ", bare)
    return " ".join(bare.split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(prediction: str, answer: str, normal: Callable[[str], str]) -> float:
    """1.0 if the two texts are equal after `normal`, else 0.0."""
    return float(normal(prediction) == normal(answer))


def word_f1(prediction: str, answer: str, normal: Callable[[str], str]) -> float:
    """F1 of the words that both have, counted with repetitions; 0 if they share none, including empty texts."""
    said, right = normal(prediction).split(), normal(answer).split()
    same = sum((Counter(said) & Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(right)
    return 2 * precision * recall / (precision + recall)


def answer_scores(
    answers: Mapping[str, Sequence[str]], predictions: Mapping[str, str], metric: str, language: str
) -> dict[str, float]:
    """{f1, exact_match} in [0, 1]: means over all questions of the best score against any right answer.

    Args:
        answers: question -> right answers, at least one each.
        predictions: question -> answer; a question without one scores 0.
        metric: `squad` or `mlqa`.
        language: of the answers; only `mlqa` reads it.
    """
    normal = squad_normal if metric == "squad" else lambda text: mlqa_normal(text, language)
    f1 = exact = 0.0
    for question, right in answers.items():
        if question in predictions:
            f1 += max(word_f1(predictions[question], answer, normal) for answer in right)
            exact += max(exact_match(predictions[question], answer, normal) for answer in right)
    return {"f1": f1 / len(answers), "exact_match": exact / len(answers)}
