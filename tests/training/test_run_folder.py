from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.manifest import list_steps, step_folder
from dist_metaxlm.training.run_folder import PhaseFolder


def test_data_may_move_and_a_resumed_phase_learns_the_same(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    folder.start(load_recipe("quickstart"))
    folder.start(load_recipe("quickstart", ["data.directory=/elsewhere", "parallel.zero_stage=2", "phases.cross.steps=9"]))
    with pytest.raises(UserError, match=r"phases\.meta\.steps was 150, now 9; resume with the old values .*add --change"):
        folder.start(load_recipe("quickstart", ["phases.meta.steps=9"]))
    with pytest.raises(UserError) as caught:
        folder.start(load_recipe("xlmr-base"))
    assert str(caught.value).count(" was ") == 6  # five fields, and "was started"
    assert " more; resume with the old values" in str(caught.value)


def test_a_damaged_mark_of_the_end_is_named(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    assert folder.finished is None
    folder.path.mkdir()
    (folder.path / "done.json").write_text("{")
    with pytest.raises(UserError, match=r"done\.json is damaged; delete it and run phase meta again"):
        _ = folder.finished


def test_length_rate_and_optimiser_may_change_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    assert folder.start(load_recipe("quickstart")) == {}
    folder.finish({"steps": 150})
    new = ["phases.meta.steps=300", "optimizer.beta2=0.95", "phases.meta.learning_rate.peak=1e-4"]
    changed = folder.start(load_recipe("quickstart", new), 150, change=True)
    assert changed["phases.meta.steps"] == [150, 300]
    assert set(changed) == {"phases.meta.steps", "optimizer.beta2", "phases.meta.learning_rate.peak"}
    assert folder.finished is None
    assert json.loads((folder.path / "changes.jsonl").read_text()) == {"step": 150, "changed": changed}
    assert folder.start(load_recipe("quickstart", new)) == {}
    with pytest.raises(UserError, match="goes on from step 200, and the phase would have 150 steps"):
        folder.start(load_recipe("quickstart", new[1:]), 200, change=True)
    with pytest.raises(UserError, match=r"another recipe: phases\.meta\.mask_rate was 0\.15, now 0\.3; (?!.*--change)"):
        folder.start(load_recipe("quickstart", [*new, "phases.meta.mask_rate=0.3", "optimizer.eps=1e-8"]), 150, change=True)


def test_later_checkpoints_make_room_for_those_that_will_be_written(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    for step in (4, 8, 12):
        step_folder(folder.checkpoints, step).mkdir(parents=True)
    (line,) = folder.set_later_aside(4)
    assert list_steps(folder.checkpoints) == [4]
    (aside,) = folder.path.glob("checkpoints-after-4-until-*")
    assert list_steps(aside) == [8, 12]
    assert str(aside) in line
    assert folder.set_later_aside(4) == []
