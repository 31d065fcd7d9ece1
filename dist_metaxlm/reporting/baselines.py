"""What needs no model beside the figures of a run, and the sentence that says whether a phase is better than that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

from dist_metaxlm.reporting.metrics import UNTRAINED, log_mean
from dist_metaxlm.reporting.results import Baselines, Evaluation, Frequencies, WordsFound
from dist_metaxlm.reporting.sections import number

FREQUENCIES, OVERLAP, CHANCE = "word frequencies", "token overlap", "chance"


class Brief(TypedDict, total=False):
    """Main figures of a checkpoint or a baseline in a run's summary."""

    english_perplexity: float | None
    english_prose_perplexity: float | None
    other_perplexity: float | None
    fill_mask: WordsFound
    mean_p_at_1: float | None
    best_layer: int | None
    candidates_min: int | None
    """Least candidates of a counted language."""
    languages: int


class Standing(TypedDict):
    """Whether a phase is better than what needs no training."""

    better: list[str]
    """Labels of measures."""
    not_better: list[str]
    sentence: str
    """Empty without any comparison."""


def brief_of(result: Evaluation | Frequencies) -> Brief:
    """Perplexity and fill-mask accuracy of an evaluation or of the table of word frequencies."""
    perplexity, words = result.get("perplexity", {}), result.get("fill_mask")
    short: Brief = {
        "english_perplexity": perplexity.get("en"),
        "english_prose_perplexity": result.get("prose_perplexity", {}).get("en"),
        "other_perplexity": other_perplexity(perplexity),
    }
    if words:
        short["fill_mask"] = {"en": words["en"], "others": words["others"]}
    return short


def other_perplexity(perplexity: Mapping[str, float | None]) -> float | None:
    """Perplexities of all languages but English, averaged as losses are: over their logarithms."""
    return log_mean(value for language, value in perplexity.items() if language != "en")


def baseline_briefs(raw: Baselines | None) -> dict[str, Brief]:
    """Baseline -> its main figures, from evaluation/baselines.json; those that a run has."""
    if not raw:
        return {}
    briefs: dict[str, Brief] = {}
    frequencies, overlap = raw.get("frequencies"), raw.get("overlap")
    if frequencies:
        briefs[FREQUENCIES] = brief_of(frequencies)
    if overlap and overlap.get("mean_p_at_1") is not None:
        briefs[OVERLAP] = {"mean_p_at_1": overlap["mean_p_at_1"]}
    if raw.get("chance") is not None:
        briefs[CHANCE] = {"mean_p_at_1": raw["chance"]}
    return briefs


def _accuracy(group: Literal["en", "others"]) -> Callable[[Brief], float | None]:
    def read(brief: Brief) -> float | None:
        hidden = brief.get("fill_mask")
        words = hidden and hidden[group]
        return None if words is None else 100 * float(words["top5"])

    return read


_MEASURES: tuple[tuple[str, Callable[[Brief], float | None], bool, int, bool], ...] = (
    ("retrieval P@1", lambda brief: brief.get("mean_p_at_1"), True, 3, False),
    ("English perplexity", lambda brief: brief.get("english_perplexity"), False, 1, False),
    ("English prose perplexity", lambda brief: brief.get("english_prose_perplexity"), False, 1, False),
    ("others' perplexity", lambda brief: brief.get("other_perplexity"), False, 1, True),
    ("English words in the first five guesses (%)", _accuracy("en"), True, 1, False),
    ("others' words in the first five guesses (%)", _accuracy("others"), True, 1, True),
)
"""Label, value, whether higher is better, decimals, whether it asks for training in other languages than English."""


def standing(
    phase: str, briefs: Mapping[str, Brief], baselines: Mapping[str, Brief], languages: list[str] | str | None
) -> Standing:
    """Compare a phase with the untrained model and the baselines.

    Args:
        phase: which of `briefs`.
        briefs: main figures by checkpoint; `untrained` is a baseline.
        baselines: of `baseline_briefs`.
        languages: what the phase trained on, as its recipe has it.

    Returns:
        `better` and `not_better` (labels of the measures that have a baseline), and `sentence`, empty without any.
    """
    others = {**({UNTRAINED: briefs[UNTRAINED]} if UNTRAINED in briefs else {}), **baselines}
    better: list[str] = []
    not_better: list[str] = []
    won: list[str] = []
    lost: list[str] = []
    for label, value_of, higher, digits, multilingual in _MEASURES:
        value = value_of(briefs[phase])
        known = {name: limit for name, brief in others.items() if (limit := value_of(brief)) is not None}
        if value is None or not known or (multilingual and languages == ["en"]):
            continue
        beaten = all(value > limit if higher else value < limit for limit in known.values())
        beside = ", ".join(f"{name} {number(limit, digits)}" for name, limit in known.items())
        (better if beaten else not_better).append(label)
        (won if beaten else lost).append(f"{label} {number(value, digits)} ({beside})")
    sentence = ""
    if lost:
        sentence = f"{phase} is NOT better than every baseline: {'; '.join(lost)}"
        sentence += f". Better: {'; '.join(won)}" if won else ""
    elif won:
        sentence = f"{phase} is better than every baseline: {'; '.join(won)}"
    return {"better": better, "not_better": not_better, "sentence": sentence}
