"""Schedules inside a phase: the stages that they make, how recipes write them, and the sentence for bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.sharing import undivided
from dist_metaxlm.recipe.stages import stages

MASKS = "phases.meta.mask_rate=[{tokens: 0, mask_rate: 0.3}, {tokens: 100_000, mask_rate: 0.1}]"
LENGTHS = "phases.meta.sequence_length=[{tokens: 0, sequence_length: 64}, {tokens: 300_000, sequence_length: 128}]"
BATCHES = "phases.meta.objectives.mlm.batch_tokens=[{tokens: 0, batch_tokens: 1024}, {tokens: 200_000, batch_tokens: 4096}]"


def test_points_over_tokens_make_stages_of_steps(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", [MASKS, LENGTHS, BATCHES])
    phase = recipe.phase("meta")
    found = [
        (s.first_step, s.tokens, s.phase.mask_rate, s.phase.sequence_length, s.phase.tokens_per_step) for s in stages(phase)
    ]
    assert found == [
        (0, 0, 0.3, 64, 1024),
        (98, 100_352, 0.1, 64, 1024),
        (196, 200_704, 0.1, 64, 4096),
        (221, 303_104, 0.1, 128, 4096),
    ]
    assert (phase.mask_rate, phase.sequence_length, phase.tokens_per_step) == (0.3, 128, 4096), "the largest"
    assert phase.total_tokens == 303_104 + (600 - 221) * 4096
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert "batch_schedule" not in (tmp_path / "r.yaml").read_text(encoding="utf-8"), "written as it was given"


def test_a_length_in_tokens_counts_the_batches_of_the_schedule() -> None:
    phase = load_recipe("quickstart", [BATCHES, "phases.meta.tokens=300000"]).phase("meta")
    assert phase.total_steps == 196 + -(-(300_000 - 200_704) // 4096)
    assert load_recipe("quickstart", [BATCHES, "phases.meta.tokens=100000"]).phase("meta").total_steps == 98


def test_two_points_inside_one_step_are_one_stage() -> None:
    masks = "[{tokens: 0, mask_rate: 0.3}, {tokens: 5, mask_rate: 0.2}, {tokens: 9, mask_rate: 0.1}]"
    phase = load_recipe("quickstart", [f"phases.meta.mask_rate={masks}"]).phase("meta")
    assert [(stage.first_step, stage.phase.mask_rate) for stage in stages(phase)] == [(0, 0.3), (1, 0.1)]


def test_every_stage_must_divide_over_the_ranks() -> None:
    phase = load_recipe("quickstart", [BATCHES]).phase("meta")
    assert not undivided(phase, 8)
    assert undivided(phase, 16) == ["mlm: batch_tokens 1024 is 8 windows, not a multiple of 16 ranks; nearest: 2048"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "mask_rate=[{tokens: 5, mask_rate: 0.3}]",
            "mask_rate begins at tokens 5; its first point is the start of the phase",
        ),
        (
            "mask_rate=[{tokens: 0, mask_rate: 0.3}, {tokens: 0, mask_rate: 0.2}]",
            "mask_rate is not increasing: tokens 0 follows tokens 0; order its points",
        ),
        (
            "sequence_length=[{tokens: 0, sequence_length: 64}, {tokens: 9, sequence_length: 128}, "
            "{tokens: 8, sequence_length: 64}]",
            "sequence_length is not increasing: tokens 8 follows tokens 9",
        ),
        ("mask_rate=[{tokens: 0, mask_rate: 1.0}]", r"mask_rate.0.mask_rate: Input should be less than 1"),
        ("mask_rate=[{tokens: 0, mask_rate: 0}]", r"mask_rate.0.mask_rate: Input should be greater than 0"),
        ("mask_rate=0", "mask_rate: Input should be greater than 0"),
        ("mask_rate=1", "mask_rate: Input should be less than 1"),
        ("mask_rate=[{tokens: 0, rate: 0.2}]", "unknown key phases.cross.mask_rate.0.rate, did you mean mask_rate"),
        ("mask_rate=[]", "mask_rate"),
        (
            "sequence_length=[{tokens: 0, sequence_length: 64}]",
            "max_pair_tokens 128 is more than .*_length 64, and tlm shows",
        ),
        ("alpha=[{tokens: 10, alpha: 0.3}, {tokens: 5, alpha: 0.7}]", "alpha is not increasing: tokens 5 follows tokens 10"),
        ("objectives.mlm.batch_tokens=[{tokens: 0, batch_tokens: 1000}]", "batch_tokens 1000 is not a multiple of"),
        ("objectives.contrast.pairs=[{tokens: 0, pairs: 64}]", "pairs: Input should be a valid integer"),
        ("objectives.mlm.masked_share=0.95", "masked_share 0.95 and random_share 0.1 are more than 1 together"),
        ("objectives.mlm.span_p=1", "span_p: Input should be less than 1"),
    ],
)
def test_bad_schedules(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe("quickstart", [f"phases.cross.{override}"])


def test_schedules_that_nothing_follows() -> None:
    clm = "phases.meta.objectives=[{name: clm, batch_tokens: 2048}]"
    with pytest.raises(UserError, match=r"mask_rate is a schedule and no objective of the phase masks by it \(clm\)"):
        load_recipe("quickstart", [MASKS, clm])
    with pytest.raises(UserError, match="max_repetitions counts epochs of windows of one length"):
        load_recipe("quickstart", [LENGTHS, "phases.meta.max_repetitions=3.0"])
    with pytest.raises(UserError, match=r"phases.meta.rope_theta is for model.family modern and the model is xlmr"):
        load_recipe("xlmr-base", ["phases.meta.rope_theta=1e6"])


def test_a_phase_changes_the_bases_and_windows_of_the_model() -> None:
    recipe = load_recipe("quickstart", ["phases.cross.rope_theta=1e6", "phases.cross.local_window=32"])
    assert recipe.as_trained("meta") is recipe
    model = recipe.as_trained("cross").model
    assert (model.rope_theta, model.local_window, model.rope_theta_local) == (1e6, 32, recipe.model.rope_theta_local)
