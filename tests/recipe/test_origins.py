"""Named phases and what they continue from: what a recipe may say, and the sentence for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.origins import Source, branch_steps, source_of, split_mark, successors

PHASE = "{steps: 5, objectives: [{name: mlm, batch_tokens: 2048}], learning_rate: {peak: 1.0e-3}"


def added(*phases: tuple[str, str]) -> list[str]:
    """Overrides that add phases with these names and values of `from` to the quickstart recipe."""
    return [f"phases.{name}={PHASE}{f', from: {source}' if source else ''}}}" for name, source in phases]


def test_the_shipped_names_have_their_usual_sources() -> None:
    recipe = load_recipe("quickstart")
    assert [source_of(recipe, name) for name in ("meta", "cross", "joint")] == [None, Source(phase="meta"), None]
    assert successors(recipe, "meta") == ["cross"]
    assert source_of(load_recipe("quickstart", ["phases.cross.from=nothing"]), "cross") is None


def test_any_number_of_phases_in_order(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", added(("stage-2", "meta"), ("decay_A", "stage-2@5"), ("other", "runs/x/meta@40")))
    assert list(recipe.phases)[3:] == ["stage-2", "decay_A", "other"]
    assert source_of(recipe, "decay_A") == Source(phase="stage-2", mark="5")
    assert source_of(recipe, "other") == Source(folder="runs/x/meta", mark="40")
    assert branch_steps(recipe, "stage-2") == [5]
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml") == recipe, "a run's record of its recipe says the same"


def test_a_phase_may_have_its_own_policy() -> None:
    recipe = load_recipe("quickstart", ["phases.cross.carry_over.optimizer=carry"])
    assert recipe.carry_over_of("cross").optimizer == "carry"
    assert recipe.carry_over_of("cross").unseen_embeddings == "keep", "it replaces the recipe's as a whole"
    assert recipe.carry_over_of("joint").unseen_embeddings == "reinitialise"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["phases.cross.from=meto"], r"phases.cross.from 'meto' names no phase of the recipe, did you mean meta\?"),
        (["phases.meta.from=joint"], r"phases.meta.from 'joint': that phase comes later in the recipe; write phases.joint"),
        (["phases.meta.from=meta"], r"phases.meta is its own ancestor \(meta from meta\); let"),
        (["phases.meta.from=cross", "phases.cross.from=meta"], r"cross is its own ancestor \(cross from meta from cross\)"),
        (["phases.cross.from=meta@15"], r"meta@15: phase meta has 600 steps and can save only .* nearest: meta@20$"),
        (["phases.cross.from=meta@0"], r"nearest: meta@10$"),
        (["phases.cross.from=meta@9000"], r"nearest: meta@600$"),
        (["phases.cross.from=meta@end"], r"after the @ comes the step of a checkpoint or `best`"),
        (["phases.cross.from=m!"], r"'m!' is neither a phase nor a folder"),
        (
            added(("late", "")),
            r"phases.late.from is missing; give what it continues from, such as from: joint, or from: nothing",
        ),
        (added(("untrained", "meta")), r"phases.untrained: 'untrained' has another meaning"),
        (["phases={'a b': {steps: 3}}"], r"phases.a b: the name of a phase has letters, digits, _ and -"),
        (["phases.corss.steps=3"], r"unknown phase 'corss', did you mean cross\? phases are meta, cross, joint"),
    ],
)
def test_bad_sources_and_names(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe("quickstart", overrides)


def test_a_mark_is_split_off() -> None:
    assert split_mark("runs/a@b/meta") == ("runs/a@b/meta", None)
    assert split_mark("runs/a@b/meta@best") == ("runs/a@b/meta", "best")
