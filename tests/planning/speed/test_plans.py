"""Predicted time in plans: what more hardware must never do, what advice and refusals say, and how long planning takes."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.cli import plan as command
from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.cluster import parse_cluster, with_figures
from dist_metaxlm.planning.memory import estimate_memory
from dist_metaxlm.planning.plan import least_devices, plan
from dist_metaxlm.planning.speed.reasons import advise, best_rate, illegal_layouts
from dist_metaxlm.planning.speed.recipes import recipe_step_time
from dist_metaxlm.planning.speed.step import work_flops
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.load import load_recipe

FAST = settings(max_examples=8, deadline=None, derandomize=True)


@FAST
@given(
    figure=st.sampled_from(["memory", "memory_bandwidth", "bf16_flops", "inside.bandwidth", "between.bandwidth"]),
    factor=st.floats(1.0, 8.0),
    kind=st.sampled_from(["2x8xA100-40GB", "2x4xH100", "8xH200"]),
)
def test_better_hardware_is_never_slower(figure, factor, kind):
    recipe, cluster = load_recipe("xlmr-base", []), parse_cluster(kind)
    part, _, field = figure.rpartition(".")
    value = getattr(getattr(cluster, part) if part else cluster.device, field) * factor
    better = with_figures(cluster, [f"{figure}={value:.6e}"])
    assert plan(recipe, better)[0].seconds <= plan(recipe, cluster)[0].seconds * (1 + 1e-9)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(nodes=st.sampled_from([1, 2]), link=st.floats(1e8, 1e11))
def test_more_nodes_never_lower_the_best_total(nodes, link):
    recipe, cluster = load_recipe("xlmr-base", []), parse_cluster(f"{nodes}x2xH100", [f"between.bandwidth={link:.6e}"])
    assert best_rate(recipe, replace(cluster, nodes=2 * nodes)) >= best_rate(recipe, cluster)


@FAST
@given(tokens=st.integers(1, 64), data=st.integers(1, 64), precision=st.sampled_from(["bf16", "fp32"]))
def test_states_never_grow_with_the_zero_stage(tokens, data, precision):
    model, sizes = load_recipe("xlmr-large", []).model, []
    for stage in (1, 2, 3):
        memory = estimate_memory(model, Layout(data=data, zero_stage=stage), precision, 512 * tokens, 0.15)
        sizes.append(memory.weights + memory.gradients + memory.optimizer)
    assert sizes == sorted(sizes, reverse=True)


def test_the_items_add_up_and_operations_are_those_of_the_other_count():
    recipe, cluster = load_recipe("xlmr-base", []), parse_cluster("8xH100")
    timed = recipe_step_time(recipe, "meta", Layout(micro_batch_tokens=16384).on(8), cluster)
    assert timed.seconds == pytest.approx(sum(timed.items.values()))
    assert all(seconds >= 0 for seconds in timed.items.values())
    assert 0 < timed.mfu < cluster.device.product_efficiency
    from dist_metaxlm.planning.flops import step_flops
    from dist_metaxlm.planning.speed.recipes import model_shape, phase_works

    for name in ("xlmr-base", "modern-base"):
        recipe = load_recipe(name, [])
        for phase in recipe.phases.values():
            counted = sum(work_flops(model_shape(recipe.model), work) for work in phase_works(phase))
            extra = sum(o.other_flops(recipe.model, phase.sequence_length) for o in phase.objectives)
            assert counted == pytest.approx(step_flops(recipe.model, phase) - extra, rel=1e-6)


def test_a_pipeline_with_more_micro_batches_idles_less():
    recipe, cluster = load_recipe("xlmr-large", []), parse_cluster("8xH100")
    shares = []
    for tokens in (131072, 32768, 8192):
        layout = Layout(pipeline=4, micro_batch_tokens=tokens).on(8)
        timed = recipe_step_time(recipe, "meta", layout, cluster)
        shares.append(timed.items["bubble"] / timed.seconds)
    assert shares == sorted(shares, reverse=True)


def test_fields_of_the_command_line_are_obeyed_and_remedies_come_before_more_devices(capsys):
    words = ["--recipe", "xlmr-xl", "--cluster", "8x48GB", "--json", "parallel.tensor=2", "parallel.zero_stage=1"]
    command.main(words)
    facts = json.loads(capsys.readouterr().out)
    assert {(one["tensor"], one["zero_stage"]) for one in facts["layouts"]} == {(2, 1)}
    assert facts["layouts"][0]["price"] is None
    assert facts["layouts"][0]["tokens_per_second"] > 0
    best = plan(load_recipe("xlmr-xl", []), parse_cluster("1x1x48GB"))[0]
    assert best.fits
    assert best.layout.recompute != "none" or best.layout.offload_optimizer


def test_a_recipe_that_fits_nowhere_says_where_it_would():
    recipe, cluster = load_recipe("xlmr-xxl", []), parse_cluster("1x8x8GB")
    least = least_devices(recipe, cluster)
    assert least is not None
    assert plan(recipe, parse_cluster(f"{least // 8}x8x8GB"))[0].fits
    with pytest.raises(UserError, match=rf"does not fit on 8 devices.*take {least} devices"):
        command.main(["--recipe", "xlmr-xxl", "--cluster", "1x8x8GB"])


def test_advice_names_changes_that_fit_and_gain():
    settings_ = ["parallel.recompute=blocks", "parallel.tensor=4", "parallel.micro_batch_tokens=4096"]
    recipe, cluster = load_recipe("xlmr-large", settings_), parse_cluster("8xH100")
    advice = advise(recipe, cluster, plan(recipe, cluster))
    changes = {one.change for one in advice}
    assert "parallel.recompute=none" in changes
    assert "parallel.sequence=true" in changes
    assert [one.gain for one in advice] == sorted((one.gain for one in advice), reverse=True)
    assert all(one.gain > 0 for one in advice)


def test_illegal_layouts_have_the_sentence_of_training():
    refused = illegal_layouts(load_recipe("xlmr-base", []), parse_cluster("8xH100"))
    assert "does not divide" in refused["parallel.zero_stage=1 parallel.tensor=8"]
    assert "has no fp32 master weights" in refused["parallel.zero_stage=0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "8xH100", "--price_per_hour", "-1"], "--price_per_hour -1"),
        (["--cluster", "8xH100", "--hardware", "memory=0"], "positive number"),
        (["--cluster", "8xH100", "--hardware", "speed=3"], "no figure of a device"),
        (["--cluster", "8xH100", "--hardware", "between=string"], "unknown link 'string'"),
        (["--cluster", "8x0GB"], "0.1 to 10,000 GB"),
        (["--cluster", "99999x999xH100"], "more than 1,000,000"),
        (["--cluster", "8xH100", "--top", "0"], "--top 0"),
        (["--cluster", "8xH100", "parallel.tensor=5"], "parallel.tensor=5 does not divide"),
    ],
)
def test_mistakes_are_one_sentence(words, said):
    with pytest.raises(UserError, match=said):
        command.main(["--recipe", "xlmr-base", *words])


def test_planning_is_quick():
    recipe = load_recipe("xlmr-xl", [])
    start = time.process_time()
    plan(recipe, parse_cluster("128x8xH100"))
    assert time.process_time() - start < 4  # 1 s on a core of its own
