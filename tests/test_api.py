"""The Python API from recipe to export, in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dist_metaxlm
from dist_metaxlm.errors import UserError

SHORT = ["phases.meta.steps=2", "phases.cross.steps=2", "training.checkpoint_interval=2"]


def test_both_phases_evaluation_and_export_in_one_process(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = dist_metaxlm.load_recipe(tiny_recipe, SHORT)
    prepared = dist_metaxlm.prepare(recipe, log=lambda line: None)
    assert prepared["languages"] == 3
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"finished meta phase.*`metaxlm pretrain --phase meta --recipe tiny"):
        dist_metaxlm.pretrain("cross", recipe, run_dir=run)
    assert not run.exists()
    assert dist_metaxlm.pretrain("meta", recipe, run_dir=run) == run
    dist_metaxlm.pretrain("cross", recipe, run_dir=run)
    losses = [json.loads(line)["loss"] for line in (run / "cross" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 1
    # the same phase, trained by the command in a process of its own, from the same meta phase
    (tmp_path / "other").mkdir()
    (run / "meta").rename(tmp_path / "other" / "meta")
    command = [sys.executable, "-m", "dist_metaxlm", "pretrain", "--phase", "cross", "--recipe", str(tiny_recipe)]
    words = [*command, "--run_dir", str(tmp_path / "other"), *SHORT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = [json.loads(line)["loss"] for line in (tmp_path / "other/cross/metrics.jsonl").read_text().splitlines()]
    assert again == losses
    results = dist_metaxlm.evaluate(run, "cross", min_candidates=5)
    assert results["phase"] == "cross"
    assert (run / "evaluation" / "cross.json").is_file()
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT"} & os.environ.keys()
    written = dist_metaxlm.export(run, "cross", tmp_path / "exported", dtype="bfloat16")
    assert written["parameters"] == 32_956
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert dist_metaxlm.plan(recipe, "2x8xH100")[0].layout is not None


def test_mistakes_are_user_errors(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = dist_metaxlm.load_recipe(tiny_recipe)
    with pytest.raises(UserError, match="seed=2: overrides go with a recipe given by name"):
        dist_metaxlm.plan(recipe, "8xH100", ["seed=2"])
    with pytest.raises(UserError, match="dtype 'float8' is none of float32, bfloat16, float16"):
        dist_metaxlm.export(tmp_path, "cross", tmp_path / "x", dtype="float8")
    with pytest.raises(AttributeError, match="has no attribute 'tokenise'"):
        _ = dist_metaxlm.tokenise


def test_the_names_are_lazy_and_listed() -> None:
    code = "import sys, dist_metaxlm; print(dist_metaxlm.__version__, 'pydantic' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown[1:] == ["False", "False"]
    assert {"load_recipe", "prepare", "pretrain", "evaluate", "export", "plan"} <= {*dir(dist_metaxlm)}
