from __future__ import annotations

from collections import defaultdict

import pytest

from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import PhaseConfig


def phase(mixing: str = "sum", group: int = 8) -> PhaseConfig:
    return PhaseConfig.model_validate(
        {
            "steps": 50,
            "sequence_length": 16,
            "mask_rate": 0.25,
            "mixing": mixing,
            "learning_rate": {"peak": 1.0},
            "objectives": [
                {"name": "mlm", "batch_tokens": 256, "weight": 2.0},
                {"name": "tlm", "batch_tokens": 128},
                {"name": "contrast", "pairs": 16, "group": group, "layer": 1, "max_tokens": 8},
            ],
        }
    )


def taken(config: PhaseConfig, step: int, ranks: int, micro: int | None) -> tuple[dict[str, list[int]], dict[str, float]]:
    """All samples of a step per objective over all ranks, and the sum of factor * items as a check of the weights."""
    samples: dict[str, list[int]] = defaultdict(list)
    factors = {}
    for rank in range(ranks):
        for micro_step in StepPlan(config, "cross", 5, rank, ranks, micro).at(step):
            name = micro_step.objective.name
            samples[name] += range(micro_step.first, micro_step.first + micro_step.count)
            factors[name] = micro_step.factor
    return {name: sorted(values) for name, values in samples.items()}, factors


@pytest.mark.parametrize("mixing", ["sum", "draw"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("micro", [None, 16, 48])
def test_any_layout_takes_the_same_samples_with_the_same_factors(mixing: str, ranks: int, micro: int | None) -> None:
    config = phase(mixing)
    for step in range(12):
        assert taken(config, step, ranks, micro) == taken(config, step, 1, None)


def test_denominators_are_each_objectives_own() -> None:
    samples, factors = taken(phase(), 3, 1, None)
    assert samples["mlm"] == list(range(3 * 16, 4 * 16))
    assert factors["mlm"] == pytest.approx(2.0 / (16 * 4))
    assert factors["tlm"] == pytest.approx(1.0 / (8 * 4))
    assert factors["contrast"] == pytest.approx(1.0 / 16)


def test_draw_takes_one_objective_a_step_by_weight_and_loses_no_sample() -> None:
    config = phase("draw")
    plan = StepPlan(config, "cross", 5, 0, 1, None)
    counts: dict[str, int] = defaultdict(int)
    for step in range(400):
        micro_steps = plan.at(step)
        names = {m.objective.name for m in micro_steps}
        assert len(names) == 1
        name = names.pop()
        batch = {"mlm": 16, "tlm": 8, "contrast": 16}[name]
        assert micro_steps[0].first == counts[name] * batch
        counts[name] += 1
    assert counts["mlm"] / 400 == pytest.approx(0.5, abs=0.08)


def with_xlco(pairs: int = 48, **more: int) -> PhaseConfig:
    tree = phase().model_dump(mode="json")
    return PhaseConfig.model_validate(
        tree
        | {
            "objectives": [
                tree["objectives"][0],
                {"name": "xlco", "pairs": pairs, "layer": 1, "max_tokens": 8, "weight": 3.0, **more},
            ]
        }
    )


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("micro", [None, 15, 32])
def test_xlco_is_cut_between_examples_of_two_pairs(ranks: int, micro: int | None) -> None:
    config = with_xlco()
    assert taken(config, 5, ranks, micro) == taken(config, 5, 1, None)
    own = [m for m in StepPlan(config, "cross", 5, 1, ranks, micro).at(5) if m.objective.name == "xlco"]
    assert all(m.first % 2 == m.count % 2 == 0 for m in own)
    assert all(m.count // 2 * 15 <= (micro or 10**9) for m in own)  # 15 tokens the longest sequence
    assert {m.factor for m in own} == {3.0 / 24}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_xlcos_groups_are_whole_on_a_rank_or_shared_by_all(ranks: int) -> None:
    config = with_xlco(group=16)  # three groups of eight examples
    assert taken(config, 5, ranks, 15) == taken(config, 5, 1, None)
    for rank in range(ranks):
        own = [m for m in StepPlan(config, "cross", 5, rank, ranks, 15).at(5) if m.objective.name == "xlco"]
        assert [(m.first - 5 * 48) // 16 for m in own] == [0, 1, 2]
        assert {m.count for m in own} == {16 // ranks}
        assert {m.factor for m in own} == {3.0 / 24}


def test_examples_that_do_not_divide_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"xlco: pairs 20 is 10 examples, not a multiple of 4 ranks; nearest: 16"):
        StepPlan(with_xlco(20), "cross", 5, 0, 4, None)
    words = r"xlco: neither its 4 groups nor its group of 12 pairs can be shared by 8 ranks; nearest: group 16 and pairs 48"
    with pytest.raises(UserError, match=words):
        StepPlan(with_xlco(48, group=12), "cross", 5, 0, 8, None)


def test_ranks_take_the_same_objective_in_each_micro_step() -> None:
    plans = [StepPlan(phase("draw"), "cross", 5, rank, 4, 16) for rank in range(4)]
    for step in range(20):
        assert len({tuple(m.objective.name for m in plan.at(step)) for plan in plans}) == 1


def test_batches_that_do_not_divide_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        StepPlan(phase(), "cross", 5, 0, 3, None)
    message = str(caught.value)
    assert "batch_tokens 256 is 16 windows" in message
    assert "nearest: 240" in message
    assert "batch_tokens 128 is 8 windows" in message
    assert "nearest: group 9 and pairs 18" in message
    assert message.endswith("or let 2 ranks share it, not 3")
