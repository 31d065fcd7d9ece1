"""Arms of the study: the same steps, weights and data, equal budgets, the matched control; differences and their verdict."""

from __future__ import annotations

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.study.arms import CROSS_ONLY, JOINT, MATCHED, MEANING, META_ONLY, SIZES, TWO_PHASE, Arm, study_arms
from dist_metaxlm.study.verdict import judge, sentence, summarise

TOKENS = 1_638_400
MEASURES = {"english_nll": ("English loss", False), "retrieval": ("retrieval", True)}


def arms_of(*overrides: str, ratios=(0.25, 0.5), seeds=(1, 2), tokens=TOKENS, english=0.3) -> list[Arm]:
    return study_arms(load_recipe("quickstart", overrides), tokens, ratios, seeds, english)


def only(arms: list[Arm], kind: str, ratio: float | None = None) -> Arm:
    return next(arm for arm in arms if arm.kind == kind and arm.ratio == ratio)


def test_every_arm_has_its_budget():
    arms = arms_of()
    assert len(arms) == len({arm.name for arm in arms}) == 2 * (2 + 3 * 2)
    for arm in arms:
        expected = TOKENS * (1 - arm.ratio) if arm.kind == CROSS_ONLY else TOKENS
        assert arm.tokens == pytest.approx(expected, abs=4096)
        assert {phase.tokens_per_step for phase in arm.recipe.phases.values()} == {4096}
        assert arm.recipe.seed == arm.seed
    two = only(arms, TWO_PHASE, 0.25)
    assert [two.recipe.phases[name].steps for name in ("meta", "cross")] == [100, 300]
    assert two.recipe.phases["meta"].languages == ["en"]


def test_arms_differ_in_what_defines_them_and_in_nothing_else():
    trees = [arm.recipe.model_dump(mode="json") for arm in arms_of(seeds=(1,))]
    for tree in trees:
        del tree["phases"], tree["training"]
    assert all(tree == trees[0] for tree in trees)
    arms = arms_of(seeds=(1,))
    assert all(of.name != "contrast" for arm in arms for phase in arm.recipe.phases.values() for of in phase.objectives)
    joint, cross = only(arms, JOINT).recipe.phases["joint"], only(arms, TWO_PHASE, 0.5).recipe.phases["cross"]
    assert joint.model_copy(update={"steps": 0}) == cross.model_copy(update={"steps": 0})
    assert only(arms, CROSS_ONLY, 0.5).recipe.phases["joint"] == cross
    rates = {arm.recipe.phases[name].learning_rate.peak for arm in arms for name in arm.phases}
    assert rates == {3e-3}


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_matched_control_sees_what_two_phases_see(ratio):
    arms = arms_of(ratios=(ratio,), seeds=(1,), english=0.3)
    phases = only(arms, TWO_PHASE, ratio).recipe.phases
    mlm, tlm = (
        sum(phase.steps * of.batch_tokens for phase in phases.values() for of in phase.objectives if of.name == name)
        for name in ("mlm", "tlm")
    )
    english = phases["meta"].steps * 4096 + phases["cross"].steps * 2048 * 0.3
    matched = only(arms, MATCHED, ratio).recipe.phases["joint"]
    # batches come in whole windows
    assert sum(matched.steps * of.batch_tokens for of in matched.objectives if of.name == "tlm") == pytest.approx(
        tlm, abs=matched.steps * 64
    )
    assert matched.shares["en"] == pytest.approx(english / mlm)


def test_curves_have_points_and_all_checkpoints_are_kept():
    for arm in arms_of(seeds=(1,)):
        training = arm.recipe.training
        for phase in arm.recipe.phases.values():
            assert training.checkpoint_interval <= -(-phase.total_steps // 5) + training.log_interval
            assert training.keep_checkpoints > phase.total_steps // training.checkpoint_interval


@pytest.mark.parametrize(("size", "millions"), [("tiny", (0.9, 1.5)), ("small", (20, 30)), ("base", (120, 150))])
def test_sizes(size, millions):
    recipe = load_recipe("quickstart", [f"{key}={value}" for key, value in SIZES[size][1].items()])
    assert millions[0] < count_parameters(recipe.model).total / 1e6 < millions[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratios": (1.5,)}, "--ratios 1.5"),
        ({"ratios": ()}, "--ratios"),
        ({"seeds": (1, 1)}, "--seeds 1 1"),
        ({"tokens": 5000}, "give at least --tokens 16384"),
    ],
)
def test_settings_that_make_no_study(arguments, message):
    with pytest.raises(UserError, match=message):
        arms_of(**arguments)


