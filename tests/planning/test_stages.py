"""Pipeline stages: every part once, the costliest stage as cheap as any cut allows."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_metaxlm.planning.stages import balanced_stages, idle_share, model_stages, part_costs
from dist_metaxlm.recipe.load import load_recipe


@given(st.lists(st.floats(0.0, 100.0), min_size=2, max_size=9), st.data())
def test_every_part_is_placed_once_and_no_cut_has_a_cheaper_costliest_stage(costs: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(costs)))
    stages = balanced_stages(costs, count)
    assert len(stages) == count
    assert [block for stage in stages for block in stage.blocks] == list(range(len(costs) - 2))
    assert [stage.first for stage in stages] == [True] + [False] * (count - 1)
    assert [stage.last for stage in stages] == [False] * (count - 1) + [True]

    def cost(first: bool, blocks: range, last: bool) -> float:
        return costs[0] * first + sum(costs[1 + block] for block in blocks) + costs[-1] * last

    cuts = [(0, *inner, len(costs)) for inner in combinations(range(1, len(costs)), count - 1)]
    optimum = min(max(sum(costs[a:b]) for a, b in zip(cut, cut[1:], strict=False)) for cut in cuts)
    assert max(cost(s.first, s.blocks, s.last) for s in stages) == pytest.approx(optimum)


def test_seven_blocks_on_three_stages_and_three_on_four() -> None:
    assert [len(stage.blocks) for stage in balanced_stages([0.0, *[1.0] * 7, 1.5], 3)] == [3, 3, 1]
    assert sorted(len(stage.blocks) for stage in balanced_stages([0.0, *[1.0] * 3, 1.0], 4)) == [0, 1, 1, 1]


def test_a_large_vocabulary_takes_blocks_off_the_last_stage() -> None:
    model = load_recipe("xlmr-base").model
    costs = part_costs(model, 512, 0.15)
    assert 1.0 < costs[-1] / costs[1] < 10.0
    stages = model_stages(model, 512, 0.15, 4)
    assert len(stages[-1].blocks) < len(stages[0].blocks)
    with pytest.raises(AssertionError, match="cannot be cut"):
        balanced_stages(costs, model.layers + 3)


def test_the_idle_share_is_that_of_a_pipeline_and_grows_with_unequal_stages() -> None:
    even = balanced_stages([0.0, *[1.0] * 8, 0.0], 4)
    assert [len(stage.blocks) for stage in even] == [2, 2, 2, 2]
    for micro_batches in (1, 4, 16):
        assert idle_share([0.0, *[1.0] * 8, 0.0], even, micro_batches) == pytest.approx(3 / (micro_batches + 3))
    assert idle_share([0.0, *[1.0] * 8, 2.0], even, 16) > 3 / 19
    assert idle_share([0.0, 1.0, 1.0], balanced_stages([0.0, 1.0, 1.0], 1), 1) == 0.0
    # By hand: stages of 1 and 3, two micro-batches: 1 + 3 + 3 = 7; one stage works 2 of them, the other 6.
    assert idle_share([1.0, 3.0], balanced_stages([1.0, 3.0], 2), 2) == pytest.approx(1 - 8 / 14)


def test_with_muon_every_stage_has_a_block() -> None:
    heavy_head = [0.0, 1.0, 1.0, 1.0, 1.0, 9.0]
    assert [len(stage.blocks) for stage in balanced_stages(heavy_head, 2)] == [4, 0]
    assert [len(stage.blocks) for stage in balanced_stages(heavy_head, 2, with_blocks=True)] == [3, 1]
    assert [len(stage.blocks) for stage in balanced_stages(heavy_head, 4, with_blocks=True)] == [1, 1, 1, 1]
    for layers in (1, 4, 7):
        costs = [0.0, *[1.0] * layers, 20.0]
        for stages in range(1, layers + 1):
            cut = balanced_stages(costs, stages, with_blocks=True)
            assert [block for stage in cut for block in stage.blocks] == list(range(layers))
            assert all(stage.blocks for stage in cut)
