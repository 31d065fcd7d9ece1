"""The gate of the study, declared outcomes and their statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_tokenizer import train_tokenizer

from dist_metaxlm.errors import UserError
from dist_metaxlm.study.arms import JOINT, JOINT_TWICE, MATCHED, REPLAY, REVERSED, TWO_PHASE, WITH_CLM
from dist_metaxlm.study.gates import CANNOT, judge_gate
from dist_metaxlm.study.statistics import bootstrap, detectable, holm, paired_p
from dist_metaxlm.study.study import StudyOptions, primary_outcomes
from dist_metaxlm.study.verdict import summarise

MEASURES = {
    "english_nll": ("English loss", False),
    "others_nll": ("others' loss", False),
    "retrieval": ("retrieval", True),
    "retrieval_csls": ("CSLS", True),
}
UNTRAINED = {"english_nll": 9.0, "others_nll": 9.0, "retrieval": 0.055, "retrieval_csls": 0.07}
BASELINES = {
    "untrained": {str(seed): UNTRAINED for seed in (1, 2, 3)},
    "overlap": 0.17,
    "chance": 0.0035,
    "frequencies": {"english_nll": 6.3, "others_nll": 5.9},
}
LEARNT = {"english_nll": 5.2, "others_nll": 5.1, "retrieval": 0.4, "retrieval_csls": 0.45}


def runs(**arms: dict[str, float]) -> list[dict]:
    """Three seeds of arms with these figures, which differ a little between seeds."""
    labels = {"joint": (JOINT, None), "matched": (MATCHED, 0.5), "two": (TWO_PHASE, 0.5), "twice": (JOINT_TWICE, 0.5)}
    rows = []
    for arm, figures in arms.items():
        kind, ratio = labels[arm]
        for seed in (1, 2, 3):
            shifted = {name: value + 0.001 * (seed - 2) for name, value in figures.items()}
            label = kind if ratio is None else f"{kind} {ratio}"
            rows.append({"label": label, "kind": kind, "ratio": ratio, "seed": seed, "figures": shifted})
    return rows


def test_an_untrained_study_refuses_its_verdict():
    results = runs(joint=UNTRAINED, two={**UNTRAINED, "retrieval": 0.02}, matched=UNTRAINED)
    gate = judge_gate(results, BASELINES)
    assert not gate["passed"]
    verdict = summarise(results, MEASURES, ("retrieval",), None, gate)["verdict"]
    assert CANNOT in verdict
    assert "two phases are" not in verdict
    # without the gate the same figures would be a verdict
    assert "speak against two phases" in summarise(results, MEASURES, ("retrieval",))["verdict"]


@pytest.mark.parametrize(
    ("figures", "failed"),
    [
        ({}, set()),
        ({"retrieval": 0.16}, {"token overlap"}),
        ({"retrieval_csls": 0.06}, {"untrained"}),
        ({"english_nll": 5.85}, {"word frequencies - 0.5 nats"}),
        ({"others_nll": 5.45}, {"word frequencies - 0.5 nats"}),
    ],
)
def test_every_condition_of_the_gate_is_needed(figures, failed):
    results = runs(joint={**LEARNT, **figures}, two=LEARNT)
    gate = judge_gate(results, BASELINES)
    assert {check["baseline"] for check in gate["checks"] if not check["passed"]} == failed
    assert gate["passed"] == (not failed)
    assert (CANNOT in summarise(results, MEASURES, ("retrieval",), None, gate)["verdict"]) == bool(failed)
    # another single-phase arm that has learnt enough opens it; a two-phase arm does not
    assert judge_gate([*results, *runs(twice=LEARNT)], BASELINES)["passed"]
    assert judge_gate(runs(two=LEARNT), BASELINES) is None


def test_a_measure_without_a_figure_does_not_pass():
    assert not judge_gate(runs(joint=LEARNT), {**BASELINES, "overlap": None})["passed"]


def test_only_primary_outcomes_enter_the_verdict_and_are_corrected():
    rng = np.random.default_rng(1)
    results = runs(joint=LEARNT, two={**LEARNT, "retrieval": 0.5, "english_nll": 5.6})
    for result in results:
        result["figures"] = {name: value + rng.normal(0, 1e-3) for name, value in result["figures"].items()}
        result["figures"]["others_nll"] = 5.0 + 0.1 * (result["seed"] - 2) * (1 if result["kind"] == JOINT else -1)
    gate = judge_gate(results, BASELINES)
    summary = summarise(results, MEASURES, ("retrieval", "others_nll"), None, gate)
    assert "of 2 comparisons with the single-phase arms, 1 favour two phases and 0 are against them" in summary["verdict"]
    assert "3 seeds show, with a probability of 80%, true differences from 3.3 standard deviations" in summary["verdict"]
    primary = [item for item in summary["comparisons"] if item["primary"]]
    assert {item["measure"] for item in primary} == {"retrieval", "others_nll"}
    assert all(item["p_holm"] >= item["p"] for item in primary)
    described = next(item for item in summary["comparisons"] if item["measure"] == "english_nll")
    assert (described["verdict"], described.get("p_holm")) == ("worse", None)


def test_holm_and_t_against_references():
    from scipy.stats import ttest_rel

    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    a, b = [0.5, 0.62, 0.7, 0.4], [0.45, 0.6, 0.61, 0.41]
    assert paired_p([x - y for x, y in zip(a, b, strict=True)]) == pytest.approx(ttest_rel(a, b).pvalue)
    assert paired_p([0.1]) is None


def test_power_against_simulation():
    rng = np.random.default_rng(3)
    for seeds, rounded in ((3, 3.3), (5, 1.7), (10, 1.0)):
        size = detectable(seeds)
        assert size == pytest.approx(rounded, abs=0.06)
        draws = rng.normal(size, 1, (4000, seeds))
        t = draws.mean(1) / (draws.std(1, ddof=1) / np.sqrt(seeds))
        from scipy.stats import t as student

        assert (np.abs(t) > student.ppf(0.975, seeds - 1)).mean() == pytest.approx(0.8, abs=0.03)
    assert detectable(1) is None


def items(rate: float, seeds: int, rng: np.random.Generator, spread: float = 0.0) -> dict[int, dict]:
    """Outcomes of 3 languages with 200 strings; `spread`: deviation of the rate between seeds."""
    return {
        seed: {
            "retrieval": {
                code: [(float(rng.random() < rate + shift), 1) for _ in range(200)] for code in ("de", "sw", "zh")
            },
            "nll": {"en": [(5.0 * rate, 2)] * 10},
        }
        for seed, shift in enumerate(rng.normal(0, spread, seeds))
    }


def test_the_bootstrap_covers_items_and_languages_and_seeds():
    rng = np.random.default_rng(5)
    low, high, p = bootstrap(items(0.5, 5, rng), items(0.3, 5, rng), "retrieval")
    assert low < 0.2 < high
    assert p < 0.01
    inside = [bootstrap(items(0.4, 5, rng), items(0.4, 5, rng), "retrieval", n) for n in range(20)]
    assert sum(low < 0 < high for low, high, _ in inside) >= 17
    narrow, wide = (bootstrap(items(0.5, 5, rng, s), items(0.3, 5, rng), "retrieval") for s in (0.0, 0.15))
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
    # the quotient of sums, not the mean of quotients
    assert bootstrap(items(0.4, 3, rng), items(0.2, 3, rng), "english_nll")[:2] == pytest.approx((0.5, 0.5))
    assert bootstrap(items(0.4, 3, rng), items(0.2, 3, rng), "cka") is None


def test_outcomes_are_declared_before_the_study(tmp_path):
    options = StudyOptions(tmp_path)
    assert primary_outcomes(options) == ("english_nll", "others_nll", "retrieval")
    assert primary_outcomes(StudyOptions(tmp_path, tasks=("tatoeba", "udpos"))) == (
        "udpos:English",
        "udpos:others",
        "retrieval",
    )
    with pytest.raises(UserError, match="--primary xnli:English is no measure of this study"):
        primary_outcomes(StudyOptions(tmp_path, tasks=("udpos",), primary=("xnli:English",)))


def test_arms_that_separate_the_effects():
    from dist_metaxlm.recipe.load import load_recipe
    from dist_metaxlm.study.arms import learning_rate_sum, study_arms

    kinds = (TWO_PHASE, JOINT_TWICE, REVERSED, REPLAY, WITH_CLM)
    arms = {arm.kind: arm for arm in study_arms(load_recipe("quickstart"), 1_638_400, [0.25], [1], 0.3, 5, kinds)}
    assert set(arms) == set(kinds)
    two = arms[TWO_PHASE].recipe.phases
    assert {arm.tokens for arm in arms.values()} == {1_638_400}
    assert {arm.phases for arm in arms.values()} == {("meta", "cross")}
    # the restart control: the steps and schedules of meta+cross, all languages throughout
    twice = arms[JOINT_TWICE].recipe.phases
    assert [twice[name].steps for name in ("meta", "cross")] == [two[name].steps for name in ("meta", "cross")]
    assert twice["cross"] == two["cross"]
    assert twice["meta"].model_copy(update={"steps": 0}) == two["cross"].model_copy(
        update={"steps": 0, "learning_rate": twice["meta"].learning_rate}
    )
    assert arms[REVERSED].recipe.phases["meta"] == two["cross"]
    assert arms[REVERSED].recipe.phases["cross"].languages == ["en"]
    replay = arms[REPLAY].recipe.phases["cross"]
    assert replay.shares["en"] == pytest.approx((100 * 4096 + 300 * 2048 * 0.3) / (100 * 4096 + 300 * 2048))
    assert [of.name for of in arms[WITH_CLM].recipe.phases["meta"].objectives] == ["clm"]
    assert learning_rate_sum(arms[WITH_CLM]) == learning_rate_sum(arms[TWO_PHASE]) > 0


def test_outcomes_of_items_give_the_figures(tmp_path):
    """The stored outcomes of a model on strings have the means of its figures, and the gate's baselines are measured."""

    from dist_metaxlm.data.tokenizer import Tokenizer
    from dist_metaxlm.modeling.encoder import Encoder
    from dist_metaxlm.recipe.schema import ModelConfig
    from dist_metaxlm.study.measures import measure_items

    rng = np.random.default_rng(2)
    words = {code: [f"{code}{n}" for n in "abcdefgh"] for code in ("en", "de")}
    rows = [
        {code: " ".join(words[code][n] for n in order) for code in words}
        for order in (rng.integers(0, 8, 6) for _ in range(30))
    ]
    (tmp_path / "strings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train_tokenizer([text for row in rows for text in row.values()], tmp_path, 300)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.model")
    config = ModelConfig(layers=2, hidden=32, heads=2, ffn=64, vocab_size=max(301, tokenizer.vocab_size), max_positions=64)
    figures, outcomes = measure_items(Encoder(config, 5), tokenizer, tmp_path, 64)
    of_pairs = outcomes["retrieval"]["de"]
    assert sum(value for value, _ in of_pairs) / len(of_pairs) == pytest.approx(figures["retrieval"])
    for code, name in (("en", "english_nll"), ("de", "others_nll")):
        nats, hidden = (sum(column) for column in zip(*outcomes["nll"][code], strict=True))
        assert nats / hidden == pytest.approx(figures[name])
