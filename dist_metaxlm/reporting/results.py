"""The types of what runs, evaluations and studies write as JSON and the reports read.

A field that is not required is absent in files of older versions, or of a run that did not measure it.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.reporting.records import Gate as Gate
from dist_metaxlm.reporting.records import GateCheck as GateCheck
from dist_metaxlm.reporting.records import Items as Items
from dist_metaxlm.reporting.records import StudyBaselines as StudyBaselines


class LanguageRetrieval(TypedDict):
    """Retrieval of a language against English on held-out strings; P@1 by layer."""

    candidates: int
    counted: bool
    """Whether it has enough candidates to be part of the mean."""
    to_english: list[float]
    from_english: list[float]


class RetrievalMeans(TypedDict):
    """Means over the counted languages and both directions."""

    per_layer_mean: list[float]
    best_layer: int | None
    mean_p_at_1: float | None
    """At the best layer."""


class Accuracy(TypedDict):
    """On hidden words."""

    words: int
    top1: float
    """Share whose first guess is right, and of whose first five guesses one is."""
    top5: float


class Guess(TypedDict):
    """A predicted token."""

    token: str
    score: float


class FilledMask(TypedDict):
    """A sentence with a hidden token and predictions."""

    language: str
    text: str
    """With `<mask>`."""
    expected: NotRequired[str]
    probability: NotRequired[float]
    """Of the hidden word, in the examples of an evaluation, as the next two."""
    rank: NotRequired[int]
    """How many other tokens are at least as probable."""
    predictions: list[Guess]
    chosen: NotRequired[str]
    """`highest probability` or `random`."""


class WordsFound(TypedDict):
    """Accuracy on hidden words; None without words."""

    en: Accuracy | None
    others: Accuracy | None
    """Of all other languages' words together."""


class FillMask(WordsFound):
    """The same with every language."""

    languages: dict[str, Accuracy | None]


class FillMaskResult(FillMask):
    """The same of a model, with examples."""

    examples: list[FilledMask]


class Evaluation(TypedDict, total=False):
    """Evaluation of a phase on held-out text: evaluation/PHASE.json."""

    phase: str
    parameters: int
    window: int
    perplexity: dict[str, float | None]
    prose_perplexity: dict[str, float | None]
    retrieval: dict[str, LanguageRetrieval]
    per_layer_mean: list[float]
    """As in `RetrievalMeans`, and the next two."""
    best_layer: int | None
    mean_p_at_1: float | None
    min_candidates: int
    languages: list[str] | str | None
    """What the phase trained on, as its recipe has it."""
    fill_mask: FillMaskResult
    seconds: float


class OverlapScores(TypedDict):
    """Retrieval of a language by shared tokens: P@1."""

    candidates: int
    counted: bool
    to_english: float
    from_english: float


class Overlap(TypedDict):
    """Retrieval by the tokens that two sentences share."""

    retrieval: dict[str, OverlapScores]
    mean_p_at_1: float | None


class Frequencies(TypedDict):
    """A table of word frequencies for each language, as a model."""

    perplexity: dict[str, float | None]
    prose_perplexity: dict[str, float | None]
    fill_mask: FillMask


class Baselines(TypedDict, total=False):
    """What needs no model: evaluation/baselines.json."""

    key: str
    """Names data and settings."""
    overlap: Overlap | None
    chance: float | None
    frequencies: Frequencies | None


class Interval(TypedDict):
    """Mean and half the 95% confidence interval of `n` values; the half width of one value is None."""

    mean: float
    half_width: float | None
    n: int


class LanguageInterval(Interval):
    """The same with the language's script."""

    script: str


class TransferTable(TypedDict):
    """Scores of a task that was learnt in one language, over seeds."""

    source_language: str
    source: Interval | None
    """None: the source language was not tested."""
    others: Interval | None
    all: Interval
    """Mean over all tested languages, the source included, as XTREME averages."""
    gap: Interval | None
    """`source` minus `others`, seed by seed."""
    languages: dict[str, LanguageInterval]
    scripts: dict[str, Interval]


class Ways(TypedDict):
    """P@1 by layer in both directions."""

    to_english: list[float]
    from_english: list[float]


