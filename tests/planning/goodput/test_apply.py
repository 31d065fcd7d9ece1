"""A plan's layout in a recipe file and a DeepSpeed file, and back."""

from __future__ import annotations

import pytest

from dist_metaxlm.cli.plan import main
from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.cluster import parse_cluster
from dist_metaxlm.planning.goodput.applied import recipe_with_layout
from dist_metaxlm.planning.plan import plan
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.load import load_recipe, shipped_recipes


def test_the_layout_of_the_plan_is_what_the_files_say(tmp_path, capsys):
    output = tmp_path / "mine.yaml"
    words = ["--recipe", "xlmr-base", "--cluster", "8xH100", "parallel.tensor=2", "parallel.pipeline=1"]
    main(["apply", *words, "--output", str(output), "--choose", "2"])
    best = plan(load_recipe("xlmr-base", words[4:]), parse_cluster("8xH100"), {"tensor", "pipeline"})[1]
    recipe = load_recipe(output)
    assert recipe.parallel.layout(8) == best.layout
    followed = follow_file(recipe, str(tmp_path / "mine.json"))
    assert followed.parallel == recipe.parallel
    assert followed.training.precision == "bf16"
    before = load_recipe("xlmr-base")
    assert recipe.model_copy(update={"parallel": before.parallel}) == before
    assert "# XLM-R base" in output.read_text(encoding="utf-8")
    assert str(output) in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        main(["apply", *words, "--output", str(output)])


@pytest.mark.parametrize("name", shipped_recipes())
def test_comments_of_every_recipe_stay(name):
    layout = Layout(tensor=2, data=4, zero_stage=1, sequence=True, micro_batch_tokens=4096)
    before = load_recipe(name)
    if before.whole_model:
        layout = Layout(data=8, micro_batch_tokens=4096)
    text, recipe, commented = recipe_with_layout(name, [], layout)
    assert commented
    assert recipe.parallel.layout(8) == layout
    assert text.count("#") > 2


def test_other_overrides_are_written_too(tmp_path):
    text, recipe, commented = recipe_with_layout("quickstart", ["seed=7"], Layout(micro_batch_tokens=512))
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert not commented
    assert recipe.seed == 7
    assert load_recipe(path) == recipe


def test_a_flow_section_and_its_other_fields_are_read(tmp_path):
    source = tmp_path / "mine.yaml"
    text, _, _ = recipe_with_layout("quickstart", [], Layout(micro_batch_tokens=512))
    section = text[text.index("parallel:") : text.index("training:")]
    source.write_text(text.replace(section, "parallel: {zero_stage: 0, join_seconds: 9}\n\n"), encoding="utf-8")
    _, recipe, _ = recipe_with_layout(str(source), [], Layout(micro_batch_tokens=1024))
    assert (recipe.parallel.zero_stage, recipe.parallel.join_seconds, recipe.parallel.micro_batch_tokens) == (1, 9, 1024)
    source.write_text(
        text.replace(section, "parallel:\n    join_seconds: 9  # mine\n    zero_stage: 0\n\n"), encoding="utf-8"
    )
    text, recipe, commented = recipe_with_layout(str(source), [], Layout(micro_batch_tokens=1024))
    assert commented
    assert recipe.parallel.join_seconds == 9
    assert "# mine" in text