def test_recipes_that_make_no_study():
    with pytest.raises(UserError, match="leaves out English"):
        arms_of("phases.cross.languages=[de, fr]")
    with pytest.raises(UserError, match="different sequence_length"):
        arms_of("phases.meta.sequence_length=64")
    recipe = load_recipe("quickstart")
    with pytest.raises(UserError, match="no phase 'cross'"):
        study_arms(recipe.model_copy(update={"phases": {"meta": recipe.phases["meta"]}}), TOKENS, [0.5], [1], 0.3)


def results(values: dict[str, list[tuple[float, float]]]) -> list[dict]:
    """Runs of arms with (English loss, retrieval) a seed."""
    rows = []
    for label, seeds in values.items():
        kind = next(kind for kind in sorted(MEANING, key=len, reverse=True) if label.startswith(kind))
        rows += [
            {
                "label": label,
                "kind": kind,
                "ratio": None if kind in (JOINT, META_ONLY) else 0.5,
                "seed": seed,
                "figures": {"english_nll": loss, "retrieval": found},
            }
            for seed, (loss, found) in enumerate(seeds)
        ]
    return rows


def test_verdict_follows_from_paired_differences():
    found = summarise(
        results(
            {
                "meta+cross 0.5": [(3.0, 0.40), (3.5, 0.20), (4.0, 0.30)],
                "joint": [(3.2, 0.30), (3.7, 0.11), (4.2, 0.21)],
                "joint matched 0.5": [(3.0, 0.45), (3.6, 0.22), (3.9, 0.36)],
            }
        ),
        MEASURES,
    )
    # the seeds differ by far more than the arms; only seed by seed is there a difference
    table = {(item["control"], item["measure"]): item["verdict"] for item in found["comparisons"]}
    assert table == {
        (JOINT, "english_nll"): "better",
        (JOINT, "retrieval"): "better",
        (MATCHED, "english_nll"): "no difference shown",
        (MATCHED, "retrieval"): "no difference shown",
    }
    assert "of 4 comparisons with the single-phase arms, 2 favour two phases and 0 are against them" in found["verdict"]
    assert "The numbers support two phases" in found["verdict"]
    assert "retrieval (n1/N = 0.5: +0.093 ±" in found["verdict"]
    assert found["arms"]["joint"]["retrieval"]["n"] == 3


def test_the_verdict_can_point_the_other_way_or_nowhere():
    ours = [(3.0, 0.1), (3.1, 0.2), (3.2, 0.15)]
    worse = summarise(results({"meta+cross 0.5": ours, "joint": [(a - 0.5, b + 0.3) for a, b in ours]}), MEASURES)
    assert worse["verdict"].startswith("The numbers speak against two phases")
    mixed = summarise(results({"meta+cross 0.5": ours, "joint": [(a - 0.5, b - 0.05) for a, b in ours]}), MEASURES)
    assert mixed["verdict"].startswith("The numbers point both ways")
    equal = summarise(results({"meta+cross 0.5": ours, "joint": ours}), MEASURES)
    assert equal["verdict"].startswith("The numbers show no difference")
    alone = summarise(results({"meta+cross 0.5": ours[:1], "joint": ours[:1]}), MEASURES)
    assert "one seed an arm" in alone["verdict"]
    assert "no verdict yet" in sentence([], MEASURES)


def test_judgement_needs_an_interval_without_zero():
    assert judge({"mean": 0.2, "half_width": 0.1}, True) == "better"
    assert judge({"mean": 0.2, "half_width": 0.1}, False) == "worse"
    assert judge({"mean": 0.1, "half_width": 0.1}, True) == "no difference shown"
    assert judge({"mean": 0.1, "half_width": None}, True) == "one seed"
