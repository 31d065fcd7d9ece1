"""Layouts: all legal ones, no illegal one, in the stated order."""

from __future__ import annotations

import pytest

from dist_metaxlm.data.steps import check_batches
from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.cluster import parse_cluster
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.planning.plan import MEMORY_SHARE, plan
from dist_metaxlm.planning.plan_table import plan_table
from dist_metaxlm.planning.stages import model_stages
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.sharing import undivided


def test_cluster_strings():
    cluster = parse_cluster("16x8xH100")
    assert (cluster.nodes, cluster.devices_per_node, cluster.device.name, cluster.world_size) == (16, 8, "H100", 128)
    assert parse_cluster("8xa100-80gb").nodes == 1


@pytest.mark.parametrize(
    "text", ["", "H100", "16x8", "x8xH100", "8xx8xH100", "-1x8xH100", "0x8xH100", "2x0xH100", "1.5x8xH100"]
)
def test_malformed_clusters_are_named_with_an_example(text):
    with pytest.raises(UserError, match="16x8xH100"):
        parse_cluster(text)


def test_unknown_devices_are_named():
    with pytest.raises(UserError, match="unknown device 'TPU'"):
        parse_cluster("4x8xTPU")


@pytest.mark.parametrize("name", ["xlmr-large", "xlmr-xxl"])
def test_every_layout_is_legal_and_listed_once(name):
    recipe, cluster = load_recipe(name, []), parse_cluster("16x8xH100")
    plans = plan(recipe, cluster)
    layouts = [found.layout for found in plans]
    assert len(set(layouts)) == len(layouts) > 20
    for found in plans:
        layout = found.layout
        assert layout.tensor * layout.pipeline * layout.data == 128
        assert recipe.model.heads % layout.tensor == 0
        assert 8 % layout.tensor == 0
        assert layout.pipeline <= recipe.model.layers + 2
        for phase_name, phase in recipe.phases.items():
            # What training cuts (training/pretrain.py), and nothing else.
            stages = model_stages(recipe.model, phase.sequence_length, phase.mask_rate, layout.pipeline)
            assert found.stage_blocks[phase_name] == [len(stage.blocks) for stage in stages]
        assert (found.idle > 0) == (layout.pipeline > 1)
        assert found.host.saving >= 12 * count_parameters(recipe.model).total / 128
        assert layout.pipeline == 1 or layout.zero_stage <= 1
        assert layout.tensor > 1 or not layout.sequence
        assert found.micro_batch_tokens % 512 == 0
        assert found.fits == (found.memory.total <= MEMORY_SHARE * 80e9)
        # What the plan proposes, the recipe accepts.
        parallel = load_recipe(name, found.layout.overrides()).parallel
        assert (parallel.tensor, parallel.pipeline, parallel.zero_stage) == (
            layout.tensor,
            layout.pipeline,
            layout.zero_stage,
        )
        for phase_name, phase in recipe.phases.items():
            check_batches(phase, phase_name, layout.data)


def test_layouts_that_an_objective_refuses_are_left_out():
    recipe = load_recipe("xlmr-base", ["phases.cross.objectives=[{name: dwa, batch_tokens: 524288, layer: 8}]"])
    layouts = [found.layout for found in plan(recipe, parse_cluster("8xH100"))]
    assert layouts
    assert all(layout.tensor == layout.pipeline == 1 and layout.zero_stage <= 1 for layout in layouts)


def test_plain_data_parallelism_is_first_where_it_fits():
    first = plan(load_recipe("xlmr-large", []), parse_cluster("1x8xH100"))[0]
    assert first.fits
    assert (first.layout.tensor, first.layout.pipeline, first.layout.zero_stage) == (1, 1, 1)


def test_the_largest_recipe_needs_more_than_zero_1():
    plans = plan(load_recipe("xlmr-xxl", []), parse_cluster("16x8xH100"))
    assert plans[0].fits
    assert not any(
        found.fits for found in plans if found.layout.tensor == found.layout.pipeline == 1 and found.layout.zero_stage == 1
    )
    times = [found.seconds for found in plans if found.fits]
    assert times == sorted(times)
    assert [found.fits for found in plans] == sorted((found.fits for found in plans), reverse=True)


def test_nothing_fits_is_said_not_hidden():
    recipe, cluster = load_recipe("xlmr-xxl", []), parse_cluster("1x1xA100-40GB")
    plans = plan(recipe, cluster)
    assert plans
    assert not any(found.fits for found in plans)
    assert "Take more or larger devices" in plan_table(recipe, cluster, plans, 3)[-1]


def test_a_cluster_that_no_batch_divides_by_is_refused():
    with pytest.raises(UserError, match="cannot be cut over 17"):
        plan(load_recipe("xlmr-base", []), parse_cluster("17x1xH100"))


def test_a_smaller_memory_gets_smaller_micro_batches():
    recipe = load_recipe("xlmr-large", [])
    tokens = [plan(recipe, parse_cluster(f"1x8x{kind}"))[0].micro_batch_tokens for kind in ("A100-40GB", "H100", "H200")]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[-1]


def test_xlco_is_planned_on_whole_models_with_its_memory_and_work():
    cross = "phases.cross.objectives=[{{name: mlm, batch_tokens: 1048576}}, {}]"
    xlco = "{name: xlco, pairs: 4096, layer: 8, max_tokens: 64, projection: false}"
    with_it, without = (
        load_recipe("xlmr-base", [cross.format(one), "phases.cross.objectives.mlm.weight=1"])
        for one in (xlco, "{name: contrast, pairs: 2048, group: 2048, layer: 8, max_tokens: 64}")
    )
    cluster = parse_cluster("2x8xH100")
    plans = plan(with_it, cluster)
    assert plans
    assert all(found.layout.tensor == found.layout.pipeline == 1 and found.layout.zero_stage < 2 for found in plans)
    assert all(undivided(with_it.phases["cross"], data) for data in (3, 4096))
    buffers = {found.layout: found.memory.buffers for found in plan(without, cluster)}
    model = with_it.model
    weights = (model.vocab_size + model.max_positions + 3) * 768 + 2 * 768 + 8 * (4 * 768 + 2 * 3072) * 768
    grouped = load_recipe(
        "xlmr-base", [cross.format(xlco.replace("layer", "group: 512, layer")), "phases.cross.objectives.mlm.weight=1"]
    )
    assert not undivided(grouped.phases["cross"], 8)
    assert undivided(grouped.phases["cross"], 3)
    same = next(found for found in plan(grouped, cluster) if found.layout.data == 16)
    # a rank of 16 holds 32 pairs of each group: 16 queries beside the 131072 + 256 keys
    assert same.memory.buffers - buffers[same.layout] > 6 * weights + 131328 * (768 * 4 + 12 * 16)
    for found in plans:
        extra = found.memory.buffers - buffers[found.layout]
        assert extra > 6 * weights + 131072 * 768 * 4
        assert extra < 1.3 * (6 * weights + 131072 * (768 * 4 + 12 * max(1, found.micro_batch_tokens // 127)))
