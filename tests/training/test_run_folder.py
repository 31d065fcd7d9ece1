from __future__ import annotations

from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.run_folder import PhaseFolder


def test_data_may_move_and_a_resumed_phase_learns_the_same(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    folder.start(load_recipe("quickstart"))
    folder.start(load_recipe("quickstart", ["data.directory=/elsewhere", "parallel.zero_stage=2", "phases.cross.steps=9"]))
    with pytest.raises(UserError, match=r"phases\.meta\.steps was 150, now 9; resume with the old values"):
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
