"""Every shipped recipe parses, is fair between its phases, cites its numbers, and can be planned."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml

from dist_metaxlm.planning.cluster import parse_cluster
from dist_metaxlm.planning.plan import plan
from dist_metaxlm.recipe.load import load_recipe, shipped_recipes
from dist_metaxlm.recipe.origins import source_of
from dist_metaxlm.recipe.schema import Contrast

LARGE = ["annealed", "modern-base", "xlmr-base", "xlmr-large", "xlmr-xl", "xlmr-xxl"]
STAGED = {"three-stages": ["pretrain", "extend", "decay"], "decay-branch": ["meta", "half", "full"]}
SHAPES = {
    "annealed": (22, 768, 12, 1152),
    "modern-base": (22, 768, 12, 1152),
    "xlmr-base": (12, 768, 12, 3072),
    "xlmr-large": (24, 1024, 16, 4096),
    "xlmr-xl": (36, 2560, 32, 10240),
    "xlmr-xxl": (48, 4096, 32, 16384),
}


def text_of(name: str) -> str:
    return (resources.files("dist_metaxlm.recipe.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def test_all_of_them_are_shipped():
    assert set(shipped_recipes()) == {*LARGE, *STAGED, "quickstart"}


@pytest.mark.parametrize("name", [*LARGE, "quickstart"])
def test_three_phases_and_one_name(name):
    recipe = load_recipe(name, [])
    assert recipe.name == name
    assert set(recipe.phases) == {"meta", "cross", "joint"}
    assert recipe.phases["meta"].languages == ["en"]
    assert [objective.name for objective in recipe.phases["cross"].objectives] == ["mlm", "tlm", "contrast"]


@pytest.mark.parametrize("name", LARGE)
def test_shape_and_data(name):
    recipe = load_recipe(name, [])
    assert (recipe.model.layers, recipe.model.hidden, recipe.model.heads, recipe.model.ffn) == SHAPES[name]
    assert recipe.data.corpus == "files"
    assert recipe.data.text == recipe.data.bitext == {}
    assert yaml.safe_load(text_of(name))["data"]["text"] == {}


@pytest.mark.parametrize("name", LARGE)
def test_joint_sees_as_much_of_every_objective_as_meta_and_cross_together(name):
    phases = load_recipe(name, []).phases

    def seen(phase: str, objective: str) -> int:
        return sum(
            phases[phase].total_steps * (o.pairs if isinstance(o, Contrast) else o.batch_tokens)
            for o in phases[phase].objectives
            if o.name == objective
        )

    for objective in ("mlm", "tlm", "contrast"):
        assert seen("joint", objective) == seen("meta", objective) + seen("cross", objective) > 0


@pytest.mark.parametrize("name", LARGE)
def test_every_hyper_parameter_says_where_it_comes_from(name):
    assert "as in the paper" not in text_of(name)
    bare = []
    section = ""
    for line in text_of(name).splitlines():
        if line and not line.startswith((" ", "#")):
            section = line
        key, _, value = line.strip().partition(":")
        number = value.strip() and value.strip()[0].isdigit()
        # The comment at `learning_rate` or `alpha` speaks for the lines below it.
        spoken_for = "#" in section or key in ("seed", "peak", "warmup_steps", "decay_steps", "floor", "- {tokens")
        if number and "#" not in line and not spoken_for:
            bare.append(line)
    sizes = [
        line
        for line in bare
        if name in ("xlmr-xl", "xlmr-xxl") and line.strip().split(":")[0] in ("layers", "hidden", "heads", "ffn")
    ]
    assert bare == sizes
    rates = [line for line in text_of(name).splitlines() if line.strip().startswith("learning_rate:")]
    assert len(rates) == 3
    assert all("#" in line for line in rates)


@pytest.mark.parametrize("name", LARGE)
def test_planned_on_a_large_and_on_a_small_cluster(name):
    recipe = load_recipe(name, [])
    assert plan(recipe, parse_cluster("16x8xH100"))[0].fits
    layouts = [
        (p.layout.tensor, p.layout.pipeline, p.layout.zero_stage) for p in plan(recipe, parse_cluster("16x8xH100")) if p.fits
    ]
    assert (recipe.parallel.tensor, recipe.parallel.pipeline, recipe.parallel.zero_stage) in layouts
    assert plan(recipe, parse_cluster("8xH200"))


@pytest.mark.parametrize("name", STAGED)
def test_recipes_with_phases_of_their_own(name):
    recipe = load_recipe(name, [])
    assert recipe.name == name
    assert list(recipe.phases) == STAGED[name]
    assert all(source_of(recipe, phase) is not None for phase in STAGED[name][1:])
    assert recipe.data == load_recipe("quickstart").data, "prepared once for all of them"
    assert plan(recipe, parse_cluster("1x2xA100-40GB"))[0].fits


def test_the_quickstart_can_be_planned():
    assert plan(load_recipe("quickstart", []), parse_cluster("1x2xA100-40GB"))[0].fits


def test_the_annealed_recipe_unlocks_in_three_stages_with_mmberts_alphas():
    for name in ("cross", "joint"):
        phase = load_recipe("annealed", []).phases[name]
        assert phase.languages != "all"
        late = [language for point in phase.unlock for language in point.languages]
        assert [len(phase.languages), len(point_languages(phase, 0)), len(late)] == [60, 20, 40]
        total = phase.total_steps * phase.tokens_per_step
        assert [round(point.tokens / total, 3) for point in phase.unlock] == [0.767, 0.967]
        assert [(point.tokens, point.alpha) for point in phase.alpha] == list(
            zip([0, *(point.tokens for point in phase.unlock)], [0.7, 0.5, 0.3], strict=True)
        )


def point_languages(phase, tokens):
    late = {language for point in phase.unlock for language in point.languages if point.tokens > tokens}
    return [language for language in phase.languages if language not in late]