class Space(TypedDict):
    """How two languages lie in one space, by layer; None where it is not defined."""

    translations: list[float]
    """Mean cosine of translations, and of other pairs."""
    random: list[float | None]
    cka: list[float | None]


class LanguageResult(TypedDict, total=False):
    """A language of a retrieval or alignment task; scores by layer."""

    script: str
    candidates: int
    distinct: int
    cosine: Ways
    csls: Ways
    translations: list[float]
    """As in `Space`, and the next two."""
    random: list[float | None]
    cka: list[float | None]
    sentences: int
    words: int
    cut: int
    """Word alignment: words beyond the encoder's longest input; retrieval: sentences longer than it."""
    reference: str
    aer: list[float]
    precision: list[float]
    recall: list[float]
    f1: list[float]


class TaskResult(TypedDict, total=False):
    """A task on an encoder: retrieval and alignment have layers, fine-tuned tasks a table, failed ones only `error`."""

    error: str
    kind: str
    languages: dict[str, LanguageResult]
    per_layer: dict[str, list[float]]
    """Score -> mean over languages, by layer."""
    layer: int
    """Fixed beforehand."""
    best_layer: int
    pooling: str
    extraction: str
    words: str
    metric: str
    settings: dict[str, Any]
    seeds: list[int]
    examples: dict[str, Any]
    """train and dev: their number, test: that of each language."""
    files: dict[str, Any]
    """Names of the files of train, dev and, by language, test."""
    dev: list[float]
    """Best score on the development set, by seed."""
    scores: list[dict[str, dict[str, float]]]
    """By seed: language -> score -> value."""
    table: TransferTable
    xtreme: float
    """Score of the task in XTREME's tables."""
    seconds: float


class Measured(TypedDict):
    """A study's measures of a checkpoint; all but English are means over the other languages."""

    english_nll: float | None
    others_nll: float | None
    retrieval: float | None
    retrieval_csls: float | None
    cka: float | None
    margin: float | None


class CheckpointFigures(Measured):
    """The same with layers and languages."""

    by_layer: dict[str, list[float]]
    layer: int
    languages: dict[str, dict[str, float | None]]


class LossPoint(TypedDict):
    """Training losses of an arm at a number of tokens."""

    phase: str
    tokens: int
    losses: dict[str, float]


class CurvePoint(Measured):
    """Measures of a checkpoint on the way."""

    phase: str
    tokens: int


class ArmResult(TypedDict):
    """A finished arm of a study, for one seed: its result.json."""

    label: str
    kind: str
    ratio: float | None
    seed: int
    tokens: int
    english_share: float | None
    final: CheckpointFigures
    curve: list[CurvePoint]
    loss: list[LossPoint]
    tasks: dict[str, TaskResult]
    figures: dict[str, float | None]
    """Measure, or TASK:FIGURE -> value."""
    learning_rate_sum: NotRequired[float]
    """Sum of the learning rate over all steps."""
    seconds: float
    recipe: dict[str, Any]


Verdict = Literal["better", "worse", "no difference shown", "one seed"]


class ArmComparison(TypedDict):
    """Two phases minus a control, in one measure."""

    ratio: float
    control: str
    measure: str
    difference: Interval
    verdict: Verdict
    primary: NotRequired[bool]
    """Whether the outcome was declared primary before the study began; the others are description."""
    bootstrap: NotRequired[list[float] | None]
    """Ends of the 95% interval over seeds, items and languages; of measures with outcomes of items."""
    p: NotRequired[float | None]
    """By bootstrap, or by a t test over seeds."""
    p_holm: NotRequired[float | None]
    """Corrected for the number of primary comparisons."""


class Comparisons(TypedDict):
    """Arms and their comparisons."""

    arms: dict[str, dict[str, Interval]]
    """Label -> measure -> its interval over seeds."""
    comparisons: list[ArmComparison]
    verdict: str


class Measure(TypedDict):
    """What a measure of a study means."""

    meaning: str
    higher_is_better: bool


class Study(Comparisons):
    """study.json."""

    size: str
    parameters: int
    tokens: int
    ratios: list[float]
    seeds: list[int]
    finished: int
    asked: int
    measures: dict[str, Measure]
    primary: NotRequired[list[str]]
    baselines: NotRequired[StudyBaselines | None]
    gate: NotRequired[Gate | None]
    results: list[ArmResult]
    environment: Environment
