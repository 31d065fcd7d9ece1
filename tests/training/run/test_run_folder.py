from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.checkpointing.manifest import list_steps, step_folder
from dist_metaxlm.training.run.run_folder import PhaseFolder


def test_data_may_move_and_a_resumed_phase_learns_the_same(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    folder.start(load_recipe("quickstart"))
    folder.start(load_recipe("quickstart", ["data.directory=/elsewhere", "parallel.zero_stage=2", "phases.cross.steps=9"]))
    with pytest.raises(UserError, match=r"phases\.meta\.steps was 600, now 9; resume with the old values .*add --change"):
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
    with pytest.raises(UserError, match=r"done\.json is damaged; delete it and give the same command again"):
        _ = folder.finished


def test_a_length_that_decides_which_text_the_steps_done_took_stays(tmp_path: Path) -> None:
    folder, capped = PhaseFolder(tmp_path, "meta"), "phases.meta.max_repetitions=4"
    folder.start(load_recipe("quickstart", [capped]))
    with pytest.raises(UserError, match=r"steps was 600, now 300, and with phases\.meta\.max_repetitions the length"):
        folder.check(load_recipe("quickstart", [capped, "phases.meta.steps=300"]), 100, change=True)
    faster = load_recipe("quickstart", [capped, "phases.meta.learning_rate.peak=1e-4"])
    assert list(folder.check(faster, 100, change=True)) == ["phases.meta.learning_rate.peak"]


def test_length_rate_and_optimiser_may_change_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    assert folder.start(load_recipe("quickstart")) == {}
    folder.finish({"steps": 150})
    new = ["phases.meta.steps=300", "optimizer.beta2=0.95", "phases.meta.learning_rate.peak=1e-4"]
    changed = folder.start(load_recipe("quickstart", new), 150, change=True)
    assert changed["phases.meta.steps"] == [600, 300]
    assert set(changed) == {"phases.meta.steps", "optimizer.beta2", "phases.meta.learning_rate.peak"}
    assert folder.finished is None
    assert json.loads((folder.path / "changes.jsonl").read_text()) == {"step": 150, "changed": changed}
    assert folder.start(load_recipe("quickstart", new)) == {}
    with pytest.raises(UserError, match="would resume after step 700, but the recipe gives the phase only 600 steps"):
        folder.start(load_recipe("quickstart", new[1:]), 700, change=True)
    with pytest.raises(UserError, match=r"another recipe: phases\.meta\.mask_rate was 0\.5, now 0\.3; (?!.*--change)"):
        folder.start(load_recipe("quickstart", [*new, "phases.meta.mask_rate=0.3", "optimizer.eps=1e-8"]), 150, change=True)


def test_later_checkpoints_make_room_for_those_that_will_be_written(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path, "meta")
    for step in (4, 8, 12):
        step_folder(folder.checkpoints, step).mkdir(parents=True)
    folder.finish({"steps": 12})
    (line,) = folder.go_back(4)
    assert list_steps(folder.checkpoints) == [4]
    assert folder.finished is None  # killed on the way, the next start must not take it for finished
    (aside,) = folder.path.glob("checkpoints-after-4-until-*")
    assert list_steps(aside) == [8, 12]
    assert str(aside) in line
    assert folder.go_back(4) == []


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    folder, other = PhaseFolder(tmp_path / "run", "meta"), load_recipe("quickstart", ["phases.meta.steps=300"])
    assert folder.check(other) == {}
    assert not folder.run_dir.exists()
    folder.start(load_recipe("quickstart"))
    folder.finish({"steps": 150})
    before = {path: path.read_bytes() for path in folder.run_dir.rglob("*") if path.is_file()}
    assert folder.check(other, 150, change=True) == {"phases.meta.steps": [600, 300]}
    assert {path: path.read_bytes() for path in folder.run_dir.rglob("*") if path.is_file()} == before


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_recipe_and_the_metrics_of_a_phase_that_goes_on(tmp_path: Path) -> None:
    folder, recipe = PhaseFolder(tmp_path, "meta"), load_recipe("quickstart")
    folder.start(recipe)
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(99)]
    folder.metrics.write_text("\n".join(lines) + "\n")
    with files_of_at_most(512):
        for action in (lambda: folder.start(recipe), lambda: folder.cut_metrics(90)):
            with pytest.raises(OSError, match="File too large"):
                action()
    assert folder.start(recipe) == {}
    assert folder.metrics.read_text().splitlines() == lines
    folder.cut_metrics(90)
    assert folder.metrics.read_text().splitlines() == lines[:91]
