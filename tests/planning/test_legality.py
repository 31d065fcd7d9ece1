"""One answer to whether a layout is legal: planner, training, launcher and recipe give it alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_metaxlm.errors import UserError
from dist_metaxlm.launching.launch_job import Request, start
from dist_metaxlm.parallel.topology import Topology, filled_nodes
from dist_metaxlm.planning.cluster import Cluster, parse_cluster
from dist_metaxlm.planning.legality import is_legal, problems, refusal
from dist_metaxlm.planning.plan import plan
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.run.layout import check_layout

ROOT = Path(__file__).resolve().parents[2]
BASE = load_recipe("quickstart").model_dump()
LENGTHS = (48, 64, 126, 127)


def topology(cluster: Cluster) -> Topology:
    sizes = [cluster.devices_per_node] * cluster.nodes
    return Topology(0, cluster.world_size, 0, sizes[0], "test", filled_nodes(sizes))


def with_layout(recipe: Recipe, layout: Layout) -> Recipe:
    values = {name: getattr(layout, name) for name in ("tensor", "pipeline", "sequence", "zero_stage")}
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=values)})


@st.composite
def objectives(draw: st.DrawFn, length: int) -> list[dict[str, Any]]:
    chosen: list[dict[str, Any]] = [{"name": "mlm", "batch_tokens": length * draw(st.sampled_from([1, 6, 8, 12, 24, 48]))}]
    kind = draw(st.sampled_from(["none", "none", "contrast", "xlco", "dwa"]))
    if kind == "contrast":
        group = draw(st.sampled_from([6, 8, 24]))
        chosen.append({"name": kind, "pairs": 2 * group, "group": group, "layer": 1, "max_tokens": 20})
    if kind == "xlco":
        chosen.append({"name": kind, "pairs": draw(st.sampled_from([12, 16])), "layer": 1, "queue": 8, "max_tokens": 20})
    if kind == "dwa":
        chosen.append({"name": kind, "batch_tokens": 12 * length, "layer": 1})
    return chosen


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    model = {
        "layers": draw(st.integers(1, 6)),
        "heads": heads,
        "hidden": 16 * heads,
        "ffn": draw(st.sampled_from([96, 120])),
    }
    precision = draw(st.sampled_from(["auto", "fp32", "bf16", "fp16"]))
    phases = {}
    for name in draw(st.sampled_from([("meta",), ("meta", "cross")])):
        length = draw(st.sampled_from(LENGTHS))
        own = {"sequence_length": length, "objectives": draw(objectives(length)), "steps": 4, "tokens": None}
        phases[name] = {**BASE["phases"][name], **own}
    parallel = {"offload_optimizer": draw(st.booleans()), "tensor_across_nodes": draw(st.booleans())}
    sections = {"model": model, "training": {"precision": precision}, "parallel": parallel, "data": {"max_pair_tokens": 48}}
    return Recipe.model_validate(
        {**BASE, **{name: {**BASE[name], **own} for name, own in sections.items()}, "phases": phases}
    )


clusters = st.builds(
    Cluster, nodes=st.integers(1, 3), devices_per_node=st.integers(1, 8), device=st.just(parse_cluster("8xH100").device)
)
wishes = st.builds(
    Layout, tensor=st.integers(1, 9), pipeline=st.integers(1, 9), sequence=st.booleans(), zero_stage=st.integers(0, 3)
)


def asked(recipe: Recipe, wish: Layout) -> Layout:
    """The wish with what the recipe decides of a layout, as planner and training have it."""
    return with_layout(recipe, wish).parallel.layout()


def listed(recipe: Recipe, cluster: Cluster) -> list[Layout]:
    try:
        plans = plan(recipe, cluster)
    except UserError:  # with no layout at all
        plans = []
    return [replace(one.layout, micro_batch_tokens=None) for one in plans]


def refused(recipe: Recipe, layout: Layout, cluster: Cluster) -> Iterator[str]:
    """What training says to a layout, phase by phase, where it refuses."""
    for phase in recipe.phases:
        sentence = ""
        try:
            check_layout(with_layout(recipe, layout), phase, topology(cluster), "bf16")
        except UserError as error:
            sentence = str(error)
        assert sentence == refusal(problems(recipe, layout, topology(cluster), phase, "bf16"))
        if sentence:
            yield sentence


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(), cluster=clusters, wish=wishes)
def test_what_the_planner_lists_trains_and_nothing_else_does(recipe: Recipe, cluster: Cluster, wish: Layout) -> None:
    layouts = listed(recipe, cluster)
    assert len(set(layouts)) == len(layouts)
    for layout in layouts:
        assert problems(recipe, layout, cluster, precision="bf16") == []
        assert not list(refused(recipe, layout, cluster)), layout
    wanted = asked(recipe, wish).on(cluster.world_size)
    sentences = list(refused(recipe, wanted, cluster))
    assert (wanted in layouts) != bool(sentences), wanted
    assert (wanted in layouts) == is_legal(recipe, wanted, cluster, precision="bf16")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(), cluster=clusters, wish=wishes)
def test_a_legal_layout_is_offered_on_the_ranks_at_hand(recipe: Recipe, cluster: Cluster, wish: Layout) -> None:
    layout = asked(recipe, wish)
    found = problems(recipe, layout, cluster, precision="bf16")
    for problem in found:
        assert problem.message.startswith(problem.reason)
        assert problem.message.endswith(problem.remedy)
        assert str(problem.value) in problem.message or problem.field.startswith("phases") or problem.value is True
    mended = layout
    for problem in reversed(found):  # sizes come first, and what is offered for them holds together with the rest
        mended = replace(mended, **problem.change)
    if not any(problem.field.startswith("phases") for problem in found):
        assert is_legal(recipe, mended, cluster, precision="bf16"), refusal(found)
    elif mended != layout:
        rest = problems(recipe, mended, cluster, precision="bf16")
        assert rest == [problem for problem in found if problem.field.startswith("phases")]


@pytest.mark.parametrize("pipeline", [7, 8])
def test_the_nearest_layout_is_legal_itself(pipeline: int) -> None:
    recipe = load_recipe("quickstart", ["model.layers=5", f"parallel.pipeline={pipeline}"])
    with pytest.raises(UserError, match=r"nearest legal layout: parallel\.pipeline=4$"):
        check_layout(recipe, "meta", Topology(0, 8, 0, 8, "single"))


def test_every_wrong_value_is_named_at_once() -> None:
    overrides = ["parallel.tensor=3", "parallel.pipeline=9", "parallel.zero_stage=3", "parallel.recompute_every=2"]
    recipe = load_recipe("quickstart", overrides, layout_later=True)
    found = problems(recipe, recipe.parallel.layout(), parse_cluster("7xH100"), "meta")
    fields = [problem.field for problem in found]
    assert fields == [
        "parallel.tensor",
        "parallel.pipeline",
        "parallel.zero_stage",
        "parallel.recompute_every",
        "phases.meta.objectives",
    ]
    assert refusal(found).count("parallel.tensor=1 parallel.pipeline=1") == 1, "a shared remedy is given once"


def test_copies_of_the_model_and_ranks_are_both_named() -> None:
    recipe = load_recipe("quickstart", ["parallel.tensor=2", "parallel.pipeline=2"])
    with pytest.raises(UserError) as caught:
        check_layout(recipe, "joint", Topology(0, 20, 0, 20, "single"))
    assert "does not divide over 5 copies of the model (20 ranks, 4 to a copy)" in str(caught.value)
    assert str(caught.value).endswith("or start 16 ranks (4 copies)")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_without_zero_is_refused_when_the_recipe_is_read(precision: str) -> None:
    overrides = ["parallel.zero_stage=0", f"training.precision={precision}"]
    with pytest.raises(UserError, match=f"zero_stage=0 with {precision} has no fp32 master weights"):
        load_recipe("quickstart", overrides)
    automatic = load_recipe("quickstart", ["parallel.zero_stage=0"])
    assert problems(automatic, automatic.parallel.layout()) == []
    [problem] = problems(automatic, automatic.parallel.layout(), precision=precision)
    assert problem.change == {"zero_stage": 1}


def test_a_layout_is_checked_where_another_section_is_wrong() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("quickstart", ["model.hiden=3", "parallel.pipeline=2", "parallel.zero_stage=2"])
    assert "did you mean hidden" in str(caught.value)
    assert "parallel.zero_stage=2 does not work with parallel.pipeline=2" in str(caught.value)


STARTS = [
    ([], 4),
    (["parallel.tensor=2", "parallel.pipeline=2", "parallel.zero_stage=0"], 4),
    (["parallel.tensor=3", "parallel.pipeline=9"], 4),
    (["parallel.pipeline=2", "parallel.zero_stage=3", "parallel.tensor=4"], 4),
    (["parallel.zero_stage=0", "training.precision=bf16"], 2),
    (["parallel.tensor=2", "parallel.pipeline=2"], 20),
    (["parallel.tensor=4", "phases.meta.sequence_length=126", "parallel.sequence=true"], 4),
]


@pytest.mark.parametrize(("overrides", "ranks"), STARTS)
def test_the_launcher_says_the_same(overrides: list[str], ranks: int, tmp_path: Path) -> None:
    if "126" in str(overrides):
        overrides = [*overrides, "phases.meta.objectives.mlm.batch_tokens=8064", "data.max_pair_tokens=126"]
    hostfile = tmp_path / "hosts"
    hostfile.write_text(f"localhost slots={ranks}\n", encoding="utf-8")
    script = (str(ROOT / "launch/pretrain.py"), "--phase", "meta", *overrides)
    request = Request(str(hostfile), "deepspeed", None, 29500, True, script)
    recipe = load_recipe("quickstart", overrides, layout_later=True)
    found = problems(
        recipe, recipe.parallel.layout(ranks), Topology(0, ranks, 0, ranks, "test", hosts=("localhost",)), "meta"
    )
    if not found:
        start(request, lambda _: None)
        return
    with pytest.raises(UserError) as caught:
        start(request, lambda _: None)
    assert str(caught.value) == refusal(found)


@pytest.mark.parametrize(("overrides", "ranks"), [STARTS[1], STARTS[3], STARTS[4]])
def test_a_rank_says_the_same_before_anything_starts(overrides: list[str], ranks: int, tmp_path: Path) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(ranks)}
    done = subprocess.run(
        [sys.executable, ROOT / "launch/pretrain.py", "--phase", "meta", "--dry_run", *overrides],
        env={**os.environ, **variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29507", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    recipe = load_recipe("quickstart", overrides, layout_later=True)
    found = problems(recipe, recipe.parallel.layout(ranks), Topology(0, ranks, 0, ranks, "test"), "meta")
    assert done.returncode == (2 if found else 0), done.stderr
    assert not found or f"error: {refusal(found)}\n" in done.stderr
    assert list(tmp_path.iterdir()) == []
