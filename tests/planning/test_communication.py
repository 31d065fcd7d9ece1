"""Traffic between nodes, worked out by hand for small layouts."""

from __future__ import annotations

from typing import Any

import pytest

from dist_metaxlm.planning.communication import predict_traffic
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe

PLAIN = ("phases.meta.objectives=[{name: mlm, batch_tokens: 8192}]",)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", [*PLAIN, *overrides])


def test_data_parallel_nodes_send_their_gradients_around() -> None:
    parameters = count_parameters(recipe().model).total
    two, four = (predict_traffic(recipe("parallel.zero_stage=0"), "meta", nodes, 1) for nodes in (2, 4))
    assert two.by_node == (4 * parameters,) * 2
    assert four.busiest == pytest.approx(4 * parameters * 1.5)
    for stage in (1, 2, 3):
        assert predict_traffic(recipe(f"parallel.zero_stage={stage}"), "meta", 2, 1).busiest == 1.5 * two.busiest
    assert predict_traffic(recipe("training.precision=bf16", "parallel.zero_stage=1"), "meta", 2, 1).busiest == (
        0.75 * two.busiest
    )


def test_nothing_leaves_a_node_that_is_alone_and_rings_leave_each_node_once() -> None:
    assert predict_traffic(recipe(), "meta", 1, 4).total == 0
    assert predict_traffic(recipe(), "meta", 2, 4).busiest == pytest.approx(
        3 * 7 / 8 * 4 * count_parameters(recipe().model).total, rel=1e-6
    )


def test_tensor_groups_inside_nodes_send_only_gradients_out() -> None:
    inside = predict_traffic(recipe("parallel.tensor=2"), "meta", 2, 2)
    assert inside.busiest == pytest.approx(1.5 * 4 * count_parameters(recipe().model).total, rel=0.02)
    across = predict_traffic(recipe("parallel.tensor=2", "parallel.tensor_across_nodes=true"), "meta", 2, 1)
    model = recipe().model
    states: Any = 8192 * model.hidden * 4
    assert across.busiest == pytest.approx(states * (4 * model.layers + 1 + recipe().phase("meta").mask_rate))


def test_stages_send_states_and_the_ends_the_word_embedding() -> None:
    model = recipe().model
    states, words = 8192 * model.hidden * 4, 4 * model.vocab_size * model.hidden
    assert predict_traffic(recipe("parallel.pipeline=2"), "meta", 2, 1).by_node == (states + 2 * words, states + words)
    assert predict_traffic(recipe("parallel.pipeline=3"), "meta", 3, 1).by_node == (
        states + 2 * words,
        2 * states,
        states + words,
    )
    assert predict_traffic(recipe("parallel.pipeline=2"), "cross", 2, 1).busiest > 0
